"""OOD detection metrics in OpenOOD's conventions."""

from __future__ import annotations

from typing import Any, NamedTuple, Union

import numpy as np
import torch
from torch import Tensor

from adaneg_openood.io.names import listed

Array = Union[np.ndarray, Tensor]

FEW_IMAGES = 20  # of which 5 % are one
METRICS = ("FPR@95", "FPR@95 (ID positive)", "AUROC", "AUPR_IN", "AUPR_OUT", "ACC")

CONVENTIONS = {
    "FPR@95": "OOD is the positive class (OpenOOD): share of ID images flagged as OOD at the "
    "threshold that detects at least 95 % of the OOD images",
    "FPR@95 (ID positive)": "ID is the positive class (MCM, NegLabel): share of OOD images "
    "accepted as ID at the threshold that keeps at least 95 % of the ID images",
    "AUROC": "area under the ROC curve; the same with either class as positive",
    "AUPR_IN": "area under the precision-recall curve (trapezoids), ID positive",
    "AUPR_OUT": "area under the precision-recall curve (trapezoids), OOD positive",
    "ACC": "share of ID images whose predicted class is right, no image rejected",
}

_RECALL = 0.95


def ood_metrics(conf: Array, label: Array, pred: Array) -> dict[str, float]:
    """Metrics of one ID and OOD mixture, in percent; equal to OpenOOD's ``compute_all_metrics``.

    Tied scores are one threshold, so they are accepted or rejected together; if all scores are
    equal, AUROC is 50 and both FPR@95 are 100.

    Args:
        conf: (N,) confidences, larger = more ID; any real dtype, computed in float64.
        label: (N,) integers, the ID class (>= 0) or -1 for an OOD image.
        pred: (N,) integers, predicted ID class; not read where ``label`` is -1.

    Returns:
        ``FPR@95`` (OOD positive), ``FPR@95 (ID positive)``, ``AUROC``, ``AUPR_IN``, ``AUPR_OUT``,
        ``ACC``, in this order; :data:`CONVENTIONS` spells them out.

    Raises:
        ValueError: inputs not 1-d or of different lengths, conf not finite, labels that are not
            integers or below -1, no ID image, or no OOD image.

    Source: OpenOOD v1.5 (Zhang et al., 2023), ``openood/evaluators/metrics.py``; the ID-positive
    FPR as in MCM (Ming et al., NeurIPS 2022).

    Example:
        >>> m = ood_metrics(np.array([0.9, 0.1]), np.array([3, -1]), np.array([3, 0]))
        >>> m["AUROC"], m["FPR@95"], m["ACC"]
        (100.0, 0.0, 100.0)
    """
    from sklearn.metrics import roc_auc_score

    scores, labels, preds = _checked(conf, label, pred)
    is_ood = labels == -1
    counts = RankedScores(scores, is_ood).counts()
    values = (
        counts.fpr95()[0],
        counts.fpr95(id_positive=True)[0],
        float(roc_auc_score(is_ood, -scores)),
        _aupr(~is_ood, scores),
        _aupr(is_ood, -scores),
        float(np.mean(preds[~is_ood] == labels[~is_ood])),
    )
    return {name: 100.0 * value for name, value in zip(METRICS, values)}


class ScoreCounts(NamedTuple):
    """How many images have each score: all that FPR95 and AUROC depend on.

    Attributes:
        values: (K,) distinct scores, ascending; tied images are one threshold.
        n_id: (K,) ID images at each.
        n_ood: (K,) OOD images at each.
    """

    values: np.ndarray
    n_id: np.ndarray
    n_ood: np.ndarray

    def fpr95(self, *, id_positive: bool = False) -> tuple[float, float]:
        """The only FPR95 of this package, in [0, 1], and the confidence of its threshold.

        Args:
            id_positive: ID is the positive class (MCM, NegLabel), not OOD (OpenOOD).
        """
        values, positive, negative = self.values, self.n_ood, self.n_id
        if id_positive:
            values, positive, negative = (side[::-1] for side in (values, negative, positive))
        tps, fps = np.cumsum(positive), np.cumsum(negative)
        # scikit-learn's roc_curve leaves out points on straight pieces of the curve. That can move the
        # first point at or past the recall to a larger FPR, and OpenOOD's numbers include it.
        corner = np.ones(len(tps), dtype=bool)
        corner[1:-1] = (np.diff(fps, 2) != 0) | (np.diff(tps, 2) != 0)
        kept = np.flatnonzero(corner)
        index = kept[np.argmax(tps[kept] / tps[-1] >= _RECALL)]
        return float(fps[index] / fps[-1]), float(values[index])

    def auroc(self) -> float:
        """Share of (ID, OOD) pairs in which the ID image scores higher, ties counting half."""
        below = np.cumsum(self.n_id) - self.n_id
        wrong = float((self.n_ood * (below + 0.5 * self.n_id)).sum())
        return 1.0 - wrong / (float(self.n_id.sum()) * float(self.n_ood.sum()))


class RankedScores:
    """Scores sorted once, so that counting them again with other weights costs a pass and no sort.

    Args:
        conf: (N,) finite, larger = more ID.
        is_ood: (N,) bool.
    """

    def __init__(self, conf: np.ndarray, is_ood: np.ndarray) -> None:
        self._values, places = np.unique(np.asarray(conf, dtype=np.float64), return_inverse=True)
        sides = np.flatnonzero(~np.asarray(is_ood)), np.flatnonzero(is_ood)
        self._n, self._sides = len(places), [(rows, places[rows]) for rows in sides]

    def counts(self, weight: np.ndarray | None = None) -> ScoreCounts:
        """The counts, without scores that no image has.

        Args:
            weight: (N,) integers, how often each image counts; None counts each once.
        """
        drawn = np.ones(self._n) if weight is None else weight
        n_id, n_ood = (
            np.bincount(places, drawn[rows], len(self._values)) for rows, places in self._sides
        )
        met = (n_ood + n_id) > 0
        return ScoreCounts(self._values[met], n_id[met], n_ood[met])


def _aupr(positive: np.ndarray, score: np.ndarray) -> float:
    from sklearn import metrics  # here, because it is slow to import

    precision, recall, _ = metrics.precision_recall_curve(positive, score)
    return float(metrics.auc(recall, precision))


def _checked(conf: Any, label: Any, pred: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    arrays = {"conf": as_numpy(conf), "label": as_numpy(label), "pred": as_numpy(pred)}
    for name, array in arrays.items():
        if array.ndim != 1:
            raise ValueError(f"{name} must be 1-d, (N,), got shape {array.shape}")
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        told = ", ".join(f"{name}: {n}" for name, n in lengths.items())
        raise ValueError(f"conf, label and pred must have one entry per image, got lengths {told}")
    scores, labels, preds = arrays["conf"], arrays["label"], arrays["pred"]
    if scores.dtype.kind not in "fiub":
        raise ValueError(f"conf must be real numbers, got dtype {scores.dtype}")
    for name in ("label", "pred"):
        if len(scores) and arrays[name].dtype.kind not in "iu":
            raise ValueError(f"{name} must be integers, got dtype {arrays[name].dtype}")
    scores = scores.astype(np.float64)
    _refuse(~np.isfinite(scores), "conf is NaN or infinite")
    _refuse(labels < -1, "label must be a class >= 0 or -1 for OOD, and is below -1")
    if not (labels != -1).any():
        raise ValueError(f"no ID image: all {len(labels)} labels are -1")
    if not (labels == -1).any():
        raise ValueError(f"no OOD image: none of the {len(labels)} labels is -1")
    return scores, labels, preds


def as_numpy(values: Any) -> np.ndarray:
    """Scores or labels as numpy has them: tensors of any device and dtype, and whatever numpy takes."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        # numpy has no bfloat16
        values = values.double() if values.dtype == torch.bfloat16 else values
        return np.asarray(values.numpy())
    return np.asarray(values)


def _refuse(bad: np.ndarray, what: str) -> None:
    rows = np.flatnonzero(bad)
    if len(rows):
        raise ValueError(f"{what} in {len(rows)} row(s): {listed(rows)}")
