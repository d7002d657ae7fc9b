"""Pure functions over logits: the grouped ID score, entropies and class probabilities.

Negatives are kept in *group order*: the G groups contiguous and equal, then the ``M mod G`` negatives
that no group takes. Grouping is then a reshape, not a gather.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Exponentials of what lies further below the largest are this far below it: they change no sum, and
# numbers below float32's normal range are 30 to 90 times slower on CPUs.
_FLOOR = -80.0
LEAST_SUM = math.exp(_FLOOR / 2)
"""Sums of :func:`replaced_logits` below this may be those of floored exponentials, not of the logits."""
_LEAST_SHARE = 1e-36  # smallest probability that an entropy tells apart, for the same reason


class GroupedLogits(NamedTuple):
    """What one pass over a batch's logits leaves: exponentials of both sides, and log-sum-exps.

    The negatives' parts are their G groups and, if G does not divide M, what no group takes. Each is
    shifted by its own maximum, so none under- or overflows, however far another lies above it.
    """

    exp_id: Tensor
    """(B, C) exp(ID logit - max_id)."""
    exp_neg: Tensor
    """(B, M) exp(negative logit - its part's maximum)."""
    max_id: Tensor
    """(B,) the largest ID logit."""
    max_parts: Tensor
    """(B, P) the largest logit of each part."""
    sum_id: Tensor
    """(B,) sum of exp_id."""
    sum_parts: Tensor
    """(B, P) sum of exp_neg over each part."""
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


def grouped_logits(logits: Tensor, n_id: int, groups: int, keep_negatives: bool = True) -> GroupedLogits:
    """The sums that the grouped ID score (NegLabel, ICLR 2024, eq. 5 averaged over groups) is made of.

    ``S_g = sigmoid(logsumexp(ID) - logsumexp(group g))``.

    Args:
        logits: (B, C + M) float, ID columns first, negatives in group order.
        n_id: C.
        groups: G.
        keep_negatives: False makes ``exp_neg`` in place of the negative logits, which saves time.
    """
    ids, negatives = logits[:, :n_id], logits[:, n_id:]
    max_id = ids.amax(dim=1)
    exp_id = (ids - max_id[:, None]).clamp_min_(_FLOOR).exp_()
    exp_neg = negatives
    if keep_negatives:
        exp_neg = torch.empty_like(negatives, memory_format=torch.contiguous_format)
    maxima = [part.amax(dim=2) for part in _parts(negatives, groups)]
    for part, into, largest in zip(_parts(negatives, groups), _parts(exp_neg, groups), maxima):
        torch.sub(part, largest[:, :, None], out=into)
    exp_neg.clamp_min_(_FLOOR).exp_()
    sums = torch.cat([part.sum(dim=2) for part in _parts(exp_neg, groups)], dim=1)
    return _grouped(exp_id, exp_neg, max_id, torch.cat(maxima, dim=1), sums, groups)


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
        Sums after; ``exp_neg`` holds the columns that stayed alone. Where the largest logit of a part
        was replaced by a far smaller one, ``sum_parts`` is below :data:`LEAST_SUM` and not to be relied
        on.
    """
    n_id, n_neg = text.exp_id.shape[1], text.exp_neg.shape[1]
    # in the order of the parts: ID labels, each group, what no group takes
    part = ((columns - n_id) // (n_neg // groups)).clamp(-1, groups)
    part, order = part.sort(stable=True)
    columns, changed = columns[order], changed.index_select(0, order)
    in_part = torch.bincount(part + 1, minlength=text.max_parts.shape[1] + 1).tolist()
    of_id, *of_parts = changed.split(in_part)

    id_logits.index_copy_(1, columns[: in_part[0]], of_id.T)
    max_id = id_logits.amax(dim=1)
    exp_id = id_logits.sub_(max_id[:, None]).clamp_min_(_FLOOR).exp_()
    stays = torch.ones(n_neg, dtype=changed.dtype, device=changed.device)
    stays.index_fill_(0, columns[in_part[0] :] - n_id, 0.0)
    text.exp_neg.mul_(stays)
    kept = torch.cat([p.sum(dim=2) for p in _parts(text.exp_neg, groups)], dim=1).T
    maxima = torch.where(kept > 0, text.max_parts.T, -torch.inf)  # of a part that is all replaced: none
    sums = kept.contiguous()
    for number, new in enumerate(of_parts):
        if len(new):
            largest = torch.maximum(maxima[number], new.amax(dim=0))
            sums[number] *= (maxima[number] - largest).exp_()
            sums[number] += new.sub_(largest).clamp_min_(_FLOOR).exp_().sum(dim=0)
            maxima[number] = largest
    return _grouped(exp_id, text.exp_neg, max_id, maxima.T, sums.T, groups)


def _parts(negatives: Tensor, groups: int) -> list[Tensor]:
    """Views (B, G, M // G) of the groups and, if there are any, (B, 1, M mod G) of the others."""
    kept = negatives.shape[1] - negatives.shape[1] % groups
    grouped, rest = negatives[:, :kept].unflatten(1, (groups, -1)), negatives[:, None, kept:]
    return [grouped, rest] if rest.shape[2] else [grouped]


def _grouped(
    exp_id: Tensor, exp_neg: Tensor, max_id: Tensor, max_parts: Tensor, sum_parts: Tensor, groups: int
) -> GroupedLogits:
    sum_id = exp_id.sum(dim=1)
    max_neg = max_parts.amax(dim=1)
    sum_neg = (max_parts - max_neg[:, None]).exp_().mul_(sum_parts).sum(dim=1)
    lse_groups = max_parts[:, :groups] + sum_parts[:, :groups].log()
    return GroupedLogits(
        exp_id, exp_neg, max_id, max_parts, sum_id, sum_parts,
        max_id + sum_id.log(), max_neg + sum_neg.log_(), lse_groups,
    )  # fmt: skip


def nearest_negatives(max_parts: Tensor, exp_neg: Tensor, groups: int) -> Tensor:
    """(N,) which of each image's negative logits is the largest, the first of equals.

    Only the part that holds it is searched.

    Args:
        max_parts, exp_neg: (N, P) and (N, M), as in :class:`GroupedLogits`.
        groups: G.
    """
    if max_parts.shape[1] == 1:
        return row_argmax(exp_neg)
    size, rest = divmod(exp_neg.shape[1], groups)
    start = max_parts.argmax(dim=1, keepdim=True) * size
    # the first 1 is the part's own, as it holds its maximum; behind the last part nothing new comes
    columns = start + torch.arange(max(size, rest), device=exp_neg.device)
    found = row_argmax(exp_neg.gather(1, columns.clamp_max_(exp_neg.shape[1] - 1)))
    return start.squeeze(1) + found


def nearest_rows(features: Tensor, text: Tensor, k: int) -> Tensor:
    """(B, min(k, R)) int64 which of (R, D) text features of unit length are nearest, nearest first.

    Args:
        features: (B, D) of images, of any length, which does not change what is nearest.
        text: on the device, and of the dtype, in which they are compared.
        k: how many.
    """
    return (features.to(text) @ text.T).topk(min(k, len(text)), dim=1).indices


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


def first_equals(rows: Tensor, order: Tensor) -> Tensor:
    """For each row the first one equal to it, such as a name's that is there twice.

    Args:
        rows: (N, D).
        order: (N,) int64, a permutation; what stands first in it is first.

    Returns:
        (N,) int64.
    """
    weights = torch.linspace(1.0, 2.0, rows.shape[1], dtype=torch.float32, device=rows.device).sin_()
    keys, at = (rows.float() * weights).sum(dim=1)[order].sort(stable=True)
    order = order[at]
    near = (keys[1:] == keys[:-1]).nonzero().squeeze(1)
    near = near[(rows[order[near]] == rows[order[near + 1]]).all(dim=1)]
    starts = torch.arange(len(rows), device=rows.device)
    starts[near + 1] = 0
    return torch.empty_like(order).index_copy_(0, order, order[starts.cummax(dim=0).values])


def summed_id_probabilities(first: GroupedLogits, second: GroupedLogits, weight: float) -> Tensor:
    """(B, C) ``p_first + weight * p_second``, each a softmax over all C + M rows, ungrouped.

    They are given up to a factor per image, so that those of an image that no ID label fits do not all
    become 0.
    """
    shifts = [sums.max_id - torch.logaddexp(sums.lse_id, sums.lse_neg) for sums in (first, second)]
    largest = torch.maximum(*shifts)
    one, two = ((shift - largest).exp_()[:, None] for shift in shifts)
    return (first.exp_id * one).addcmul_(second.exp_id, two * weight)


def id_entropy(exp_id: Tensor, sum_id: Tensor) -> Tensor:
    """(N,) entropy of the softmax over the ID logits alone.

    Args:
        exp_id: (N, C), used up.
        sum_id: (N,).
    """
    return _entropy([exp_id[:, None]], exp_id, sum_id.reciprocal()[:, None])


def negative_entropy(exp_neg: Tensor, max_parts: Tensor, sum_parts: Tensor, groups: int) -> Tensor:
    """(N,) entropy of the softmax over the negative logits alone.

    Args:
        exp_neg: (N, M), used up.
        max_parts, sum_parts: (N, P), as in :class:`GroupedLogits`.
        groups: G.
    """
    share = (max_parts - max_parts.amax(dim=1, keepdim=True)).clamp_min_(_FLOOR).exp_()
    share = share / (share * sum_parts).sum(dim=1, keepdim=True)
    return _entropy(_parts(exp_neg, groups), exp_neg, share)


def _entropy(parts: list[Tensor], p: Tensor, factors: Tensor) -> Tensor:
    """(N,) ``-sum p log(p + 1e-8)`` of p, whose parts are multiplied by (N, P) factors first.

    Computed in at least float32, where 1e-8 is not lost and a vanishing p gives 0 and not NaN.
    """
    for part, factor in zip(parts, factors.split([part.shape[1] for part in parts], dim=1)):
        part.clamp_min_(_LEAST_SHARE / factor[:, :, None]).mul_(factor[:, :, None])
    return -(p + 1e-8).log_().mul_(p).sum(dim=1)
