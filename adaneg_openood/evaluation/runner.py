"""Running detectors over every OOD set of a benchmark."""

from __future__ import annotations

import logging
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaneg_openood.data.feature_files import FeatureSet
from adaneg_openood.detectors import AdaNeg
from adaneg_openood.evaluation.metrics import ood_metrics
from adaneg_openood.evaluation.results import Results, records_frame
from adaneg_openood.evaluation.streams import (
    ORDERS,
    Detector,
    StreamScores,
    one_order_is_enough,
    run_stream,
    stream_order,
)
from adaneg_openood.evaluation.uncertainty import Bootstrap, observed_and_drawn

logger = logging.getLogger(__name__)


def evaluate(
    detectors: Mapping[str, Detector],
    data: FeatureSet,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    batch_size: int = 256,
    order: str = "mixed",
    progress: bool = True,
    device: torch.device | str | None = None,
    resamples: int | None = None,
) -> Results:
    """Evaluate detectors on every OOD set, each as one stream with the ID images.

    For an OOD set and a seed every detector meets the same stream, and is reset before it. Where
    the seed cannot change a result (a detector whose ``info`` says that it keeps no state, or the order
    ``"id_first"``) the stream runs once and its result stands for every seed.

    Args:
        detectors: method name -> detector. They are left with the last stream's state, and on
            ``device`` if one is given.
        data: text, ID and OOD features.
        seeds: distinct seeds of the streams, >= 0.
        batch_size: images a batch; a stateful detector's scores depend on it.
        order: ``"mixed"`` or ``"id_first"``.
        progress: show a progress bar on stderr.
        device: where detectors and features are moved to; None leaves them where they are.
        resamples: bootstrap resamples of the images, for intervals and paired tests; None makes none.

    Raises:
        ValueError: no detector, no or repeated seeds, settings out of range, or a detector whose
            number of ID classes is not the data's.

    Source: AdaNeg (Zhang and Zhang, NeurIPS 2024) for the protocol, OpenOOD v1.5 for the metrics.
    """
    seeds = _checked_seeds(seeds)
    _check_settings(detectors, data, batch_size, order)
    if device is not None:
        for detector in detectors.values():
            if isinstance(detector, torch.nn.Module):
                detector.to(device)

    from tqdm import tqdm

    n_id = len(data.id_features)
    runs = {
        name: seeds[:1] if one_order_is_enough(detector, order) else seeds
        for name, detector in detectors.items()
    }
    images = sum(n_id + len(ood) for _, _, ood in _ood_sets(data)) * sum(map(len, runs.values()))
    records: list[dict[str, Any]] = []
    observed: dict[tuple[str, str], np.ndarray] = {}
    drawn: dict[tuple[str, str], np.ndarray] = {}
    diagnoses: dict[tuple[str, str, int], Any] = {}
    with tqdm(total=images, unit="image", unit_scale=True, disable=not progress) as bar:
        for number, (split, dataset, ood) in enumerate(_ood_sets(data)):
            bar.set_description(dataset)
            features = _joined(ood, data.id_features, device)
            label = np.concatenate([np.full(len(ood), -1), data.id_labels.cpu().numpy()])
            measured: dict[tuple[str, int], dict[str, Any]] = {}
            confs: dict[str, list[np.ndarray]] = {name: [] for name in detectors}
            for seed in seeds:
                index = stream_order(len(ood), n_id, seed, order)
                for name, detector in detectors.items():
                    if seed in runs[name]:
                        scores = run_stream(detector, features, index, batch_size, bar.update)
                        measured[name, seed] = _measured(detector, scores, label)
                        if isinstance(detector, AdaNeg):
                            diagnoses[name, dataset, seed] = detector.diagnose()
                        if resamples is not None:
                            confs[name].append(scores.conf)
            key = {"split": split, "dataset": dataset, "n_id": n_id, "n_ood": len(ood)}
            for name in detectors:
                for seed in seeds:
                    values = measured.get((name, seed), measured[name, runs[name][0]])
                    records.append({"method": name, "seed": seed, **key, **values})
            if resamples is not None:
                bar.set_description(f"{dataset}, resampling")
                parts = observed_and_drawn(confs, label, resamples, seeds[0], number)
                for kept, part in zip((observed, drawn), parts):
                    kept.update({(name, dataset): values for name, values in part.items()})
            logger.info("evaluated %s (%s): %d OOD, %d ID images", dataset, split, len(ood), n_id)
    frame = records_frame(records)
    # method by method, each in the order of the sets
    rank = {name: place for place, name in enumerate(detectors)}
    frame = frame.sort_values("method", key=lambda names: names.map(rank), kind="stable")
    bootstrap = None
    if resamples is not None:
        groups = {"near": tuple(data.near), "far": tuple(data.far)}
        bootstrap = Bootstrap(observed, drawn, groups, resamples)
    return Results(frame.reset_index(drop=True), order, seeds, batch_size, bootstrap, diagnoses)


def _measured(detector: Detector, scores: StreamScores, label: np.ndarray) -> dict[str, Any]:
    filled, n_rows = None, None
    bank, n_id = getattr(detector, "bank", None), getattr(detector, "n_id", None)
    if bank is not None and n_id is not None:
        filled, n_rows = int((bank.counts[:n_id] > 0).sum()), int(n_id)
    metrics = ood_metrics(scores.conf, label, scores.pred)
    return {**metrics, "id_rows_filled": filled, "n_id_rows": n_rows}


def _ood_sets(data: FeatureSet) -> Iterator[tuple[str, str, Tensor]]:
    for split, sets in (("near", data.near), ("far", data.far)):
        for name, features in sets.items():
            yield split, name, features


def _joined(ood: Tensor, id_features: Tensor, device: torch.device | str | None) -> Tensor:
    """concat(OOD, ID) in the wider of the two dtypes."""
    place = id_features.device if device is None else device
    return torch.cat([ood.to(place), id_features.to(place)])


def _checked_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    try:
        checked = tuple(operator.index(seed) for seed in seeds)
    except TypeError:
        raise ValueError(f"seeds must be integers, got {seeds!r}") from None
    if not checked:
        raise ValueError("seeds is empty; give at least one, such as (0,)")
    if len(set(checked)) != len(checked) or min(checked) < 0:
        raise ValueError(f"seeds must be distinct and >= 0, got {checked}")
    return checked


def _check_settings(
    detectors: Mapping[str, Detector], data: FeatureSet, batch_size: int, order: str
) -> None:
    if not detectors:
        raise ValueError("detectors is empty; give at least one, as {name: detector}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(map(repr, ORDERS))}, got {order!r}")
    for name, detector in detectors.items():
        n_id = getattr(detector, "n_id", data.n_id)
        if n_id != data.n_id:
            raise ValueError(f"detector {name!r} has n_id {n_id}, the features have {data.n_id}")
