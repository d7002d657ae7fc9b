"""Negative label mining (NegMining): which candidate words lie farthest from every ID class."""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 4096  # candidates compared at a time, so memory is O(chunk x C) and not O(candidates x C)


@torch.no_grad()
def mine_negatives(
    candidates: Tensor, id_features: Tensor, n_negatives: int | None, percentile: float = 0.95
) -> Tensor:
    """Choose the candidates least similar to the ID classes (NegLabel, ICLR 2024, section 3.1).

    A candidate's distance from the ID classes is its ``percentile`` cosine to them: its C cosines
    sorted ascending, the one at index ``int(percentile * C)``. The candidates of lowest value are
    kept; equal values keep their given order, so the result never depends on hashing.

    Args:
        candidates: (N, D) text features of the candidate words, unit length, any float dtype.
        id_features: (C, D) text features of the ID names, unit length.
        n_negatives: how many to keep; ``None`` or more than N keeps all, ordered.
        percentile: in [0, 1].

    Returns:
        (min(N, n_negatives),) int64 indices into ``candidates``, lowest value first.

    Raises:
        ValueError: widths differ, no ID features, or a number out of its range.
    """
    if candidates.ndim != 2 or id_features.ndim != 2 or candidates.shape[1] != id_features.shape[1]:
        raise ValueError(
            "candidates and id_features must be (N, D) and (C, D) of one width, got "
            f"{tuple(candidates.shape)} and {tuple(id_features.shape)}"
        )
    n_id = len(id_features)
    if n_id < 1:
        raise ValueError("id_features holds no ID class")
    if not 0.0 <= percentile <= 1.0:
        raise ValueError(f"percentile must be in [0, 1], got {percentile}")
    if n_negatives is not None and n_negatives < 1:
        raise ValueError(f"n_negatives must be at least 1 or None, got {n_negatives}")
    index = min(int(percentile * n_id), n_id - 1)
    id_columns = id_features.float().T
    values = torch.cat(
        [(chunk.float() @ id_columns).sort(dim=1).values[:, index] for chunk in candidates.split(_CHUNK)]
        or [torch.empty(0)]
    )
    return torch.argsort(values, stable=True)[:n_negatives]
