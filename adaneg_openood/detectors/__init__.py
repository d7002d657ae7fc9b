"""Detectors: text features in, then ``score(image_features) -> Scores``."""

from adaneg_openood.detectors.adaneg import AdaNeg
from adaneg_openood.detectors.bank import FeatureBank
from adaneg_openood.detectors.base import Scores, TextDetector
from adaneg_openood.detectors.config import AdaNegConfig
from adaneg_openood.detectors.mcm import MCM
from adaneg_openood.detectors.neglabel import NegLabel

__all__ = ["MCM", "AdaNeg", "AdaNegConfig", "FeatureBank", "NegLabel", "Scores", "TextDetector"]
