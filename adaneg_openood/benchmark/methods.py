"""A method by name: which detector, with which settings. Names are those of the detectors' records."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pydantic
from torch import Tensor

from adaneg_openood.benchmark.detector_settings import read_settings, settings_model
from adaneg_openood.data.feature_set import FeatureSet
from adaneg_openood.detectors import DETECTORS, TextDetector, default_settings, make_detector
from adaneg_openood.io.configuration import given_values, not_allowed, told

if TYPE_CHECKING:
    from adaneg_openood.text import LabelFeatures
    from adaneg_openood.vlm import VisionLanguageModel


@dataclass(frozen=True)
class MethodSpec:
    """A row of the comparison.

    Attributes:
        detector: a name of ``detectors.DETECTORS``.
        settings: what differs from the detector's defaults.
    """

    detector: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Detector and all of its settings, as JSON values."""
        return {"detector": self.detector, **default_settings(self.detector), **self.settings}

    @property
    def needs_negatives(self) -> bool:
        """Whether its text rows must hold negative labels."""
        return DETECTORS[self.detector].info.needs_negatives

    def build(
        self,
        data: FeatureSet,
        labels: LabelFeatures | None = None,
        inputs: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> TextDetector:
        """The detector over a benchmark's labels.

        Args:
            data: the features; a method takes the text rows.
            labels: the same rows with what is known of them: a recipe's number of groups is taken where
                the settings name none.
            inputs: what else methods may take, see :func:`further_inputs`.

        Raises:
            ValueError, TypeError: a setting that does not fit the data, such as too many groups.
        """
        settings = dict(self.settings)
        if (
            labels is not None
            and labels.groups is not None
            and "groups" in default_settings(self.detector)
        ):
            settings.setdefault("groups", labels.groups)
        taken = inspect.signature(DETECTORS[self.detector]).parameters
        own = {name: value for name, value in inputs.items() if name in taken}
        return make_detector(
            self.detector, data.text_features, data.n_id, data.logit_scale, settings, **own
        )


STANDARD = {
    "MCM": MethodSpec("mcm"),
    "NegLabel": MethodSpec("neglabel"),
    "AdaNeg (task)": MethodSpec("adaneg"),
    "AdaNeg (sample)": MethodSpec("adaneg", {"proxy": "sample"}),
}


def standard_detectors(data: FeatureSet) -> dict[str, TextDetector]:
    """MCM, NegLabel and AdaNeg with both proxies, each with its published settings."""
    return {title: method.build(data) for title, method in STANDARD.items()}


def further_inputs(detectors: Iterable[str], model: VisionLanguageModel | None) -> dict[str, Tensor]:
    """What detectors take beside text rows and the model makes: noise features, where one takes them.

    Args:
        detectors: names.
        model: None makes nothing.
    """
    for name in detectors:
        if model is not None and "noise_features" in inspect.signature(DETECTORS[name]).parameters:
            from adaneg_openood.data.noise import noise_features

            return {"noise_features": noise_features(model)}
    return {}


def read_method(given: Any) -> MethodSpec:
    """A method from a mapping with ``detector`` and settings.

    Raises:
        ValueError: unknown detector or setting, or a value that is not allowed.
    """
    values = given_values(given)
    detector = values.pop("detector", None)
    if detector is None:
        raise ValueError(f"detector is missing; it must be one of {', '.join(DETECTORS)}")
    if detector not in DETECTORS:
        raise ValueError(f"detector {not_allowed(detector, DETECTORS)}")
    try:
        return MethodSpec(detector, read_settings(detector, values))
    except pydantic.ValidationError as error:
        raise ValueError(told(error, "")) from None


def method_schema() -> dict[str, Any]:
    """The JSON schema of one method: one alternative per detector."""
    found = []
    for name in DETECTORS:
        own = settings_model(name).model_json_schema()
        own["properties"] = {"detector": {"const": name}, **own["properties"]}
        found.append({**own, "required": ["detector"]})
    return {"oneOf": found}
