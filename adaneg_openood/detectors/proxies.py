"""Adaptive proxies: cosines of images with what a bank makes of the label rows.

Only rows that hold images differ from their text feature, so both functions return cosines for the
bank's active rows alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adaneg_openood.detectors.bank import FeatureBank

LARGEST_PLAIN_BETA = 20.0  # squares of exp(-20) to exp(20) are far from both ends of float32
_CHUNK_ELEMENTS = 1 << 24  # bound on B x rows x slots elements alive at a time (64 MiB in float32)


def task_adaptive_cosines(features: Tensor, bank: FeatureBank) -> Tensor:
    """(A, B) cosines with ``normalize(text + sum of the row's images)`` (AdaNeg, eq. 6).

    Args:
        features: (B, D) unit length.
        bank: its A active rows, in the order of ``bank.active_rows``.
    """
    # the divisor goes to the small side, so no normalised copy of the sums is made
    lengths = bank.lengths[: bank.n_active, None].clamp_min(1e-12)
    return (bank.sums[: bank.n_active] @ features.T).to(lengths.dtype).div_(lengths)


def similarity_weights(cosines: Tensor, beta: float, empty: Tensor | None = None) -> Tensor:
    """``exp(beta cosine)`` up to a factor per row and image, which cancels in a proxy's direction.

    Args:
        cosines: (A, L, B) cosines of B images with L members of A rows.
        beta: sharpness, at least 0.
        empty: (A, L) bool, slots that are no members; their weights mean nothing.
    """
    if beta <= LARGEST_PLAIN_BETA:
        return (cosines * beta).exp_()
    members = cosines if empty is None else cosines.masked_fill(empty[:, :, None], -1.0)
    return (cosines - members.amax(dim=1, keepdim=True)).mul_(beta).exp_()


def sample_adaptive_cosines(
    features: Tensor,
    text: Tensor,
    text_cosines: Tensor,
    bank: FeatureBank,
    beta: float,
) -> Tensor:
    """(A, B) cosines with proxies weighted by similarity to the image itself (AdaNeg, eq. 8).

    ``proxy_k(v) = normalize(sum_l w_l m_l)``, ``w_l = exp(-beta (1 - v.m_l))``, over the row's text
    feature and images. As ``v.proxy = sum_l w_l (v.m_l) / sqrt(w' Gram w)`` with the row's own Gram
    matrix, the proxies themselves (B x K x D) are never formed.

    Args:
        features: (B, D) unit length.
        text: (A, D) text features of the active rows.
        text_cosines: (A, B) their cosines with the images.
        bank: its A active rows, in the order of ``bank.active_rows``.
        beta: sharpness, at least 0.
    """
    result = torch.empty_like(text_cosines)
    slots = bank.slot_of_row[bank.rows[: bank.n_cached]]
    by_slot = torch.argsort(slots, stable=True)
    counts = torch.bincount(slots, minlength=bank.n_active)
    starts = counts.cumsum(0) - counts
    # Rows of equal fill form dense blocks: no padding, at most `capacity` rounds.
    for count in counts.unique().tolist():
        members = (counts == count).nonzero().squeeze(1)
        span = torch.arange(count, device=slots.device)
        size = max(1, _CHUNK_ELEMENTS // max(1, max(len(features), count) * (count + 1)))
        for chunk in members.split(size):
            places = by_slot[starts[chunk, None] + span]
            images = bank.features.index_select(0, places.flatten()).unflatten(0, places.shape)
            memory = torch.cat([text[chunk, None], images], dim=1)
            sims = text_cosines.new_empty(len(chunk), count + 1, len(features))
            sims[:, 0] = text_cosines[chunk]
            sims[:, 1:] = (images.flatten(0, 1) @ features.T).unflatten(0, images.shape[:2])
            weights = similarity_weights(sims, beta)
            gram = (memory @ memory.mT).to(sims.dtype)
            square = torch.bmm(gram, weights).mul_(weights).sum(dim=1)
            cosines = sims.mul_(weights).sum(dim=1)
            result[chunk] = cosines.div_(square.clamp_min_(1e-24).sqrt_())
    return result
