"""AdaNeg, NegLabel and MCM: out-of-distribution detection with vision-language models."""

from adaneg_openood._version import __version__
from adaneg_openood.detectors import MCM, AdaNeg, AdaNegConfig, FeatureBank, NegLabel, Scores
from adaneg_openood.openood.registration import register as _register_with_openood

__all__ = ["MCM", "AdaNeg", "AdaNegConfig", "FeatureBank", "NegLabel", "Scores", "__version__"]

# Adds import hooks only: nothing of OpenOOD is imported before somebody else does, and nothing at all
# happens where it is not installed.
_register_with_openood()
