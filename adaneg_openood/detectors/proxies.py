"""Adaptive proxies: cosines of images with what a bank makes of the label rows.

Only rows that hold images differ from their text feature, so both functions return cosines for the
bank's active rows alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adaneg_openood.detectors.bank import FeatureBank

LARGEST_PLAIN_BETA = 20.0  # squares of exp(-20) to exp(20) are far from both ends of float32
LEAST_PLAIN_BETA = 0.1
# B x rows x slots elements alive at a time: 1 MiB in float32, of which a step's three stay in a cache
_CHUNK_ELEMENTS = 1 << 18


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
    # nothing far below a row's largest weight counts, and tiny numbers are slow on CPUs
    return (cosines - members.amax(dim=1, keepdim=True)).mul_(beta).clamp_min_(-80.0).exp_()


def sample_adaptive_cosines(
    features: Tensor, text_cosines: Tensor, grams: Tensor, bank: FeatureBank, beta: float
) -> tuple[Tensor, Tensor]:
    """Cosines with proxies weighted by similarity to the image itself (AdaNeg, eq. 8).

    ``proxy_k(v) = normalize(sum_l w_l m_l)``, ``w_l = exp(-beta (1 - v.m_l))``, over the row's text
    feature and images. As ``v.proxy = sum_l w_l (v.m_l) / sqrt(w' Gram w)`` with the row's own Gram
    matrix, the proxies themselves (B x K x D) are never formed.

    Args:
        features: (B, D) unit length.
        text_cosines: (B, A) their cosines with the text features of the active rows.
        grams: (A, L, L) of the bank's, see :meth:`FeatureBank.known_grams`.
        bank: its A active rows.
        beta: sharpness, at least 0.

    Returns:
        (A,) int64 an order of ``bank.active_rows``, and the (A, B) cosines in it.
    """
    # a sharpness that is neither 0 nor large comes out of the product itself, and saves passes
    plain = LEAST_PLAIN_BETA <= beta <= LARGEST_PLAIN_BETA
    factor = beta if plain else 1.0
    n, n_active, n_images = bank.n_cached, bank.n_active, len(features)
    # what images are compared with: every cached image, then every active row's text
    products = text_cosines.new_empty(n + n_active, n_images)
    images = (features * factor).T
    if images.dtype == products.dtype:
        torch.mm(bank.features[:n], images, out=products[:n])
    else:  # half precision multiplies in it
        products[:n] = bank.features[:n] @ images
    torch.mul(text_cosines.T, factor, out=products[n:])
    slots = bank.slot_of_row[bank.rows[:n]]
    by_slot = torch.argsort(slots, stable=True)
    counts = torch.bincount(slots, minlength=n_active)
    starts = counts.cumsum(0) - counts
    # Rows of equal fill form dense blocks: no padding, at most `capacity` rounds.
    order = torch.argsort(counts, stable=True)
    result, done = text_cosines.new_empty(n_active, n_images), 0
    for count, n_rows in enumerate(torch.bincount(counts).tolist()):
        span = torch.arange(count, device=slots.device)
        size = max(1, _CHUNK_ELEMENTS // (max(1, n_images) * (count + 1)))
        for rows in order[done : done + n_rows].split(size) if n_rows else ():
            members = torch.cat([rows[:, None] + n, by_slot[starts[rows, None] + span]], dim=1)
            y = products.index_select(0, members.flatten()).unflatten(0, members.shape)
            weights = y.exp() if plain else similarity_weights(y, beta)
            square = torch.bmm(grams[rows, : count + 1, : count + 1].to(y.dtype), weights)
            square = square.mul_(weights).sum(dim=1).clamp_min_(1e-24).sqrt_().mul_(factor)
            into = result[done : done + len(rows)]
            torch.div(y.mul_(weights).sum(dim=1), square, out=into)
            done += len(rows)
    return order, result
