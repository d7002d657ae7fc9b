"""A method by name: which detector, with which settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from adaneg_openood.data.feature_set import FeatureSet
from adaneg_openood.detectors import MCM, AdaNeg, AdaNegConfig, NegLabel
from adaneg_openood.detectors.checks import check_choice
from adaneg_openood.evaluation.streams import Detector
from adaneg_openood.io.fields import Fields

SETTINGS = tuple(f.name for f in dataclasses.fields(AdaNegConfig))
_MODES = ("published", "released")


@dataclass(frozen=True)
class MethodSpec:
    """A row of the comparison.

    Attributes:
        name: as tables show it.
        detector: ``"mcm"``, ``"neglabel"`` or ``"adaneg"``.
        config: AdaNeg's settings; None for the others.
        settings: arguments of the others.
    """

    name: str
    detector: str
    config: AdaNegConfig | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Detector and settings, as JSON values."""
        config = {} if self.config is None else dataclasses.asdict(self.config)
        return {"detector": self.detector, **self.settings, **config}

    def build(self, data: FeatureSet) -> Detector:
        """The detector over a benchmark's labels.

        Raises:
            ValueError, TypeError: a setting that does not fit the data, such as too many groups.
        """
        text, n_id, scale = data.text_features, data.n_id, data.logit_scale
        if self.detector == "mcm":
            return MCM(text, n_id, **self.settings)
        if self.detector == "neglabel":
            return NegLabel(text, n_id, logit_scale=scale, **self.settings)
        return AdaNeg(text, n_id, scale, self.config)


STANDARD = (
    MethodSpec("MCM", "mcm"),
    MethodSpec("NegLabel", "neglabel"),
    MethodSpec("AdaNeg (task)", "adaneg", AdaNegConfig()),
    MethodSpec("AdaNeg (sample)", "adaneg", AdaNegConfig(proxy="sample")),
)


def adaneg_config(mode: str = "published", **changed: Any) -> AdaNegConfig:
    """AdaNeg's settings: as published, or as the released code runs them.

    Raises:
        ValueError, TypeError: unknown mode, or a setting out of range.
    """
    check_choice("mode", mode, _MODES)
    return AdaNegConfig.released(**changed) if mode == "released" else AdaNegConfig(**changed)


def read_method(name: str, own: Fields) -> MethodSpec:
    """A method from the mapping under its name.

    Raises:
        ValueError: unknown detector or setting, or a value out of range; the message names the place.
    """
    detector = own.take("detector", str)
    check_choice(own.at("detector"), detector, ("mcm", "neglabel", "adaneg"))
    try:
        if detector == "adaneg":
            mode = own.take("mode", str, "published")
            taken = {key: own.take(key, None, None) for key in SETTINGS}
            changed = {key: value for key, value in taken.items() if value is not None}
            spec = MethodSpec(name, detector, adaneg_config(mode, **changed))
        elif detector == "mcm":
            spec = MethodSpec(name, detector, None, _given(own, {"tau": float}))
        else:
            spec = MethodSpec(name, detector, None, _given(own, {"groups": int, "permute": bool}))
    except (TypeError, ValueError) as error:
        text = str(error)
        raise ValueError(text if own.where in text else f"{own.where}: {text}") from error
    own.finish()
    return spec


def _given(own: Fields, kinds: Mapping[str, type]) -> dict[str, Any]:
    taken = {key: own.take(key, kind, None) for key, kind in kinds.items()}
    for key in ("tau", "groups"):
        if taken.get(key) is not None and not taken[key] > 0:
            raise ValueError(f"{key} must be above 0, got {taken[key]}")
    return {key: value for key, value in taken.items() if value is not None}


def standard_detectors(data: FeatureSet) -> dict[str, Detector]:
    """MCM, NegLabel and AdaNeg with both proxies, each with its published settings."""
    return {spec.name: spec.build(data) for spec in STANDARD}
