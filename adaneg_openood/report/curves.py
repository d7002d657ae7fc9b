"""The numbers behind the plots."""

from __future__ import annotations

import numpy as np

from adaneg_openood.evaluation.metrics import RankedScores

_POINTS = 400  # of a drawn ROC curve


def threshold_fpr95(conf: np.ndarray, is_ood: np.ndarray) -> tuple[float, float]:
    """The confidence at and below which 95 % of OOD images lie, and the share of ID images there.

    The number is that of :func:`~adaneg_openood.evaluation.ood_metrics`, ties included.

    Args:
        conf: (N,).
        is_ood: (N,) bool, both kinds present.

    Returns:
        Threshold, and FPR95 with OOD as the positive class in percent.

    Example:
        >>> threshold_fpr95(np.array([0.1, 0.2, 0.3, 0.9]), np.array([True, True, False, False]))
        (0.2, 0.0)
    """
    fpr, threshold = RankedScores(conf, is_ood).counts().fpr95()
    return threshold, 100.0 * fpr


def roc(conf: np.ndarray, is_ood: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ROC curve with OOD as the positive class, thinned to what can be seen.

    Returns:
        (P,) share of ID images flagged, and (P,) share of OOD images detected, in percent.
    """
    from sklearn.metrics import roc_curve

    fpr, tpr, _ = roc_curve(is_ood, -conf.astype(np.float64))
    if len(fpr) > _POINTS:
        # even steps along the curve, both ends kept
        length = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(fpr)) + np.abs(np.diff(tpr)))])
        chosen = np.unique(np.searchsorted(length, np.linspace(0, length[-1], _POINTS)))
        fpr, tpr = fpr[chosen], tpr[chosen]
    return 100.0 * fpr, 100.0 * tpr


def fpr_over_stream(
    conf: np.ndarray, is_ood: np.ndarray, order: np.ndarray, batch_size: int, points: int = 40
) -> dict[int, float]:
    """FPR95 (OOD positive) over the images seen so far, after some of the batches.

    Both kinds must have been seen; the last point is FPR95 of the whole stream.

    Args:
        conf: (N,) confidences.
        is_ood: (N,).
        order: (N,) the stream.
        batch_size: images per batch.
        points: the most there are.

    Returns:
        Images seen -> FPR95 in percent.
    """
    n = len(order)
    ends = np.minimum(np.arange(1, -(-n // batch_size) + 1) * batch_size, n)
    if len(ends) > points:
        ends = ends[np.unique(np.linspace(0, len(ends) - 1, points).round().astype(int))]
    streamed, kinds = conf[order], is_ood[order]
    return {
        end: threshold_fpr95(streamed[:end], kinds[:end])[1]
        for end in ends.tolist()
        if kinds[:end].any() and not kinds[:end].all()
    }
