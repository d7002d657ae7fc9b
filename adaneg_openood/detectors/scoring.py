"""Pure functions over logits: the grouped ID score, entropies and class probabilities.

Negatives are kept in *group order*: the G groups contiguous and equal, then the ``M mod G`` negatives
that no group takes. Grouping is then a reshape, not a gather.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class SideSums(NamedTuple):
    """What one pass over a batch's logits leaves: exponentials per side, and their logarithmic sums."""

    exp_id: Tensor
    """(B, C) exp(ID logit - the image's largest ID logit)."""
    exp_neg: Tensor
    """(B, M) exp(negative logit - the image's largest negative logit)."""
    lse_id: Tensor
    """(B,) logsumexp of the ID logits."""
    lse_neg: Tensor
    """(B,) logsumexp of all negative logits, grouped or not."""
    max_id: Tensor
    """(B,) the largest ID logit."""
    s: Tensor
    """(B,) the grouped ID score, in [0, 1]."""


def group_order(n_neg: int, groups: int, permute: bool) -> Tensor:
    """Order of the negatives that makes groups contiguous (method: permuted or ordered grouping).

    Permuted grouping is ``torch.randperm`` under seed 0 of an own CPU generator, so the caller's
    random state is never touched. The last ``n_neg mod groups`` negatives belong to no group and
    stay at the end.

    Returns:
        (n_neg,) int64.
    """
    kept = n_neg - n_neg % groups
    if not permute:
        return torch.arange(n_neg)
    order = torch.randperm(kept, generator=torch.Generator().manual_seed(0))
    return torch.cat([order, torch.arange(kept, n_neg)])


def side_sums(logits: Tensor, n_id: int, groups: int) -> SideSums:
    """Grouped ID score (NegLabel, ICLR 2024, eq. 5 averaged over groups) with its by-products.

    ``S_g = sigmoid(logsumexp(ID) - logsumexp(group g))``. Each side is shifted by its own maximum, so
    nothing overflows and a hopeless image keeps a score above zero.

    Args:
        logits: (B, C + M) float, ID columns first, negatives in group order.
        n_id: C.
        groups: G.
    """
    ids, negatives = logits[:, :n_id], logits[:, n_id:]
    max_id, max_neg = ids.amax(dim=1), negatives.amax(dim=1)
    exp_id = (ids - max_id[:, None]).exp_()
    exp_neg = (negatives - max_neg[:, None]).exp_()
    lse_id = max_id + exp_id.sum(dim=1).log_()
    n_neg = negatives.shape[1]
    size = n_neg // groups
    group_sums = exp_neg[:, : size * groups].unflatten(1, (groups, size)).sum(dim=2)
    total = group_sums.sum(dim=1) + exp_neg[:, size * groups :].sum(dim=1)
    lse_group = max_neg[:, None] + group_sums.log()
    s = torch.sigmoid(lse_id[:, None] - lse_group).mean(dim=1)
    return SideSums(exp_id, exp_neg, lse_id, max_neg + total.log_(), max_id, s)


def id_probabilities(sums: SideSums) -> Tensor:
    """(B, C) softmax over all C + M rows, ungrouped, of the ID columns alone."""
    shift = sums.max_id - torch.logaddexp(sums.lse_id, sums.lse_neg)
    return sums.exp_id * shift.exp()[:, None]


def entropy(exp_logits: Tensor) -> Tensor:
    """(B,) ``-sum p log(p + 1e-8)`` of softmax rows given as shifted exponentials (B, N).

    Computed in at least float32, where 1e-8 is not lost and a vanishing p gives 0 and not NaN.
    """
    p = exp_logits / exp_logits.sum(dim=1, keepdim=True)
    return -(p * (p + 1e-8).log_()).sum(dim=1)
