"""From confidences to decisions: a threshold, and where it came from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from adaneg_openood.io.checks import check_choice, check_int, check_number

LEAST_SCORES = 20  # scores below which a tail quantile says little
_SOURCES = ("id", "stream")


@dataclass(frozen=True)
class Threshold:
    """Images of a confidence below ``value`` are OOD.

    Attributes:
        value: on the scale of ``Scores.conf``.
        tpr: share of ID images meant to be kept, in (0, 1].
        n: scores it was taken from.
        source: ``"id"`` (scores of ID validation images) or ``"stream"`` (of a stream whose images
            may be ID or OOD).

    Raises:
        ValueError, TypeError: a value that no threshold can have, as a damaged file may hold.
    """

    value: float
    tpr: float
    n: int
    source: str

    def __post_init__(self) -> None:
        check_number("threshold", self.value, -math.inf)
        _check_tpr(self.tpr)
        check_int("n", self.n)
        check_choice("source", self.source, _SOURCES)

    def __str__(self) -> str:
        of = "ID validation images" if self.source == "id" else "images of a stream, ID or not"
        return f"{self.value:.4f}: keeps {100 * self.tpr:g} % of {self.n} {of}"


def find_threshold(conf: Tensor, tpr: float = 0.95, source: str = "id") -> Threshold:
    """The largest threshold that keeps a share ``tpr`` of the scores.

    With ``source="stream"`` it is conservative: as OOD images tend to score lower, the stream's
    quantile lies below that of its ID images, so at least ``tpr`` of these are kept.

    Args:
        conf: (N,) confidences.
        tpr: in (0, 1].
        source: ``"id"`` or ``"stream"``.

    Raises:
        ValueError: too few scores, scores that are not finite, or an argument out of range.
    """
    _check_tpr(tpr)
    check_choice("source", source, _SOURCES)
    conf = torch.as_tensor(conf).detach().cpu().double().reshape(-1)
    if len(conf) < LEAST_SCORES:
        raise ValueError(f"a threshold needs at least {LEAST_SCORES} scores, got {len(conf)}")
    if not bool(torch.isfinite(conf).all()):
        raise ValueError("conf holds values that are NaN or infinite")
    below = min(int((1.0 - tpr) * len(conf) + 1e-9), len(conf) - 1)  # how many may fall below
    value = torch.sort(conf).values[below].item()
    return Threshold(value, tpr, len(conf), source)


def _check_tpr(tpr: float) -> None:
    check_number("tpr", tpr)
    if not 0.0 < tpr <= 1.0:
        raise ValueError(f"tpr must be in (0, 1], got {tpr}")
