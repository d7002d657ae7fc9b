"""OpenOOD adapter: the only part of the package that imports OpenOOD, and not before it is asked to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaneg_openood.openood.registration import register

if TYPE_CHECKING:
    from adaneg_openood.openood.evaluator import Evaluator
    from adaneg_openood.openood.network import CLIPNetwork
    from adaneg_openood.openood.postprocessors import Postprocessor

__all__ = ["CLIPNetwork", "Evaluator", "Postprocessor", "register"]

_HOMES = {"CLIPNetwork": "network", "Evaluator": "evaluator", "Postprocessor": "postprocessors"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
