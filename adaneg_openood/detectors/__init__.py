"""Detectors: text features in, then ``score(image_features) -> Scores``.

Every method is served by its class's name, and its configuration by that class's name, without being
listed here: see :data:`DETECTORS`.
"""

from typing import TYPE_CHECKING, Any

from adaneg_openood.detectors.adaneg import AdaNeg
from adaneg_openood.detectors.bank import FeatureBank
from adaneg_openood.detectors.base import Scores, TextDetector
from adaneg_openood.detectors.config import AdaNegConfig
from adaneg_openood.detectors.info import DetectorInfo
from adaneg_openood.detectors.mcm import MCM
from adaneg_openood.detectors.neglabel import NegLabel
from adaneg_openood.detectors.registry import DETECTORS, default_settings, make_detector

CLASSES: dict[str, type] = {
    made.__name__: made
    for kind in DETECTORS.values()
    for made in (kind, kind.config_class)
    if made is not None
}
"""Detectors and their configurations by class name."""


globals().update(CLASSES)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...


__all__ = [
    "DETECTORS",
    "MCM",
    "AdaNeg",
    "AdaNegConfig",
    "DetectorInfo",
    "FeatureBank",
    "NegLabel",
    "Scores",
    "TextDetector",
    "default_settings",
    "make_detector",
]
__all__ += [name for name in CLASSES if name not in __all__]
