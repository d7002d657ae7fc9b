"""Pure functions over logits: the grouped ID score, entropies and class probabilities.

Negatives are kept in *group order*: the G groups contiguous and equal, then the ``M mod G`` negatives
that no group takes. Grouping is then a reshape, not a gather.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class GroupedLogits(NamedTuple):
    """What one pass over a batch's logits leaves: exponentials of both sides, and log-sum-exps."""

    exp_id: Tensor
    """(B, C) exp(ID logit - max_id)."""
    exp_neg: Tensor
    """(B, M) exp(negative logit - max_neg)."""
    max_id: Tensor
    """(B,) the largest ID logit."""
    max_neg: Tensor
    """(B,) the largest negative logit."""
    lse_id: Tensor
    """(B,) logsumexp of the ID logits."""
    lse_neg: Tensor
    """(B,) logsumexp of all negative logits, grouped or not."""
    lse_groups: Tensor
    """(B, G) logsumexp of each group's logits."""

    def score(self, log_odds: float = 0.0) -> Tensor:
        """(B,) grouped ID score in [0, 1]: the mean of ``sigmoid(lse_id - lse_group + log_odds)``.

        Args:
            log_odds: 0 gives NegLabel's score.
        """
        return torch.sigmoid(self.lse_id[:, None] - self.lse_groups + log_odds).mean(dim=1)


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


def log_size_odds(n_id: int, n_negatives: int, groups: int) -> float:
    """Log odds that make the grouped ID score one half where no label fits better than another.

    ``log(M / G) - log C``: sums of exponentials over the two sides become means.
    """
    return math.log(n_negatives // groups) - math.log(n_id)


def grouped_logits(logits: Tensor, n_id: int, groups: int) -> GroupedLogits:
    """The sums that the grouped ID score (NegLabel, ICLR 2024, eq. 5 averaged over groups) is made of.

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
    parts = _group_sums(exp_neg, groups)
    return _grouped(exp_id, exp_neg, max_id, max_neg, lse_id, parts)


def replaced_logits(
    text: GroupedLogits, id_logits: Tensor, columns: Tensor, changed: Tensor, groups: int
) -> GroupedLogits:
    """:func:`grouped_logits` of logits of which A columns are replaced, without a second full pass.

    Exponentials of the columns that stay are used again. They are weighed by a mask and not
    subtracted from the sums, so nothing cancels.

    Args:
        text: sums of the logits before; its ``exp_neg`` is used up.
        id_logits: (B, C) ID logits before, overwritten with those after.
        columns: (A,) int64, distinct columns in [0, C + M).
        changed: (A, B) their new logits.
        groups: G.

    Returns:
        Sums after; ``exp_neg`` holds the columns that stayed alone.
    """
    n_id, n_neg = text.exp_id.shape[1], text.exp_neg.shape[1]
    is_id = columns < n_id
    of_id, of_neg = is_id.nonzero().squeeze(1), (~is_id).nonzero().squeeze(1)

    id_logits.index_copy_(1, columns[of_id], changed.index_select(0, of_id).T)
    max_id = id_logits.amax(dim=1)
    exp_id = (id_logits - max_id[:, None]).exp_()
    lse_id = max_id + exp_id.sum(dim=1).log_()
    if len(of_neg) == 0:
        parts = _group_sums(text.exp_neg, groups)
        return _grouped(exp_id, text.exp_neg, max_id, text.max_neg, lse_id, parts)

    of_side, new = columns[of_neg] - n_id, changed.index_select(0, of_neg)
    stays = torch.ones(n_neg, dtype=new.dtype, device=new.device).index_fill_(0, of_side, 0.0)
    kept = _group_sums(text.exp_neg.mul_(stays), groups)
    # the part behind the last whole group belongs to none, yet to the sum of all
    group = (of_side // (n_neg // groups)).clamp_max(groups)
    member = torch.zeros(groups + 1, len(of_side), dtype=new.dtype, device=new.device)
    member[group, torch.arange(len(of_side), device=new.device)] = 1.0
    max_neg = torch.maximum(text.max_neg, new.amax(dim=0))
    added = member @ new.sub_(max_neg).exp_()
    parts = kept * (text.max_neg - max_neg).exp_()[:, None] + added.T
    return _grouped(exp_id, text.exp_neg, max_id, max_neg, lse_id, parts)


def _group_sums(exp_neg: Tensor, groups: int) -> Tensor:
    """(B, G + 1) sums over each group, and over what no group takes."""
    size = exp_neg.shape[1] // groups
    grouped = exp_neg[:, : size * groups].unflatten(1, (groups, size)).sum(dim=2)
    rest = exp_neg[:, size * groups :].sum(dim=1, keepdim=True)
    return torch.cat([grouped, rest], dim=1)


def _grouped(
    exp_id: Tensor, exp_neg: Tensor, max_id: Tensor, max_neg: Tensor, lse_id: Tensor, parts: Tensor
) -> GroupedLogits:
    lse_groups = max_neg[:, None] + parts[:, :-1].log()
    lse_neg = max_neg + parts.sum(dim=1).log_()
    return GroupedLogits(exp_id, exp_neg, max_id, max_neg, lse_id, lse_neg, lse_groups)


def row_argmax(values: Tensor, width: int = 128) -> Tensor:
    """(B,) argmax of each row of (B, N), the first of equals; in blocks, as torch's is slow on CPU."""
    n = values.shape[1]
    if n <= width:
        return values.argmax(dim=1)
    whole = n - n % width
    # the last block reaches back over its neighbour, which comes first where both hold the largest
    blocks = [values[:, :whole].unflatten(1, (-1, width)).amax(dim=2)]
    blocks.append(values[:, -width:].amax(dim=1, keepdim=True))
    start = (torch.cat(blocks, dim=1).argmax(dim=1) * width).clamp_max_(n - width)
    block = values.gather(1, start[:, None] + torch.arange(width, device=values.device))
    return start + block.argmax(dim=1)


def first_equals(rows: Tensor, order: Tensor) -> Tensor | None:
    """For each row the first one equal to it, such as a name's that is there twice.

    Args:
        rows: (N, D).
        order: (N,) int64, a permutation; what stands first in it is first.

    Returns:
        (N,) int64, or None if all rows differ.
    """
    weights = torch.linspace(1.0, 2.0, rows.shape[1], device=rows.device).sin_()
    keys, at = (rows.float() * weights).sum(dim=1)[order].sort(stable=True)
    order = order[at]
    near = (keys[1:] == keys[:-1]).nonzero().squeeze(1)
    near = near[(rows[order[near]] == rows[order[near + 1]]).all(dim=1)]
    if len(near) == 0:
        return None
    starts = torch.arange(len(rows), device=rows.device)
    starts[near + 1] = 0
    return torch.empty_like(order).index_copy_(0, order, order[starts.cummax(dim=0).values])


def summed_id_probabilities(
    first: GroupedLogits, second: GroupedLogits, weight: Tensor | float
) -> Tensor:
    """(B, C) ``p_first + weight * p_second``, each a softmax over all C + M rows, ungrouped."""
    shifts = [sums.max_id - torch.logaddexp(sums.lse_id, sums.lse_neg) for sums in (first, second)]
    total = first.exp_id * shifts[0].exp_()[:, None]
    return total.addcmul_(second.exp_id, (shifts[1].exp_() * weight)[:, None])


def entropy(exp_logits: Tensor) -> Tensor:
    """(B,) ``-sum p log(p + 1e-8)`` of softmax rows given as shifted exponentials (B, N), used up.

    Computed in at least float32, where 1e-8 is not lost and a vanishing p gives 0 and not NaN.
    """
    p = exp_logits.div_(exp_logits.sum(dim=1, keepdim=True))
    return -(p + 1e-8).log_().mul_(p).sum(dim=1)
