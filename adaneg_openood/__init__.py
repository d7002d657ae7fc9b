"""AdaNeg, NegLabel and MCM: out-of-distribution detection with vision-language models."""

from adaneg_openood._version import __version__
from adaneg_openood.detectors import MCM, AdaNeg, AdaNegConfig, FeatureBank, NegLabel, Scores

__all__ = ["MCM", "AdaNeg", "AdaNegConfig", "FeatureBank", "NegLabel", "Scores", "__version__"]
