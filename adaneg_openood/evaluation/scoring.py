"""The loop over one stream: batches in order, detectors side by side, scores back in their places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Callable, NamedTuple

import numpy as np
import torch
from torch import Tensor

from adaneg_openood.detectors import AdaNeg
from adaneg_openood.detectors.bank import FeatureBank
from adaneg_openood.detectors.fixed_bank import FixedBank, as_pooled
from adaneg_openood.evaluation.streams import Detector
from adaneg_openood.io.checks import check_int

_SAME = 1 - 1e-6  # cosine of a feature with itself, after rounding to float32


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
        ValueError, TypeError: ``order`` is no permutation of the rows, ``batch_size`` is no integer
            of at least 1, or a detector returns something other than one pred and one conf per image.

    Source: section "evaluation protocol" of AdaNeg (Zhang and Zhang, NeurIPS 2024).
    """
    index = checked_order(order, len(features))
    check_int("batch_size", batch_size)
    names = ("pred", "conf", *(("s_neglabel", "s_adaptive") if keep_parts else ()))
    kept: list[dict[str, list[Tensor]]] = [{name: [] for name in names} for _ in detectors]
    filled: list[list[Tensor]] = [[] for _ in detectors]
    comparers = _shared_comparisons(detectors)
    for detector in detectors:
        detector.reset()
    for rows in index.to(features.device).split(batch_size):
        batch, compared = features[rows], {}  # type: ignore[var-annotated]
        for place, (detector, comparer) in enumerate(zip(detectors, comparers)):
            if comparer is None:
                scores = detector.score(batch)
            else:
                if comparer not in compared:
                    compared[comparer] = comparer.compare_text(batch)
                scores = detector.score(batch, compared[comparer])  # type: ignore[call-arg]
            for name in names:
                value: Any = getattr(scores, name, None)
                if name in ("pred", "conf") and tuple(value.shape) != (len(rows),):
                    raise ValueError(
                        f"{type(detector).__name__}.score must return {name} of shape ({len(rows)},) "
                        f"for {len(rows)} images, got {tuple(value.shape)}"
                    )
                if value is not None:  # kept on the device: a copy per batch would wait for each
                    kept[place][name].append(value)
            if watch_bank and getattr(detector, "bank", None) is not None:
                held, n_id = detector.bank.counts > 0, detector.n_id  # type: ignore[attr-defined]
                filled[place].append(torch.stack([held[:n_id].sum(), held[n_id:].sum()]))
            if progress is not None:
                progress(len(rows))
    found = []
    for parts, rows_filled in zip(kept, filled):
        arrays = {name: _placed(values, index) for name, values in parts.items() if values}
        if rows_filled:
            arrays["filled"] = torch.stack(rows_filled).cpu().numpy().astype(np.int32)
        found.append(StreamScores(**arrays))
    return found


def checked_order(order: np.ndarray, n: int) -> Tensor:
    """The order as a tensor; a ValueError unless it holds every index below n once."""
    order = np.asarray(order)
    if order.dtype.kind not in "iu" or order.ndim != 1:
        raise ValueError(f"order must be 1-d integers, got {order.dtype} of shape {order.shape}")
    if not np.array_equal(np.sort(order), np.arange(n)):
        raise ValueError(f"order must hold every index from 0 to {n - 1} once, for {n} rows")
    return torch.from_numpy(order.astype(np.int64))


def _placed(batches: Sequence[Tensor], index: Tensor) -> np.ndarray:
    """Values of all batches in the images' original positions, on the host."""
    streamed = torch.cat(list(batches))
    if not streamed.is_floating_point():
        streamed = streamed.long()
    elif streamed.dtype != torch.float64:
        streamed = streamed.float()  # numpy has no bfloat16
    streamed = streamed.cpu()
    placed = torch.empty_like(streamed)
    placed[index] = streamed
    return np.asarray(placed.numpy())


def _shared_comparisons(detectors: Sequence[Any]) -> list[AdaNeg | None]:
    """For each detector the one that compares for it, or None where no other compares alike."""
    adanegs = [detector for detector in detectors if isinstance(detector, AdaNeg)]
    found: list[AdaNeg | None] = []
    for detector in detectors:
        alike = [other for other in adanegs if detector in adanegs and _compare_alike(detector, other)]
        found.append(alike[0] if len(alike) > 1 else None)
    return found


def _compare_alike(one: AdaNeg, other: AdaNeg) -> bool:
    settings = ("groups", "permute", "n_id", "logit_scale")
    mine, theirs = one.text_features, other.text_features
    return (
        all(getattr(one, name) == getattr(other, name) for name in settings)
        and (mine.dtype, mine.device, mine.shape) == (theirs.dtype, theirs.device, theirs.shape)
        and (mine.data_ptr() == theirs.data_ptr() or torch.equal(mine, theirs))
    )


def bank_counts(
    detector: Any, features: Tensor, n_ood: int, find_ood: bool
) -> dict[str, np.ndarray | None]:
    """``counts`` and ``ood_counts`` of a :class:`~adaneg_openood.evaluation.StreamResult`.

    Args:
        detector: after its stream.
        features: (N, D) concat(OOD, ID) of the stream.
        n_ood: how many of them are OOD.
        find_ood: look up which cached images are OOD.
    """
    bank = getattr(detector, "bank", None)
    if bank is None or getattr(detector, "n_id", None) is None:
        return {"counts": None, "ood_counts": None}
    counts = bank.counts.cpu().numpy().astype(np.int32)
    if not find_ood or not isinstance(bank, (FeatureBank, FixedBank)):
        return {"counts": counts, "ood_counts": None}
    bank = as_pooled(bank)
    rows = bank.rows[: bank.n_cached].cpu().numpy()
    of_ood = np.bincount(rows[_cached_is_ood(bank, features, n_ood)], minlength=len(counts))
    return {"counts": counts, "ood_counts": of_ood.astype(np.int32)}


def diagnosis_of(detector: Any) -> dict[str, Any] | None:
    """What a detector's ``diagnose`` says, as JSON values; None where it has none."""
    state = detector.diagnose() if hasattr(detector, "diagnose") else None
    # JSON knows no NaN
    return state and {key: None if value != value else value for key, value in asdict(state).items()}


def _cached_is_ood(bank: Any, features: Tensor, n_ood: int) -> np.ndarray:
    """(n_cached,) whether each cached image is OOD.

    A bank does not know which image a feature came from, so it is looked for: among its neighbours
    along one random direction, and where it is not there among all images.
    """
    exact = torch.float32 if features.device.type == "mps" else torch.float64  # MPS has no float64
    cached = bank.features[: bank.n_cached].to(features.device, exact)
    if not len(cached):
        return np.zeros(0, dtype=bool)
    unit = torch.nn.functional.normalize(features.to(exact), dim=1)
    direction = torch.randn(unit.shape[1], generator=torch.Generator().manual_seed(0)).to(unit)
    along, index = (unit @ direction).sort()
    place = torch.searchsorted(along, cached @ direction)
    near = torch.stack([index[(place + step).clamp(0, len(index) - 1)] for step in (-1, 0)], dim=1)
    cosines = torch.einsum("nd,nkd->nk", cached, unit[near])
    found = near.gather(1, cosines.argmax(dim=1, keepdim=True)).squeeze(1)
    for part in (cosines.amax(dim=1) < _SAME).nonzero().squeeze(1).split(1024):
        found[part] = (cached[part] @ unit.T).argmax(dim=1)
    return np.asarray((found < n_ood).cpu().numpy())
