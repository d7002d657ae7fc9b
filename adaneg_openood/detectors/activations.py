"""What images activate among candidate labels: queues of it, rankings by it, scores against a ranking.

Source: TANL (CVPR 2026, arXiv 2603.25250). Off the CPU nothing has a shape that depends on data, and
nothing is read back by the host.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from adaneg_openood.detectors.state import StateModule, ring_slots

_LOWEST = 75.0
"""Logits this far below a row's largest count as this far: their exponentials would be denormal."""


class ActivationQueue(StateModule):
    """The activations of the last images of one side, first in first out.

    Attributes:
        rows: (L + 1, K) float32, a ring; the last row takes what is not kept.
        sums: (K,) float64, the sum of the rows that are held.
        seen: () int64, rows that ever entered.
    """

    ranges: ClassVar = {"rows": (0.0, 1.0), "seen": (0.0, math.inf)}
    rows: Tensor
    sums: Tensor
    seen: Tensor

    def __init__(self, length: int, n_candidates: int) -> None:
        super().__init__()
        self.length = length
        zero = torch.zeros((), dtype=torch.float32)
        self.add_state("rows", zero.expand(length + 1, n_candidates), keep_float32=True)
        self.add_state("sums", zero.expand(n_candidates), widest=True)
        self.add_state("seen", torch.zeros((), dtype=torch.long))

    def mean(self) -> Tensor:
        """(K,) mean of the rows that are held; zero where none is."""
        return self.sums / self.seen.clamp(1, self.length)

    def enter(self, rows: Tensor, entering: Tensor, total: Tensor) -> None:
        """Append rows in order; the oldest leave a full queue.

        Args:
            rows: (n, K) activations.
            entering: (n,) bool, which of them enter.
            total: (K,) sum of those that enter.
        """
        kept, slots = ring_slots(self.seen, entering, self.length)
        if len(rows) > self.length:  # then some may leave with the batch they came with
            total = column_sums(rows, kept, self.sums.dtype)
        self.sums.add_(total).sub_(column_sums(self.rows[slots], kept, self.sums.dtype))
        self.rows[slots] = rows
        self.seen.add_(entering.sum())

    def _unfit(self, state: Mapping[str, Tensor]) -> str | None:
        problem = super()._unfit(state)
        if problem is None:
            rows, sums = state["rows"], state["sums"]
            held = torch.arange(len(rows), device=rows.device) < state["seen"].clamp_max(self.length)
            if not torch.allclose(column_sums(rows, held, sums.dtype), sums, atol=1e-4):
                problem = "sums are not those of the rows"
        return problem


def activations(logits: Tensor, n_id: int) -> Tensor:
    """(n, K) candidates' part of the softmax over all (n, C + K) logits, which are used up."""
    lowest = logits.amax(dim=1, keepdim=True) - _LOWEST
    return torch.maximum(logits, lowest, out=logits).softmax(dim=1)[:, n_id:]


def on_host(values: Tensor) -> bool:
    """Whether reading a value costs nothing, so that shapes may depend on it and save work."""
    return values.device.type == "cpu"


def column_sums(rows: Tensor, taken: Tensor, dtype: torch.dtype) -> Tensor:
    """(K,) sums of those of (n, K) rows that are taken, in a wider type, without a copy in it."""
    if not on_host(rows):
        return (rows * taken[:, None]).sum(dim=0, dtype=dtype)
    total = torch.zeros(rows.shape[1], dtype=dtype)
    for index in taken.nonzero().squeeze(1).tolist():  # torch's sum would copy all rows first
        total.add_(rows[index])
    return total


def largest(values: Tensor, n: int) -> Tensor:
    """(n,) indices of the n largest of (K,) values, largest first, lower index first among equals."""
    if n >= len(values):
        return values.sort(descending=True, stable=True).indices
    least = values.topk(n, sorted=False).values.amin()
    above, equal = values > least, values == least
    taken = above | (equal & (equal.cumsum(0) <= n - above.sum()))
    index = torch.arange(len(values), device=values.device)
    # in order of index; whatever is not taken is written to one place more, which is dropped
    chosen = index.new_empty(n + 1)
    chosen[torch.where(taken, taken.cumsum(0) - 1, n)] = index
    chosen = chosen[:n]
    return chosen[values[chosen].sort(descending=True, stable=True).indices]


def prefix_weights(n_negatives: int, step: int, available: int) -> list[float]:
    """Weight of each prefix of the ranked negatives in a score.

    ``step = 0`` takes all negatives at once; otherwise the prefixes of ``step``, ``2 step``, ... and
    ``n_negatives`` are weighed alike. A prefix longer than what is available is what is available.

    Returns:
        ``min(n_negatives, available)`` weights that sum to 1.
    """
    terms = math.ceil(n_negatives / step) if step else 1
    ends = [min(step * term, n_negatives) for term in range(1, terms)] + [n_negatives]
    weights = [0.0] * min(n_negatives, available)
    for end in ends:
        weights[min(end, available) - 1] += 1 / terms
    return weights


def prefix_score(lse_id: Tensor, ranked: Tensor, weights: Tensor) -> Tensor:
    """(B,) float32 in [0, 1]: weighted mean of ``A / (A + N_j)`` over prefixes j of ranked negatives.

    Args:
        lse_id: (B,) log A, logsumexp of the ID logits.
        ranked: (B, b) logits of the ranked negatives; N_j sums the exponentials of the first j.
        weights: (b,) weight of each prefix, in the dtype to sum in.
    """
    # within +-80 nothing overflows and no denormal is met, and beyond it a term is 0 or 1 in float32
    odds = (ranked - lse_id[:, None]).clamp_(-80.0, 80.0).exp_().cumsum(dim=1, dtype=weights.dtype)
    return (odds.add_(1.0).reciprocal_() @ weights).float()
