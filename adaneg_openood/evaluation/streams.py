"""The evaluation protocol: in which order a detector meets the images, and running it over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

ORDERS = {
    "mixed": "ID and OOD images shuffled into one stream per OOD set (AdaNeg's protocol)",
    "id_first": "all ID images in the given order, then the OOD images (OpenOOD's evaluator)",
}


class ScoresLike(Protocol):
    """What a detector returns for B images: pred (B,) integers, conf (B,) floats."""

    @property
    def pred(self) -> Tensor: ...

    @property
    def conf(self) -> Tensor: ...


class Detector(Protocol):
    """Anything that scores (B, D) image features and can forget what it saw."""

    def score(self, features: Tensor) -> ScoresLike: ...

    def reset(self) -> None: ...


class StreamScores(NamedTuple):
    """Scores of N images in their original positions, not in stream order.

    Attributes:
        pred: (N,) int64, predicted ID class.
        conf: (N,) float32 (float64 from a detector that returns it), larger = more ID.
    """

    pred: np.ndarray
    conf: np.ndarray


def stream_order(n_ood: int, n_id: int, seed: int, order: str = "mixed") -> np.ndarray:
    """The order in which images are scored, as indices into concat(OOD, ID).

    It depends on the arguments alone, so a dataset's stream does not change with the datasets
    evaluated before it. Global random state is neither read nor written.

    Args:
        n_ood: number of OOD images; they come first in the concatenation.
        n_id: number of ID images.
        seed: seed of the shuffle, >= 0; not used by ``"id_first"``.
        order: ``"mixed"`` or ``"id_first"``, see :data:`ORDERS`.

    Returns:
        (n_ood + n_id,) int64, a permutation.

    Raises:
        ValueError: unknown order, or a negative count or seed.

    Source: AdaNeg (Zhang and Zhang, NeurIPS 2024) for ``"mixed"``, OpenOOD v1.5 for ``"id_first"``.

    Example:
        >>> stream_order(2, 3, seed=0, order="id_first").tolist()
        [2, 3, 4, 0, 1]
    """
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(map(repr, ORDERS))}, got {order!r}")
    for name, value in (("n_ood", n_ood), ("n_id", n_id), ("seed", seed)):
        if value < 0:
            raise ValueError(f"{name} must be >= 0, got {value}")
    n = n_ood + n_id
    if order == "id_first":
        return np.concatenate([np.arange(n_ood, n, dtype=np.int64), np.arange(n_ood, dtype=np.int64)])
    return np.random.default_rng(seed).permutation(n).astype(np.int64, copy=False)


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise a ValueError unless seeds are distinct and >= 0, at least one."""
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"seeds must be distinct and >= 0, at least one, got {tuple(seeds)}")


def keeps_state(detector: Detector) -> bool:
    """Whether a detector's scores depend on the images before; one without ``info`` counts as such."""
    info = getattr(detector, "info", None)
    return bool(getattr(info, "keeps_state", True))


def one_order_is_enough(detector: Detector, order: str) -> bool:
    """Whether the seed cannot change a detector's scores: it keeps no state, or nothing is shuffled."""
    return order == "id_first" or not keeps_state(detector)


@torch.no_grad()
def run_stream(
    detector: Detector,
    features: Tensor,
    order: np.ndarray,
    batch_size: int,
    progress: Callable[[int], object] | None = None,
) -> StreamScores:
    """Reset a detector and score a stream in batches.

    Args:
        detector: scores (B, D) features; reset at the start, and left with the stream's state.
        features: (N, D), concat(OOD, ID), on any device the detector accepts.
        order: (N,) integers, a permutation of 0..N-1, see :func:`stream_order`.
        batch_size: images a batch; the last batch holds what is left.
        progress: called after every batch with the number of images it held.

    Returns:
        Scores in the original positions: entry i belongs to ``features[i]``.

    Raises:
        ValueError: ``order`` is no permutation of the rows, ``batch_size`` is below 1, or the
            detector returns something other than one pred and one conf an image.

    Source: section "evaluation protocol" of AdaNeg (Zhang and Zhang, NeurIPS 2024).
    """
    n = len(features)
    order = np.asarray(order)
    if order.dtype.kind not in "iu" or order.ndim != 1:
        raise ValueError(f"order must be 1-d integers, got {order.dtype} of shape {order.shape}")
    if not np.array_equal(np.sort(order), np.arange(n)):
        raise ValueError(f"order must hold every index from 0 to {n - 1} once, for {n} rows")
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")

    detector.reset()
    preds, confs = [], []
    index = torch.from_numpy(order.astype(np.int64))
    for rows in index.to(features.device).split(batch_size) if n else ():
        scores = detector.score(features[rows])
        for name, value in (("pred", scores.pred), ("conf", scores.conf)):
            if tuple(value.shape) != (len(rows),):
                raise ValueError(
                    f"{type(detector).__name__}.score must return {name} of shape ({len(rows)},) "
                    f"for {len(rows)} images, got {tuple(value.shape)}"
                )
        # Kept on the device: a copy to the host per batch would wait for each batch.
        preds.append(scores.pred)
        confs.append(scores.conf)
        if progress is not None:
            progress(len(rows))

    pred, conf = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.float32)
    if n:
        pred[order] = torch.cat(preds).cpu().numpy()
        values = torch.cat(confs)
        values = (values if values.dtype == torch.float64 else values.float()).cpu()
        conf = np.empty(n, dtype=values.numpy().dtype)
        conf[order] = values.numpy()
    return StreamScores(pred, conf)
