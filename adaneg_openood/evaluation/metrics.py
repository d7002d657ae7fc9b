"""OOD detection metrics in OpenOOD's conventions."""

from __future__ import annotations

from typing import Any, Union

import numpy as np
import torch
from torch import Tensor

Array = Union[np.ndarray, Tensor]

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
_NAMED = 8  # bad rows an error lists


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
    scores, labels, preds = _checked(conf, label, pred)
    is_ood = labels == -1
    fpr_out, auroc = _fpr_and_auroc(is_ood, -scores)
    fpr_in, _ = _fpr_and_auroc(~is_ood, scores)
    values = (
        fpr_out,
        fpr_in,
        auroc,
        _aupr(~is_ood, scores),
        _aupr(is_ood, -scores),
        float(np.mean(preds[~is_ood] == labels[~is_ood])),
    )
    return {name: 100.0 * value for name, value in zip(METRICS, values)}


def _fpr_and_auroc(positive: np.ndarray, score: np.ndarray) -> tuple[float, float]:
    from sklearn import metrics  # here, because it is slow to import

    # roc_curve's default leaves out collinear points. That can move the first point at or past the
    # recall to a larger FPR, and OpenOOD's numbers include it, so the default stays.
    fpr, tpr, _ = metrics.roc_curve(positive, score)
    return float(fpr[np.argmax(tpr >= _RECALL)]), float(metrics.auc(fpr, tpr))


def _aupr(positive: np.ndarray, score: np.ndarray) -> float:
    from sklearn import metrics

    precision, recall, _ = metrics.precision_recall_curve(positive, score)
    return float(metrics.auc(recall, precision))


def _checked(conf: Any, label: Any, pred: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    arrays = {"conf": _numpy(conf), "label": _numpy(label), "pred": _numpy(pred)}
    for name, array in arrays.items():
        if array.ndim != 1:
            raise ValueError(f"{name} must be 1-d, (N,), got shape {array.shape}")
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(
            "conf, label and pred must have one entry per image, got lengths "
            + ", ".join(f"{name}: {n}" for name, n in lengths.items())
        )
    scores, labels, preds = arrays["conf"], arrays["label"], arrays["pred"]
    if scores.dtype.kind not in "fiub":
        raise ValueError(f"conf must be real numbers, got dtype {scores.dtype}")
    for name in ("label", "pred"):
        if len(scores) and arrays[name].dtype.kind not in "iu":
            raise ValueError(f"{name} must be integers, got dtype {arrays[name].dtype}")
    scores = scores.astype(np.float64)
    _refuse(~np.isfinite(scores), "conf is NaN or infinite")
    _refuse(labels < -1, "label must be a class >= 0 or -1 for OOD, and is below -1")
    if not np.any(labels != -1):
        raise ValueError(f"no ID image: all {len(labels)} labels are -1")
    if not np.any(labels == -1):
        raise ValueError(f"no OOD image: none of the {len(labels)} labels is -1")
    return scores, labels, preds


def _numpy(values: Any) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        # numpy has no bfloat16
        values = values.double() if values.dtype == torch.bfloat16 else values
        return np.asarray(values.numpy())
    return np.asarray(values)


def _refuse(bad: np.ndarray, what: str) -> None:
    rows = np.flatnonzero(bad)
    if len(rows):
        more = ", ..." if len(rows) > _NAMED else ""
        listed = ", ".join(str(row) for row in rows[:_NAMED])
        raise ValueError(f"{what} in {len(rows)} row(s): {listed}{more}")
