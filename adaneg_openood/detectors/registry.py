"""Methods by name. A file of this package that defines a detector with a record of facts adds one."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

import adaneg_openood.detectors as package
from adaneg_openood.detectors.base import TextDetector
from adaneg_openood.io.checks import check_choice, check_known


def _found() -> dict[str, type[TextDetector]]:
    kinds: list[type[TextDetector]] = []
    for module in pkgutil.iter_modules(package.__path__):
        if module.name == __name__.rpartition(".")[2]:
            continue
        members = vars(importlib.import_module(f"{package.__name__}.{module.name}"))
        kinds += [
            kind
            for kind in members.values()
            if isinstance(kind, type)
            and issubclass(kind, TextDetector)
            and "info" in vars(kind)
            and kind.__module__ == members["__name__"]
        ]
    return {kind.info.name: kind for kind in sorted(kinds, key=lambda kind: kind.info.month)}


DETECTORS: Mapping[str, type[TextDetector]] = MappingProxyType(_found())
"""``info.name`` -> class, in the order in which tables list methods."""


def default_settings(name: str) -> dict[str, Any]:
    """Every setting of a method with its default.

    Raises:
        ValueError: no method of this name.
    """
    check_choice("detector", name, tuple(DETECTORS))
    return DETECTORS[name].default_settings()


def make_detector(
    name: str,
    text_features: Tensor,
    n_id: int,
    logit_scale: float = 100.0,
    settings: Mapping[str, Any] = MappingProxyType({}),
    **inputs: Any,
) -> TextDetector:
    """A detector by the name of its method.

    Args:
        name: a key of :data:`DETECTORS`.
        text_features: (C + M, D), ID rows first, any float dtype.
        n_id: C.
        logit_scale: s; not used by a method that takes none.
        settings: some of :func:`default_settings`; None stands for the default.
        inputs: further inputs that the method takes, such as AdaNeg's ``bank``.

    Raises:
        ValueError, TypeError: an unknown name, setting or input, or a value that is not allowed.

    Example:
        >>> make_detector("adaneg", text, n_id=1000, settings={"proxy": "sample"})  # doctest: +SKIP
    """
    known = default_settings(name)
    check_known(name, settings, tuple(known))
    kind = DETECTORS[name]
    given: dict[str, Any] = {key: value for key, value in settings.items() if value is not None}
    parameters = inspect.signature(kind).parameters
    check_known(f"{name}: inputs", inputs, kind.input_names())
    if "config" in parameters and kind.config_class is not None:
        fields = {key: given.pop(key) for key in list(given) if key not in parameters}
        given["config"] = kind.config_class(**fields)
    if "logit_scale" in parameters:
        given["logit_scale"] = logit_scale
    return kind(text_features, n_id, **given, **inputs)
