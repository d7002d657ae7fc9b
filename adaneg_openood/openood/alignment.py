"""Scores of many streams on one scale: pure functions on arrays.

OpenOOD's evaluator holds one vector of ID scores, whereas under the mixed protocol every OOD set has
ID scores of its own. AUROC, FPR and AUPR depend only on how ID and OOD scores interleave, so an OOD
set's scores can be moved to a reference scale on which they interleave with the reference ID scores
just as they did with their own stream's.
"""

from __future__ import annotations

import numpy as np

# Room between neighbouring reference scores: any double near 1 has 2**30 others within this distance.
_GAP = 2.0**-20


def reference_scale(scores: np.ndarray) -> np.ndarray:
    """Scores in the same order, ties broken by position, with room between any two.

    Args:
        scores: (N,) finite, larger = more ID.

    Returns:
        (N,) float64, all different; close to ``scores`` where these are not crowded.
    """
    scores = np.asarray(scores, dtype=np.float64)
    order = np.argsort(scores, kind="stable")
    # r[k] = max(s[k], r[k-1] + gap): a running maximum once k gaps are taken off
    steps = np.arange(len(scores)) * _GAP
    spread = np.maximum.accumulate(scores[order] - steps) + steps if len(scores) else scores
    out = np.empty_like(spread)
    out[order] = spread
    return out


def align(stream_id: np.ndarray, stream_ood: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Move OOD scores from their stream's scale to the reference's.

    With the ID scores of both scales sorted, an OOD score that lies strictly between the k-th and the
    k+1-th ID score of its stream comes to lie strictly between the k-th and the k+1-th of the reference.
    OOD scores keep their order and ties among themselves. So every comparison of an OOD score with an ID
    score is kept, and with it every metric, provided the stream's ID scores are tied only where the
    reference's are. An OOD score that ties with several ID scores which the reference tells apart goes
    to their middle: that keeps the AUROC, but not the other metrics' last digits (no value could).

    Args:
        stream_id: (N,) ID scores of this OOD set's stream, finite.
        stream_ood: (M,) OOD scores of the same stream, finite.
        reference: (N,) ID scores of the reference scale, see :func:`reference_scale`.

    Returns:
        (M,) float64.

    Raises:
        ValueError: lengths differ, no ID score, values that are not finite, or a reference without
            room between two scores that needs it.
    """
    own = np.sort(np.asarray(stream_id, dtype=np.float64))
    ref = np.sort(np.asarray(reference, dtype=np.float64))
    ood = np.asarray(stream_ood, dtype=np.float64)
    if own.shape != ref.shape or own.ndim != 1 or ood.ndim != 1:
        raise ValueError(
            "stream_id and reference must be (N,) and stream_ood (M,), got "
            f"{own.shape}, {ref.shape} and {ood.shape}"
        )
    if not len(own):
        raise ValueError("there is no ID score to align to")
    for name, values in (("stream_id", own), ("stream_ood", ood), ("reference", ref)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} holds values that are NaN or infinite")

    values, inverse = np.unique(ood, return_inverse=True)
    first = np.searchsorted(own, values, side="left")
    past = np.searchsorted(own, values, side="right")
    moved = np.where(past > first, _middle(ref, first, past), _between(ref, first))
    # strictly increasing means: OOD ties kept, none added
    if np.any(np.diff(moved) <= 0):
        raise ValueError("the reference has no room between two ID scores; see reference_scale")
    return np.asarray(moved[inverse.reshape(-1)], dtype=np.float64)


def _middle(ref: np.ndarray, first: np.ndarray, past: np.ndarray) -> np.ndarray:
    """The middle of ref[first:past]; half way between two if it holds an even number."""
    last = len(ref) - 1
    low = ref[np.clip((first + past - 1) // 2, 0, last)]
    high = ref[np.clip((first + past) // 2, 0, last)]
    return low + (high - low) / 2


def _between(ref: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """Values spread evenly over the gaps they belong to; gap k lies below ref[k]."""
    # the open ends are one unit wide; ref[-1] and ref[n] are never read past that
    edges = np.concatenate([[ref[0] - 1.0], ref, [ref[-1] + 1.0]])
    _, start, count = np.unique(gap, return_index=True, return_counts=True)
    place = np.arange(len(gap)) - np.repeat(start, count) + 1
    share = place / (np.repeat(count, count) + 1)
    low, high = edges[gap], edges[gap + 1]
    return np.asarray(low + (high - low) * share)


def extend_scale(scores: np.ndarray, known: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Places on a reference scale for more ID scores, between those that are on it already.

    Args:
        scores: (N,) finite, to be placed.
        known: (K,) finite scores that are on the scale, comparable with ``scores``.
        reference: (K,) where they are on it, in the same order and all different.

    Returns:
        (N,) float64, all different from each other and from ``reference``.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if not len(known):
        return reference_scale(scores)
    order = np.argsort(scores, kind="stable")
    gap = np.searchsorted(np.sort(np.asarray(known, dtype=np.float64)), scores[order], side="right")
    placed = np.empty_like(scores)
    placed[order] = _between(np.sort(np.asarray(reference, dtype=np.float64)), gap)
    return placed
