"""Otsu's threshold: over a window of scores in bins, and exactly over a few values.

Source: Otsu, IEEE Transactions on Systems, Man, and Cybernetics, 1979. Nothing here has a shape that
depends on data, and nothing is read back by the host.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from adaneg_openood.detectors.state import StateModule, ring_slots

_BINS = 100


class ScoreWindow(StateModule):
    """The last scores of a stream, with what a threshold needs of them kept up to date.

    Attributes:
        scores: (window + 1,) float32 in [0, 1], a ring; the last takes what does not enter.
        bins: (3, 100) float64: number, sum and sum of squares of the scores in each bin.
        seen: () int64, scores that ever entered.
    """

    ranges: ClassVar = {"scores": (0.0, 1.0), "seen": (0.0, math.inf)}
    scores: Tensor
    bins: Tensor
    seen: Tensor

    def __init__(self, window: int) -> None:
        super().__init__()
        zero = torch.zeros((), dtype=torch.float32)
        self.add_state("scores", zero.expand(window + 1), keep_float32=True)
        self.add_state("bins", zero.expand(3, _BINS), widest=True)
        self.add_state("seen", torch.zeros((), dtype=torch.long))

    def enter(self, scores: Tensor, entering: Tensor) -> None:
        """Append those of (n,) float32 scores in [0, 1] that enter; the oldest leave a full window."""
        kept, slots = ring_slots(self.seen, entering, len(self.scores) - 1)
        left = kept & (slots < self.seen)  # slots fill one after the other
        self.bins.add_(self._binned(scores, kept)).sub_(self._binned(self.scores[slots], left))
        # What rounding leaves in a bin that holds nothing would break ties between its neighbours.
        self.bins.mul_(self.bins[0] > 0.5)
        self.scores[slots] = scores.to(self.scores.dtype)
        self.seen.add_(entering.sum())

    def threshold(self) -> Tensor:
        """() float32: the threshold i / 100 of least variance within the two classes.

        The upper class holds the scores at or above the threshold. Neighbouring thresholds that split
        the scores alike tie; of n of these the one number ``n // 2`` is taken. Where there are no two
        classes it is 0.5.
        """
        below = self.bins.cumsum(dim=1) - self.bins
        above = self.bins.sum(dim=1, keepdim=True) - below
        counts = below[0]
        split = (counts > 0) & (above[0] > 0)
        within = sum(part[2] - part[1].square() / part[0].clamp_min(1) for part in (below, above))
        best = torch.where(split, within, torch.inf).argmin()
        tied = torch.where(split.any(), split & (counts == counts.take(best)), True)
        number = tied.cumsum(0) - 1
        index = (tied & (number == tied.sum() // 2)).to(torch.uint8).argmax()
        return index.float() / _BINS

    def _binned(self, scores: Tensor, taken: Tensor) -> Tensor:
        """(3, 100) number, sum and sum of squares, by bin, of those of (n,) scores that are taken."""
        number = torch.arange(_BINS, device=scores.device)
        edges = number.float() / _BINS
        member = (torch.bucketize(scores, edges, right=True) - 1)[:, None] == number
        values = scores.to(self.bins.dtype)
        powers = torch.stack([torch.ones_like(values), values, values.square()])
        return (powers * taken) @ member.to(values.dtype)

    def _unfit(self, state: Mapping[str, Tensor]) -> str | None:
        problem = super()._unfit(state)
        if problem is None:
            scores, bins = state["scores"], state["bins"]
            size = len(scores) - 1
            held = torch.arange(len(scores), device=scores.device) < state["seen"].clamp_max(size)
            # float32 drifts over a long stream, where a device has no float64
            if not torch.allclose(self._binned(scores, held).to(bins), bins, rtol=1e-3, atol=1e-2):
                problem = "bins are not those of the scores"
        return problem


class Split(NamedTuple):
    """Where values fall into two groups.

    Attributes:
        theta: () midpoint of the two values at the split.
        eta: () between-class variance over total variance, in [0, 1]; 0 where values do not vary.
        variance: () population variance.
    """

    theta: Tensor
    eta: Tensor
    variance: Tensor


def exact_split(values: Tensor, n: Tensor) -> Split:
    """Otsu's split of the first n of (N,) values, over every threshold between two of them.

    Args:
        values: (N,) floats.
        n: () int64 in [0, N].
    """
    held = torch.arange(len(values), device=values.device) < n
    ordered = torch.where(held, values, torch.inf).sort().values
    count = n.clamp_min(1)
    centred = torch.where(held, ordered, 0.0)
    centred = torch.where(held, centred - centred.sum() / count, 0.0)
    variance = centred.square().sum() / count
    lower = torch.arange(1, len(values) + 1, device=values.device)
    upper = (n - lower).clamp_min(1)
    between = centred.cumsum(0).square() / (lower * upper)
    between = torch.where(lower < n, between, -1.0)
    best = between.argmax()
    theta = (ordered.take(best) + ordered.take((best + 1).clamp_max(len(values) - 1))) / 2
    eta = between.take(best) / variance.clamp_min(torch.finfo(values.dtype).tiny)
    return Split(theta, eta.clamp(0.0, 1.0), variance)
