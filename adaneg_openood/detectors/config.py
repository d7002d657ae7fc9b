"""Settings of AdaNeg, checked in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adaneg_openood.io.checks import check_choice, check_flag, check_int, check_number

_CHOICES = {
    "proxy": ("task", "sample"),
    "score": ("combine", "adaptive", "neglabel", "multiply"),
    "replacement": ("entropy", "first"),
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

    def __post_init__(self) -> None:
        for name in ("gamma", "gap"):
            check_number(name, getattr(self, name), 0.0, 1.0)
        for name in ("lam", "beta"):
            check_number(name, getattr(self, name))
        for name in ("memory_length", "groups"):
            check_int(name, getattr(self, name))
        for name in ("permute", "adagap"):
            check_flag(name, getattr(self, name))
        for name, allowed in _CHOICES.items():
            check_choice(name, getattr(self, name), allowed)

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
