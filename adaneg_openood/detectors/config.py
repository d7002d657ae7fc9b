"""Settings of AdaNeg, checked in one place."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import Any

_CHOICES = {
    "proxy": ("task", "sample"),
    "score": ("combine", "adaptive", "neglabel", "multiply"),
    "replacement": ("entropy", "first"),
    "calibration": ("none", "centered"),
}


@dataclass(frozen=True)
class AdaNegConfig:
    """Settings of :class:`~adaneg_openood.AdaNeg`, by default those published for ImageNet.

    Args:
        gamma: centre of the confidence thresholds, in [0, 1].
        gap: half-open gap around it, in [0, 1]; images inside it are not cached.
        memory_length: L, at least 1. Slot 0 is the text feature, so a row caches L - 1 images.
        lam: lambda, weight of the NegLabel score in ``combine`` and of the proxy probabilities in the
            ID prediction; finite, at least 0.
        beta: sharpness of sample-adaptive weights; finite, at least 0.
        groups: G, groups of negatives, at least 1.
        permute: group the negatives in a fixed random order, not the given one.
        proxy: ``"task"`` or ``"sample"``.
        score: ``"combine"`` (S_ada + lambda S_nl), ``"adaptive"``, ``"neglabel"`` or ``"multiply"``.
        replacement: ``"entropy"`` (as described) or ``"first"`` (what the released code does in half
            precision, and so what the published numbers come from).
        adagap: thresholds follow the running share of ID images.
        calibration: ``"none"`` is the published method; ``"centered"`` makes rows with and without
            images comparable, see :mod:`adaneg_openood.detectors.calibration`.
        gain: weight of what an image adds to its row under ``"centered"``; finite, at least 0. At 0 the
            ranking is NegLabel's.

    Raises:
        ValueError, TypeError: a setting is not allowed; the message names it, its value and what is.
    """

    gamma: float = 0.5
    gap: float = 0.5
    memory_length: int = 10
    lam: float = 0.1
    beta: float = 5.5
    groups: int = 5
    permute: bool = True
    proxy: str = "task"
    score: str = "combine"
    replacement: str = "entropy"
    adagap: bool = False
    calibration: str = "none"
    gain: float = 0.05

    def __post_init__(self) -> None:
        for name in ("gamma", "gap"):
            value = _number(name, getattr(self, name))
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {value}")
        for name in ("lam", "beta", "gain"):
            value = _number(name, getattr(self, name))
            if not (math.isfinite(value) and value >= 0.0):
                raise ValueError(f"{name} must be finite and at least 0, got {value}")
        for name in ("memory_length", "groups"):
            check_positive_int(name, getattr(self, name))
        for name in ("permute", "adagap"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be true or false, got {getattr(self, name)!r}")
        for name, allowed in _CHOICES.items():
            check_choice(name, getattr(self, name), allowed)

    @classmethod
    def safe(cls, **changed: Any) -> AdaNegConfig:
        """A calibrated AdaNeg, made to be no worse than NegLabel on any stream.

        Not the published method, and not the default: its scores equal no table of the paper.
        """
        return cls(**{"calibration": "centered", **changed})

    @classmethod
    def released(cls, **changed: Any) -> AdaNegConfig:
        """The configuration that reproduces the released implementation's confidences.

        It truncates ``beta`` to an integer (5.5 runs as 5), and its AdaGap variant fixes lambda at 1
        when it combines scores; both happen whatever value is passed, as they do there.
        """
        config = cls(**changed)
        changed["beta"] = int(config.beta)
        if config.adagap and config.score == "combine":
            changed["lam"] = 1.0
        return cls(**changed)


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise a ValueError that lists what is allowed and suggests the nearest, unless value is in it."""
    if value in allowed:
        return
    near = difflib.get_close_matches(str(value), allowed, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    listed = ", ".join(map(repr, allowed))
    raise ValueError(f"{name} must be one of {listed}, got {value!r}{hint}")


def check_positive_int(name: str, value: object) -> None:
    """Raise unless value is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return float(value)
