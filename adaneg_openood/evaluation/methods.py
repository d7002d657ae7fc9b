"""The methods that are compared by default."""

from __future__ import annotations

from adaneg_openood.detectors import MCM, AdaNeg, AdaNegConfig, NegLabel
from adaneg_openood.evaluation.feature_set import FeatureSet
from adaneg_openood.evaluation.streams import Detector


def standard_detectors(data: FeatureSet) -> dict[str, Detector]:
    """MCM, NegLabel and AdaNeg with both proxies, each with its published settings."""
    text, n_id, scale = data.text_features, data.n_id, data.logit_scale
    return {
        "MCM": MCM(text, n_id),
        "NegLabel": NegLabel(text, n_id, logit_scale=scale),
        "AdaNeg (task)": AdaNeg(text, n_id, scale),
        "AdaNeg (sample)": AdaNeg(text, n_id, scale, AdaNegConfig(proxy="sample")),
    }
