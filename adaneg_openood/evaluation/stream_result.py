"""What one method said of one stream."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from adaneg_openood.evaluation.metrics import ood_metrics


@dataclass(frozen=True, eq=False)
class StreamResult:
    """Scores of N images in their original positions, concat(OOD, ID), whatever the stream's order.

    Attributes:
        method: name of the detector.
        split: ``"near"`` or ``"far"``.
        dataset: name of the OOD set.
        seed: of the stream. Where a method does not depend on it, the first seed stands for all.
        label: (N,) int64, the ID class, or -1 for an OOD image; OOD images come first.
        conf: (N,) float32 (float64 from a detector that returns it), larger = more ID.
        pred: (N,) int64, predicted ID class.
        s_neglabel: (N,) float32, the NegLabel score; None where it is not kept or there is none.
        s_adaptive: (N,) float32, the score with adaptive proxies; None likewise.
        counts: (C + M,) int32, images in each row of the bank at the end; None without a bank.
        ood_counts: (C + M,) int32, how many of them are OOD images; None where it was not watched.
        filled: (batches, 2) int32, ID and negative rows that hold an image after each batch; likewise.
        diagnosis: what the detector's ``diagnose`` says at the end, as JSON values; None without one.
    """

    method: str
    split: str
    dataset: str
    seed: int
    label: np.ndarray
    conf: np.ndarray
    pred: np.ndarray
    s_neglabel: np.ndarray | None = None
    s_adaptive: np.ndarray | None = None
    counts: np.ndarray | None = None
    ood_counts: np.ndarray | None = None
    filled: np.ndarray | None = None
    diagnosis: Mapping[str, Any] | None = None

    @property
    def n_ood(self) -> int:
        """Number of OOD images."""
        return int((self.label == -1).sum())

    @property
    def n_id(self) -> int:
        """Number of ID images."""
        return len(self.label) - self.n_ood

    @cached_property
    def metrics(self) -> dict[str, float]:
        """:func:`~adaneg_openood.evaluation.ood_metrics` of the stream, in percent."""
        return ood_metrics(self.conf, self.label, self.pred)

    def arrays(self) -> dict[str, np.ndarray]:
        """Every array that is there, by the attribute's name."""
        return {name: getattr(self, name) for name in ARRAYS if getattr(self, name) is not None}


ARRAYS = tuple(one.name for one in fields(StreamResult) if "ndarray" in str(one.type))


def packed(result: StreamResult) -> dict[str, Any]:
    """A result as JSON values, exact to the last bit, for another process."""
    arrays = {
        name: [str(array.dtype), list(array.shape), base64.b64encode(array.tobytes()).decode("ascii")]
        for name, array in result.arrays().items()
    }
    plain = {one.name: getattr(result, one.name) for one in fields(result) if one.name not in ARRAYS}
    return {**plain, "arrays": arrays}


def unpacked(value: Mapping[str, Any]) -> StreamResult:
    """The result that :func:`packed` was given."""
    plain = {name: part for name, part in value.items() if name != "arrays"}
    arrays = {
        name: np.frombuffer(base64.b64decode(text), dtype=dtype).reshape(shape).copy()
        for name, (dtype, shape, text) in value["arrays"].items()
    }
    return StreamResult(**plain, **arrays)
