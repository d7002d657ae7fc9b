"""What one method said of one stream."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import IO, Any

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
        return {name: getattr(self, name) for name in _ARRAYS if getattr(self, name) is not None}


_ARRAYS = tuple(one.name for one in fields(StreamResult) if "ndarray" in str(one.type))
_PLAIN = tuple(one.name for one in fields(StreamResult) if one.name not in _ARRAYS)


def write_result(file: IO[bytes], result: StreamResult, key: str = "") -> None:
    """Write a result as ``.npz``, with a key that says what it depends on."""
    plain = {name: getattr(result, name) for name in _PLAIN}
    about = json.dumps({"key": key, **plain}, ensure_ascii=False, allow_nan=False)
    arrays = {**result.arrays(), "pred": result.pred.astype(np.int32)}
    np.savez_compressed(file, about=np.array(about), **arrays)  # type: ignore[arg-type]


def read_result(file: str | os.PathLike[str] | IO[bytes]) -> tuple[StreamResult, str]:
    """What :func:`write_result` wrote, and its key; arrays and values are not looked at yet.

    Raises:
        Exception: of a dozen kinds, which zipfile, zlib, json and numpy have for damaged files.
    """
    with np.load(file, allow_pickle=False) as loaded:
        found = {name: loaded[name] for name in loaded.files}
    about = json.loads(str(found.pop("about")))
    key = str(about.pop("key"))
    if found["pred"].dtype.kind == "i":
        found["pred"] = found["pred"].astype(np.int64)
    odd = sorted({*found} - {*_ARRAYS}) + sorted({*about} ^ {*_PLAIN})
    if odd:
        raise ValueError(f"unknown or missing: {', '.join(odd)}")
    return StreamResult(**about, **found), key
