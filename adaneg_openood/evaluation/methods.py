"""The methods that are compared by default."""

from __future__ import annotations

from adaneg_openood.evaluation.feature_set import FeatureSet
from adaneg_openood.evaluation.method_specs import STANDARD
from adaneg_openood.evaluation.streams import Detector


def standard_detectors(data: FeatureSet) -> dict[str, Detector]:
    """MCM, NegLabel and AdaNeg with both proxies, each with its published settings."""
    return {spec.name: spec.build(data) for spec in STANDARD}
