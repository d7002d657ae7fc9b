"""A method by name: which detector, with which settings. Names and defaults are the detectors' own."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import pydantic
import torch
from torch import Tensor

from adaneg_openood.data.feature_set import FeatureSet
from adaneg_openood.data.noise import noise_features
from adaneg_openood.detectors import (
    DETECTORS,
    AdaNegConfig,
    TextDetector,
    default_settings,
    make_detector,
)
from adaneg_openood.io.checks import not_allowed
from adaneg_openood.io.configuration import Number, Section, Whole, given_values, told
from adaneg_openood.text import LabelFeatures
from adaneg_openood.vlm import VisionLanguageModel

_MOST = 1_000_000  # labels in a check of settings; nobody has more


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

    @property
    def takes_corpus(self) -> bool:
        """Whether its negatives are every word of a corpus, and not a mined list."""
        return DETECTORS[self.detector].info.takes_corpus

    def build(
        self,
        data: FeatureSet,
        labels: LabelFeatures | None = None,
        inputs: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> TextDetector:
        """The detector over a benchmark's labels.

        Args:
            data: the features; a method takes the text rows.
            labels: the same rows; a recipe's number of groups is taken where the settings name none.
            inputs: those of :func:`further_inputs`, and as ``"corpus"`` the text rows, (C + K, D), of a
                method that chooses its negatives itself.

        Raises:
            ValueError, TypeError: a setting that does not fit the data, such as too many groups.
        """
        settings = with_published_groups(self.detector, self.settings, labels)
        taken = DETECTORS[self.detector].input_names()
        own = {name: value for name, value in inputs.items() if name in taken}
        rows = inputs.get("corpus", data.text_features) if self.takes_corpus else data.text_features
        return make_detector(self.detector, rows, data.n_id, data.logit_scale, settings, **own)


def with_published_groups(
    detector: str, settings: Mapping[str, Any], labels: LabelFeatures | None
) -> dict[str, Any]:
    """Settings, with the number of groups that the negatives were published with if they name none."""
    own = dict(settings)
    if labels is not None and labels.groups is not None and "groups" in default_settings(detector):
        own.setdefault("groups", labels.groups)
    return own


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
    """What detectors take beside text rows and a model makes: noise features, where one takes them."""
    taken = any("noise_features" in DETECTORS[name].input_names() for name in detectors)
    return {} if model is None or not taken else {"noise_features": noise_features(model)}


@functools.cache
def settings_model(detector: str) -> type[Section]:
    """The model of a detector's settings."""
    kinds: dict[type, Any] = {int: Whole, float: Number, type(None): Any}
    fields: dict[str, Any] = {
        name: (kinds.get(type(value), type(value)), value)
        for name, value in default_settings(detector).items()
    }
    if detector == "adaneg":
        about = "Reproduce released results: beta is truncated, and AdaGap fixes lambda at 1."
        fields["released"] = (bool, pydantic.Field(False, description=about))
    return pydantic.create_model(f"{DETECTORS[detector].info.title}Settings", __base__=Section, **fields)


def read_settings(detector: str, given: Any) -> dict[str, Any]:
    """Settings of a detector, checked; only those that were given.

    AdaNeg's ``released`` becomes the settings that reproduce released results.

    Raises:
        pydantic.ValidationError: an unknown setting, or a value of another kind.
        ValueError, TypeError: a value that is not allowed.
    """
    made = settings_model(detector).model_validate(given)
    settings = {
        name: getattr(made, name) for name in type(made).model_fields if name in made.model_fields_set
    }
    if settings.pop("released", False):
        released = AdaNegConfig.released(**settings)
        settings.update({name: getattr(released, name) for name in ("beta", "lam")})
    check_fit(detector, settings, 1)
    return settings


def check_fit(
    detector: str, settings: Mapping[str, Any], n_id: int, n_negatives: int | None = None
) -> None:
    """Refuse settings that do not fit the number of labels, such as more groups than negatives.

    Args:
        detector, settings: its name, and what differs from its defaults.
        n_id, n_negatives: C and M; M is None where it is not known yet.

    Raises:
        ValueError, TypeError: a setting that does not fit, or is not allowed at all.
    """
    if n_negatives is None:
        groups = settings.get("groups", default_settings(detector).get("groups"))
        n_negatives = groups if type(groups) is int and groups > 0 else 1
    rows = torch.ones(n_id + min(n_negatives, _MOST), 1)  # as good as any, and small
    make_detector(detector, rows, n_id, settings=settings)


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
