"""Detectors: text features in, then ``score(image_features) -> Scores``.

A file of this package that defines a detector with a record of facts adds a method. The class and its
configuration are served by their names without being listed here: see :data:`DETECTORS`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from adaneg_openood.detectors.adaneg import AdaNeg, AdaNegConfig
from adaneg_openood.detectors.bank import FeatureBank
from adaneg_openood.detectors.base import DetectorInfo, Scores, TextDetector
from adaneg_openood.detectors.mcm import MCM
from adaneg_openood.detectors.neglabel import NegLabel
from adaneg_openood.io.checks import check_choice, check_known


def _found() -> dict[str, type[TextDetector]]:
    kinds: list[type[TextDetector]] = []
    for module in pkgutil.iter_modules(__path__):
        members = vars(importlib.import_module(f"{__name__}.{module.name}"))
        for kind in members.values():
            own = getattr(kind, "__module__", None) == members["__name__"]
            if (
                own
                and isinstance(kind, type)
                and issubclass(kind, TextDetector)
                and "info" in vars(kind)
            ):
                kinds.append(kind)
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
    check_known(name, settings, tuple(default_settings(name)))
    kind = DETECTORS[name]
    check_known(name, inputs, kind.input_names(), "input")
    given: dict[str, Any] = {key: value for key, value in settings.items() if value is not None}
    if kind.config_class is not None:
        given = {"config": kind.config_class(**given)}
    if "logit_scale" in inspect.signature(kind).parameters:
        given["logit_scale"] = logit_scale
    return kind(text_features, n_id, **given, **inputs)


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
