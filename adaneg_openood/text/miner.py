"""The lowest candidates of a stream: which text features lie farthest from every ID class."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

_CHUNK = 4096  # candidates compared at a time, so memory is O(chunk x C) and not O(candidates x C)


class NegativeMiner:
    """The lowest candidates of a stream, in O(kept + batch) memory.

    A candidate's value is a percentile of its C cosines to the ID classes. The candidates of lowest
    value are kept; equal values keep the order in which they came, so the result never depends on
    hashing.

    Args:
        id_features: (C, D) text features of the ID names, unit length, any float dtype.
        n_negatives: how many to keep, at least 0; ``None`` keeps all.
        percentile: in [0, 1].
        interpolated: take the interpolated quantile; False takes the sorted cosine at
            ``int(percentile * C)``.
        near_copy: a candidate whose largest cosine is above it has the value 1; None has no limit.

    Raises:
        ValueError: no ID features, or a number out of its range.

    Source: NegLabel (Jiang et al., ICLR 2024), section 3.1; CSP (Chen et al., NeurIPS 2024).
    """

    def __init__(
        self,
        id_features: Tensor,
        n_negatives: int | None,
        percentile: float = 0.95,
        *,
        interpolated: bool = False,
        near_copy: float | None = None,
    ) -> None:
        if id_features.ndim != 2:
            raise ValueError(f"id_features must be (C, D), got shape {tuple(id_features.shape)}")
        n_id = len(id_features)
        if n_id < 1:
            raise ValueError("id_features holds no ID class")
        if not 0.0 <= percentile <= 1.0:
            raise ValueError(f"percentile must be in [0, 1], got {percentile}")
        if n_negatives is not None and n_negatives < 0:
            raise ValueError(f"n_negatives must be at least 0 or None, got {n_negatives}")
        self.n_negatives = n_negatives
        self.near_copy = near_copy
        self.n_seen = 0
        # between the sorted cosines at rank and rank + 1, so much of the way
        place = percentile * (n_id - 1) if interpolated else int(percentile * n_id)
        self._rank = min(math.floor(place), n_id - 1)
        self._way = place - self._rank if self._rank < n_id - 1 else 0.0
        self._id_columns = id_features.detach().float().T
        self._values = torch.empty(0)
        self._indices = torch.empty(0, dtype=torch.int64)

    @torch.no_grad()
    def update(self, candidates: Tensor) -> None:
        """Take the next candidates.

        Args:
            candidates: (n, D) text features, unit length, any float dtype and device.

        Raises:
            ValueError: D differs from the ID features'.
        """
        if candidates.ndim != 2 or candidates.shape[1] != len(self._id_columns):
            raise ValueError(
                "candidates and id_features must be (N, D) and (C, D) of one width, got "
                f"{tuple(candidates.shape)} and {tuple(self._id_columns.T.shape)}"
            )
        for chunk in candidates.split(_CHUNK):
            cosines = chunk.to(self._id_columns.device).float() @ self._id_columns
            values = self._valued(cosines).cpu()
            indices = torch.arange(self.n_seen, self.n_seen + len(values))
            self.n_seen += len(values)
            values = torch.cat([self._values, values])
            # what was kept comes first, so a stable sort leaves ties in order of arrival
            order = torch.argsort(values, stable=True)[: self.n_negatives]
            self._values = values[order]
            self._indices = torch.cat([self._indices, indices])[order]

    def _valued(self, cosines: Tensor) -> Tensor:
        values = cosines.kthvalue(self._rank + 1, dim=1).values
        if self._way:
            values = values.lerp(cosines.kthvalue(self._rank + 2, dim=1).values, self._way)
        if self.near_copy is not None:
            values = values.masked_fill(cosines.amax(dim=1) > self.near_copy, 1.0)
        return values

    @property
    def indices(self) -> Tensor:
        """(n,) int64 positions in the stream, lowest value first; n <= n_negatives."""
        return self._indices

    @property
    def values(self) -> Tensor:
        """(n,) float32, the kept candidates' values, ascending."""
        return self._values


def mine_negatives(
    candidates: Tensor | Iterable[Tensor],
    id_features: Tensor,
    n_negatives: int | None,
    percentile: float = 0.95,
) -> Tensor:
    """Choose the candidates least similar to the ID classes, see :class:`NegativeMiner`.

    Args:
        candidates: (N, D) text features of the candidate words, unit length, any float dtype; or
            an iterable of such parts, taken one at a time.
        id_features: (C, D) text features of the ID names, unit length.
        n_negatives: how many to keep, at least 1; ``None`` or more than N keeps all, ordered.
        percentile: in [0, 1].

    Returns:
        (min(N, n_negatives),) int64 indices into ``candidates``, lowest value first.

    Raises:
        ValueError: widths differ, no ID features, or a number out of its range.

    Source: NegLabel (Jiang et al., ICLR 2024), section 3.1.
    """
    if n_negatives is not None and n_negatives < 1:
        raise ValueError(f"n_negatives must be at least 1 or None, got {n_negatives}")
    miner = NegativeMiner(id_features, n_negatives, percentile)
    for part in [candidates] if isinstance(candidates, Tensor) else candidates:
        miner.update(part)
    return miner.indices
