"""The loop over one stream: batches in order, detectors side by side, scores back in their places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, NamedTuple

import numpy as np
import torch
from torch import Tensor

from adaneg_openood.detectors import AdaNeg
from adaneg_openood.evaluation.streams import Detector

_PARTS = ("s_neglabel", "s_adaptive")


class StreamScores(NamedTuple):
    """Scores of N images in their original positions, not in stream order.

    Attributes:
        pred: (N,) int64, predicted ID class.
        conf: (N,) float32 (float64 from a detector that returns it), larger = more ID.
        s_neglabel, s_adaptive: (N,) float32, or None.
        filled: (batches, 2) int32, ID and negative rows of the bank that hold an image after each
            batch, or None.
    """

    pred: np.ndarray
    conf: np.ndarray
    s_neglabel: np.ndarray | None = None
    s_adaptive: np.ndarray | None = None
    filled: np.ndarray | None = None


def run_stream(
    detector: Detector,
    features: Tensor,
    order: np.ndarray,
    batch_size: int,
    progress: Callable[[int], object] | None = None,
) -> StreamScores:
    """:func:`score_stream` of one detector."""
    return score_stream([detector], features, order, batch_size, progress=progress)[0]


@torch.no_grad()
def score_stream(
    detectors: Sequence[Detector],
    features: Tensor,
    order: np.ndarray,
    batch_size: int,
    *,
    progress: Callable[[int], object] | None = None,
    keep_parts: bool = False,
    watch_bank: bool = False,
) -> list[StreamScores]:
    """Reset detectors and score a stream in batches; each gives what it gives alone.

    Args:
        detectors: score (B, D) features; reset at the start, and left with the stream's state. AdaNegs
            that compare a batch with the same text in the same groups share that comparison.
        features: (N, D), concat(OOD, ID), on any device the detectors accept.
        order: (N,) integers, a permutation of 0..N-1, see
            :func:`~adaneg_openood.evaluation.stream_order`.
        batch_size: images per batch; the last batch holds what is left.
        progress: called after every batch of a detector with its number of images.
        keep_parts: keep ``s_neglabel`` and ``s_adaptive`` where a detector gives them.
        watch_bank: count the filled rows after each batch.

    Returns:
        Scores of each detector in the original positions: entry i belongs to ``features[i]``.

    Raises:
        ValueError: ``order`` is no permutation of the rows, ``batch_size`` is below 1, or a detector
            returns something other than one pred and one conf per image.

    Source: section "evaluation protocol" of AdaNeg (Zhang and Zhang, NeurIPS 2024).
    """
    index = _checked_order(order, len(features))
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")
    names = ("pred", "conf", *(_PARTS if keep_parts else ()))
    kept: list[list[Any]] = [[] for _ in detectors]
    filled: list[list[Tensor]] = [[] for _ in detectors]
    together = _SideBySide(detectors)
    for detector in detectors:
        detector.reset()
    for rows in index.to(features.device).split(batch_size) if len(index) else ():
        for place, scores in enumerate(together.score(features[rows])):
            # Kept on the device: a copy to the host per batch would wait for each batch.
            kept[place].append(_checked(detectors[place], scores, len(rows), names))
            if watch_bank and getattr(detectors[place], "bank", None) is not None:
                filled[place].append(_filled(detectors[place]))
            if progress is not None:
                progress(len(rows))
    found = []
    for parts, rows_filled in zip(kept, filled):
        arrays = {name: _placed([part[name] for part in parts], index) for name in names}
        if rows_filled:
            arrays["filled"] = torch.stack(rows_filled).cpu().numpy().astype(np.int32)
        if not parts:
            arrays.update(pred=np.empty(0, dtype=np.int64), conf=np.empty(0, dtype=np.float32))
        found.append(StreamScores(**arrays))  # type: ignore[arg-type]
    return found


def _checked_order(order: np.ndarray, n: int) -> Tensor:
    order = np.asarray(order)
    if order.dtype.kind not in "iu" or order.ndim != 1:
        raise ValueError(f"order must be 1-d integers, got {order.dtype} of shape {order.shape}")
    if not np.array_equal(np.sort(order), np.arange(n)):
        raise ValueError(f"order must hold every index from 0 to {n - 1} once, for {n} rows")
    return torch.from_numpy(order.astype(np.int64))


def _checked(
    detector: Detector, scores: Any, n_rows: int, names: Sequence[str]
) -> dict[str, Tensor | None]:
    for name in ("pred", "conf"):
        value = getattr(scores, name)
        if tuple(value.shape) != (n_rows,):
            raise ValueError(
                f"{type(detector).__name__}.score must return {name} of shape ({n_rows},) "
                f"for {n_rows} images, got {tuple(value.shape)}"
            )
    return {name: getattr(scores, name, None) for name in names}


def _placed(parts: Sequence[Tensor | None], index: Tensor) -> np.ndarray | None:
    """Values of all batches in the images' original positions, on the host."""
    values = [part for part in parts if part is not None]
    if not values:
        return None
    streamed = torch.cat(values)
    if not streamed.is_floating_point():
        streamed = streamed.long()
    elif streamed.dtype != torch.float64:
        streamed = streamed.float()  # numpy has no bfloat16
    streamed = streamed.cpu()
    placed = torch.empty_like(streamed)
    placed[index] = streamed
    return np.asarray(placed.numpy())


def _filled(detector: Any) -> Tensor:
    """(2,) ID and negative rows that hold an image, on the detector's device."""
    held = detector.bank.counts > 0
    return torch.stack([held[: detector.n_id].sum(), held[detector.n_id :].sum()])


class _SideBySide:
    """Scores of several detectors batch by batch; AdaNegs that compare alike share the comparison."""

    def __init__(self, detectors: Sequence[Detector]) -> None:
        self.detectors = detectors
        self.firsts: list[int | None] = []  # the first detector that compares as this one does
        for detector in detectors:
            self.firsts.append(
                next(
                    (
                        place
                        for place, other in enumerate(detectors)
                        if isinstance(detector, AdaNeg)
                        and isinstance(other, AdaNeg)
                        and _compare_alike(detector, other)
                    ),
                    None,
                )
            )

    def score(self, features: Tensor) -> list[Any]:
        """Each detector's scores of a batch."""
        compared: dict[int, Any] = {}
        found: list[Any] = []
        for detector, first in zip(self.detectors, self.firsts):
            if first is None or not isinstance(detector, AdaNeg) or self.firsts.count(first) == 1:
                found.append(detector.score(features))
                continue
            if first not in compared:
                compared[first] = detector.compare_text(features)
            found.append(detector.score(features, compared[first]))
        return found


def _compare_alike(one: AdaNeg, other: AdaNeg) -> bool:
    if one is other:
        return True
    settings = ("groups", "permute", "n_id", "logit_scale")
    if any(getattr(one, name) != getattr(other, name) for name in settings):
        return False
    mine, theirs = one.text_features, other.text_features
    if mine.dtype != theirs.dtype or mine.device != theirs.device or mine.shape != theirs.shape:
        return False
    return mine.data_ptr() == theirs.data_ptr() or torch.equal(mine, theirs)
