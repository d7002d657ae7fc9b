"""Running the rows of a table: detectors over streams, one record a row, OOD set and order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable

import numpy as np
import torch
from torch import Tensor

from adaneg_openood.detectors import AdaNeg, AdaNegConfig
from adaneg_openood.evaluation import FeatureSet, ood_metrics, stream_order
from adaneg_openood.evaluation.scoring import score_stream
from adaneg_openood.evaluation.streams import Detector, keeps_state

FPR_OOD, FPR_ID = "FPR95 (OOD positive)", "FPR95 (ID positive)"
_NAMES = {"FPR@95": FPR_OOD, "FPR@95 (ID positive)": FPR_ID}
METRICS = (FPR_OOD, FPR_ID, "AUROC", "AUPR_IN", "AUPR_OUT", "ACC")
RECORD_COLUMNS = ("features", "method", "setting", "dataset", "seed", "n_id", "n_ood", *METRICS)

_TOGETHER = 8  # detectors at a time: each holds a bank of its own

Draw = Callable[[int, int, int], tuple[np.ndarray, np.ndarray]]


def everything(n_id: int, n_ood: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Every ID and every OOD image."""
    return np.arange(n_id), np.arange(n_ood)


@dataclass(frozen=True)
class Trial:
    """One row of a table.

    Attributes:
        method: name of the row.
        make: builds the detector from the features it will meet.
        setting: what was varied, such as ``"gamma = 0.3"``; empty where nothing is.
        value: the number behind ``setting``, for plots.
        draw: (n_id, n_ood, seed) -> indices of the ID and of the OOD images that are used.
        published: (method, part of the source) pairs of figures that ran under the same settings.
        published_setting: ``setting`` of those figures.
    """

    method: str
    make: Callable[[FeatureSet], Detector]
    setting: str = ""
    value: float | None = None
    draw: Draw = everything
    published: tuple[tuple[str, str], ...] = ()
    published_setting: str = ""


@dataclass(frozen=True)
class Protocol:
    """How streams are made.

    Attributes:
        seeds: of the stream orders.
        batch_size: images a batch.
        streams: OOD set -> (n_ood + n_id,) order over concat(OOD, ID), used in place of the seeds'.
        double: score in float64. Confidences are then free of rounding ties; twice as slow.
        device: where it runs.
    """

    seeds: tuple[int, ...]
    batch_size: int
    streams: Mapping[str, np.ndarray] = field(default_factory=dict)
    double: bool = False
    device: torch.device | str = "cpu"


def run_trials(
    trials: Sequence[Trial], data: FeatureSet, protocol: Protocol, label: str = ""
) -> Iterator[dict[str, Any]]:
    """Records with :data:`RECORD_COLUMNS`; metrics in percent.

    Raises:
        ValueError: a stream order that does not fit its set, or a set name that is not there.
    """
    sets = {**data.near, **data.far}
    unknown = sorted(set(protocol.streams) - set(sets))
    if unknown:
        raise ValueError(f"stream order for unknown set {', '.join(unknown)}; sets: {', '.join(sets)}")
    for start in range(0, len(trials), _TOGETHER):
        yield from _run_together(trials[start : start + _TOGETHER], data, protocol, label)


def _run_together(
    trials: Sequence[Trial], data: FeatureSet, protocol: Protocol, label: str
) -> Iterator[dict[str, Any]]:
    """Records of a few trials, whose detectors meet each stream side by side."""
    detectors = [_placed(trial.make(data), protocol) for trial in trials]
    labels = data.id_labels.cpu().numpy()
    by_draw: dict[Draw, list[int]] = {}
    for place, trial in enumerate(trials):
        by_draw.setdefault(trial.draw, []).append(place)
    for name, ood in {**data.near, **data.far}.items():
        joined = torch.cat([ood.to(protocol.device), data.id_features.to(protocol.device)])
        known: dict[int, dict[str, float]] = {}
        for seed in protocol.seeds:
            sizes: dict[int, tuple[int, int]] = {}
            for draw, places in by_draw.items():
                of_id, of_ood = draw(len(labels), len(ood), seed)
                sizes.update(dict.fromkeys(places, (len(of_id), len(of_ood))))
                # the same images in any order give a stateless detector the same scores
                todo = [
                    place
                    for place in places
                    if place not in known or draw is not everything or keeps_state(detectors[place])
                ]
                stream = _stream(joined, labels, len(ood), (of_id, of_ood), seed, name, protocol)
                measured = _measured([detectors[place] for place in todo], *stream, protocol.batch_size)
                known.update(zip(todo, measured))
            for place, trial in enumerate(trials):
                row = {"features": label, "method": trial.method, "setting": trial.setting}
                n_id, n_ood = sizes[place]
                yield {
                    **row,
                    "dataset": name,
                    "seed": seed,
                    "n_id": n_id,
                    "n_ood": n_ood,
                    **known[place],
                }


def _placed(detector: Detector, protocol: Protocol) -> Detector:
    if isinstance(detector, torch.nn.Module):
        detector.to(protocol.device)
        if protocol.double:
            detector.double()
    return detector


def _stream(
    joined: Tensor,
    labels: np.ndarray,
    n_ood: int,
    used: tuple[np.ndarray, np.ndarray],
    seed: int,
    name: str,
    protocol: Protocol,
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Features, labels and order of the images that are used, over concat(OOD, ID)."""
    of_id, of_ood = used
    rows = np.concatenate([of_ood, of_id + n_ood])
    truth = np.concatenate([np.full(len(of_ood), -1), labels[of_id]])
    if len(rows) < len(joined):
        part = joined[torch.from_numpy(rows).to(joined.device)]
        return part, truth, stream_order(len(of_ood), len(of_id), seed)
    given = protocol.streams.get(name)
    order = stream_order(n_ood, len(of_id), seed) if given is None else given
    return joined, truth, order


def _measured(
    detectors: Sequence[Detector],
    features: Tensor,
    truth: np.ndarray,
    order: np.ndarray,
    batch_size: int,
) -> Iterator[dict[str, float]]:
    """Metrics of each detector on one stream; those that read the same text share the reading."""
    if not detectors:
        return
    for scores in score_stream(detectors, features, order, batch_size):
        metrics = ood_metrics(scores.conf, truth, scores.pred)
        yield {_NAMES.get(metric, metric): value for metric, value in metrics.items()}


class ProxySum(torch.nn.Module):
    """S_ta + S_sa (+ lambda S_nl): both adaptive scores of one stream, added.

    The bank does not depend on the score, so each part meets the stream it would meet alone.
    """

    def __init__(self, data: FeatureSet, config: AdaNegConfig, lam: float) -> None:
        super().__init__()
        from dataclasses import replace

        self.lam, self.n_id = lam, data.n_id
        self.parts = torch.nn.ModuleList(
            AdaNeg(data.text_features, data.n_id, data.logit_scale, replace(config, proxy=proxy))
            for proxy in ("task", "sample")
        )

    def reset(self) -> None:
        """Forget the stream."""
        for part in self.parts:
            part.reset()  # type: ignore[operator]

    def score(self, features: Tensor) -> Any:
        """Score (B, D) features; ``pred`` is that of the task-adaptive part."""
        from adaneg_openood.detectors import Scores

        task, sample = (part.score(features) for part in self.parts)  # type: ignore[operator]
        conf = task.s_adaptive + sample.s_adaptive + self.lam * task.s_neglabel
        return Scores(task.pred, conf, task.s_neglabel, task.s_adaptive)
