"""The settings of a detector: names, defaults and kinds are the detector's own."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import pydantic
import torch

from adaneg_openood.detectors import DETECTORS, AdaNegConfig, default_settings, make_detector
from adaneg_openood.io.configuration import Number, Section, Whole

_MOST = 1_000_000  # labels in a check of settings; nobody has more


@functools.cache
def settings_model(detector: str) -> type[Section]:
    """The model of a detector's settings."""
    kinds: dict[type, Any] = {int: Whole, float: Number}
    fields: dict[str, Any] = {
        name: (kinds.get(type(value), Any if value is None else type(value)), value)
        for name, value in default_settings(detector).items()
    }
    if detector == "adaneg":
        about = "Reproduce released results: beta is truncated, and AdaGap fixes lambda at 1."
        fields["released"] = (bool, pydantic.Field(False, description=about))
    return pydantic.create_model(f"{DETECTORS[detector].info.title}Settings", __base__=Section, **fields)


def read_settings(detector: str, given: Any) -> dict[str, Any]:
    """Settings of a detector, checked; only those that were given.

    Args:
        detector: a name of ``detectors.DETECTORS``.
        given: a mapping, as YAML gives it; for AdaNeg also ``released``, which becomes the settings that
            reproduce released results.

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
        detector: a name of ``detectors.DETECTORS``.
        settings: those that differ from the defaults.
        n_id: C.
        n_negatives: M; None where it is not known yet.

    Raises:
        ValueError, TypeError: a setting that does not fit, or is not allowed at all.
    """
    if n_negatives is None:
        groups = settings.get("groups", default_settings(detector).get("groups"))
        n_negatives = groups if type(groups) is int and groups > 0 else 1
    rows = torch.ones(n_id + min(n_negatives, _MOST), 1)  # as good as any, and small
    make_detector(detector, rows, n_id, settings=settings)
