"""Running the rows of a table: detectors over streams, one record a row, OOD set and order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable

import numpy as np
import torch
from torch import Tensor

from adaneg_openood.detectors import AdaNeg, AdaNegConfig
from adaneg_openood.evaluation import FeatureSet, ood_metrics, run_stream, stream_order
from adaneg_openood.evaluation.streams import Detector

FPR_OOD, FPR_ID = "FPR95 (OOD positive)", "FPR95 (ID positive)"
_NAMES = {"FPR@95": FPR_OOD, "FPR@95 (ID positive)": FPR_ID}
METRICS = (FPR_OOD, FPR_ID, "AUROC", "AUPR_IN", "AUPR_OUT", "ACC")
RECORD_COLUMNS = ("features", "method", "setting", "dataset", "seed", "n_id", "n_ood", *METRICS)

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

    A detector is made, used for all its streams and dropped, so one bank is alive at a time.

    Raises:
        ValueError: a stream order that does not fit its set, or a set name that is not there.
    """
    sets = {**data.near, **data.far}
    unknown = sorted(set(protocol.streams) - set(sets))
    if unknown:
        raise ValueError(f"stream order for unknown set {', '.join(unknown)}; sets: {', '.join(sets)}")
    labels = data.id_labels.cpu().numpy()
    joined = {name: _joined(ood, data.id_features, protocol.device) for name, ood in sets.items()}
    for trial in trials:
        detector = trial.make(data)
        if isinstance(detector, torch.nn.Module):
            detector.to(protocol.device)
            if protocol.double:
                detector.double()
        for name, ood in sets.items():
            known: dict[str, float] | None = None
            for seed in protocol.seeds:
                of_id, of_ood = trial.draw(len(labels), len(ood), seed)
                # the same images in any order give a stateless detector the same scores
                if known is None or trial.draw is not everything or not _stateless(detector):
                    known = _measure(
                        detector, joined[name], labels, len(ood), (of_id, of_ood), seed, name, protocol
                    )
                counts = {"n_id": len(of_id), "n_ood": len(of_ood)}
                row = {"features": label, "method": trial.method, "setting": trial.setting}
                yield {**row, "dataset": name, "seed": seed, **counts, **known}


def _measure(
    detector: Detector,
    features: Tensor,
    labels: np.ndarray,
    n_ood: int,
    used: tuple[np.ndarray, np.ndarray],
    seed: int,
    name: str,
    protocol: Protocol,
) -> dict[str, float]:
    of_id, of_ood = used
    rows = np.concatenate([of_ood, of_id + n_ood])
    truth = np.concatenate([np.full(len(of_ood), -1), labels[of_id]])
    whole = len(rows) == len(features)
    if not whole:
        features = features[torch.from_numpy(rows).to(features.device)]
    order = protocol.streams.get(name) if whole else None
    if order is None:
        order = stream_order(len(of_ood), len(of_id), seed)
    scores = run_stream(detector, features, order, protocol.batch_size)
    metrics = ood_metrics(scores.conf, truth, scores.pred)
    return {_NAMES.get(metric, metric): value for metric, value in metrics.items()}


def _stateless(detector: Detector) -> bool:
    return bool(getattr(detector, "stateless", False))


def _joined(ood: Tensor, ids: Tensor, device: torch.device | str) -> Tensor:
    """concat(OOD, ID) in the wider of the two dtypes."""
    return torch.cat([ood.to(device), ids.to(device)])


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
