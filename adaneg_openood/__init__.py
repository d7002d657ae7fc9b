"""AdaNeg, NegLabel, MCM and their kin: out-of-distribution detection with vision-language models."""

from typing import TYPE_CHECKING, Any

from adaneg_openood import detectors as _detectors
from adaneg_openood._version import __version__
from adaneg_openood.detectors import MCM, AdaNeg, AdaNegConfig, FeatureBank, NegLabel, Scores
from adaneg_openood.openood.registration import register as _register_with_openood

__all__ = ["MCM", "AdaNeg", "AdaNegConfig", "FeatureBank", "NegLabel", "Scores", "__version__"]
__all__ += [name for name in _detectors.CLASSES if name not in __all__]


globals().update(_detectors.CLASSES)  # methods that are found, see detectors.DETECTORS

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...


# Adds import hooks only: nothing of OpenOOD is imported before somebody else does, and nothing at all
# happens where it is not installed.
_register_with_openood()
