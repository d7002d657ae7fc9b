"""Running detectors over a benchmark and keeping every image's score."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from adaneg_openood.benchmark.methods import standard_detectors
from adaneg_openood.evaluation import FeatureSet, run_stream, stream_order
from adaneg_openood.evaluation.streams import Detector, one_order_is_enough
from adaneg_openood.report.examples import extreme_examples
from adaneg_openood.report.provenance import describe_run
from adaneg_openood.report.record import RunRecord, StreamRecord

if TYPE_CHECKING:
    from adaneg_openood.data import ImageSet

logger = logging.getLogger(__name__)

_SAME = 1 - 1e-6  # cosine of a feature with itself, after rounding to float32


def collect(
    data: FeatureSet,
    detectors: Mapping[str, Detector] | None = None,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    batch_size: int = 256,
    order: str = "mixed",
    device: torch.device | str | None = None,
    features: str | os.PathLike[str] | None = None,
    images: Mapping[str, ImageSet] | None = None,
    example_method: str | None = None,
    about: Mapping[str, Any] | None = None,
) -> RunRecord:
    """Score every stream, as :func:`adaneg_openood.evaluation.evaluate` does, and keep it all.

    Args:
        data: the features.
        detectors: by method name; None takes the standard ones.
        seeds: of the stream orders.
        batch_size: images a batch.
        order: ``"mixed"`` or ``"id_first"``.
        device: where it runs; None leaves everything where it is.
        features: file or folder the features were read from, for the provenance.
        images: ``"id"`` or an OOD set -> its images in the order of the features, for examples.
        example_method: whose confidences choose the examples; None takes the first with a bank.
        about: more for the provenance, as JSON values.

    Raises:
        ValueError: settings out of range, or images that do not fit the features.
    """
    detectors = dict(standard_detectors(data) if detectors is None else detectors)
    if not detectors or not seeds:
        raise ValueError("detectors and seeds must not be empty")
    sets = {**dict.fromkeys(data.near, "near"), **dict.fromkeys(data.far, "far")}
    parts = {**data.near, **data.far}
    place = data.id_features.device if device is None else torch.device(device)
    streams: dict[tuple[str, str], StreamRecord] = {}
    for detector in detectors.values():
        if isinstance(detector, torch.nn.Module):
            detector.to(place)
    for dataset in sets:
        joined = torch.cat([parts[dataset].to(place), data.id_features.to(place)])
        n_ood = len(parts[dataset])
        for method, detector in detectors.items():
            fixed = one_order_is_enough(detector, order)
            runs = []
            for seed in list(seeds)[:1] if fixed else seeds:
                index = stream_order(n_ood, len(data.id_features), seed, order)
                runs.append(_one_stream(detector, joined, n_ood, index, batch_size))
            streams[method, dataset] = _stacked(runs)
        logger.info("scored %s", dataset)
    record = RunRecord(
        methods=tuple(detectors),
        sets=sets,
        streams=streams,
        id_labels=data.id_labels.cpu().numpy(),
        n_classes=data.n_id,
        names=data.names,
        seeds=tuple(int(seed) for seed in seeds),
        order=order,
        batch_size=batch_size,
        provenance={
            **describe_run(data, detectors, features, place),
            **({} if about is None else {"benchmark": dict(about)}),
        },
    )
    if not images:
        return record
    chosen = example_method or next(iter((*record.bank_methods[:1], *record.methods)))
    if chosen not in detectors:
        raise ValueError(f"no method {chosen!r} to choose examples by; there are {', '.join(detectors)}")
    found = extreme_examples(record, images, chosen)
    return replace(record, examples=found, example_method=chosen)


class _Watched:
    """A detector whose bank is looked at after each batch."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self.filled: list[Tensor] = []

    def reset(self) -> None:
        self.detector.reset()

    def score(self, features: Tensor) -> Any:
        scores = self.detector.score(features)
        bank, n_id = getattr(self.detector, "bank", None), getattr(self.detector, "n_id", None)
        if bank is not None and n_id is not None:
            rows = bank.active_rows[: bank.n_active]
            self.filled.append(torch.stack([(rows < n_id).sum(), (rows >= n_id).sum()]))
        return scores


def _one_stream(
    detector: Detector, features: Tensor, n_ood: int, order: np.ndarray, batch_size: int
) -> StreamRecord:
    watched = _Watched(detector)
    scores = run_stream(watched, features, order, batch_size)
    pred = scores.pred.astype(np.int32)
    bank = getattr(detector, "bank", None)
    if bank is None:
        return StreamRecord(scores.conf[None], pred[None])
    counts = bank.counts.cpu().numpy().astype(np.int32)
    is_ood = _cached_is_ood(bank, features, n_ood)
    rows = bank.rows[: bank.n_cached].cpu().numpy()
    of_ood = np.bincount(rows[is_ood], minlength=len(counts)).astype(np.int32)
    filled = torch.stack(watched.filled).cpu().numpy().astype(np.int32)
    return StreamRecord(scores.conf[None], pred[None], counts[None], of_ood[None], filled[None])


def _cached_is_ood(bank: Any, features: Tensor, n_ood: int) -> np.ndarray:
    """(n_cached,) whether each cached image is OOD.

    A bank does not know which image a feature came from, so it is looked for: among its neighbours
    along one random direction, and where it is not there among all images.
    """
    cached = bank.features[: bank.n_cached].double()
    if not len(cached):
        return np.zeros(0, dtype=bool)
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    direction = torch.randn(unit.shape[1], generator=torch.Generator().manual_seed(0)).to(unit)
    along, index = (unit @ direction).sort()
    place = torch.searchsorted(along, cached @ direction)
    near = torch.stack([index[(place + step).clamp(0, len(index) - 1)] for step in (-1, 0)], dim=1)
    cosines = torch.einsum("nd,nkd->nk", cached, unit[near])
    found = near.gather(1, cosines.argmax(dim=1, keepdim=True)).squeeze(1)
    for part in (cosines.amax(dim=1) < _SAME).nonzero().squeeze(1).split(1024):
        found[part] = (cached[part] @ unit.T).argmax(dim=1)
    return np.asarray((found < n_ood).cpu().numpy())


def _stacked(runs: Sequence[StreamRecord]) -> StreamRecord:
    found = {}
    for name in ("conf", "pred", "counts", "ood_counts", "filled"):
        values = [getattr(run, name) for run in runs]
        found[name] = None if values[0] is None else np.concatenate(values)
    return StreamRecord(**found)  # type: ignore[arg-type]
