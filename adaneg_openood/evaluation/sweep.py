"""Many settings over the same features: the text is read once for all of them; resumed after a kill."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from adaneg_openood._version import __version__
from adaneg_openood.detectors import AdaNeg, AdaNegConfig
from adaneg_openood.detectors.adaneg import combined
from adaneg_openood.evaluation._atomic import atomic_path
from adaneg_openood.evaluation._fields import unknown_key
from adaneg_openood.evaluation.feature_set import FeatureSet
from adaneg_openood.evaluation.journal import Journal, digest_of, first_different, held
from adaneg_openood.evaluation.method_specs import SETTINGS
from adaneg_openood.evaluation.metrics import CONVENTIONS, METRICS, ood_metrics
from adaneg_openood.evaluation.results import GROUP_ROWS
from adaneg_openood.evaluation.streams import ORDERS, stream_order
from adaneg_openood.evaluation.subsets import Ratio, draw_subset, subset_sizes

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

STREAM_AXES = ("batch_size", "order", "ratio", "n_images")
BANK_COLUMNS = ("id_rows_filled", "n_id_rows", "negative_rows_filled", "cached")
_FORMAT = 1
_TOGETHER = 16  # detectors at a time: each holds a bank of its own
_FLOATS = tuple(f.name for f in dataclasses.fields(AdaNegConfig) if f.type == "float")


@dataclass(frozen=True)
class Protocol:
    """How images are met.

    Attributes:
        batch_size: images a batch.
        order: ``"mixed"`` or ``"id_first"``.
        ratio: ID to OOD images; None keeps the one there is.
        n_images: ID and OOD images together; None takes as many as the ratio allows.
    """

    batch_size: int = 256
    order: str = "mixed"
    ratio: Ratio | None = None
    n_images: int | None = None


@dataclass(frozen=True, eq=False)
class SweepResult:
    """What a sweep measured.

    Attributes:
        records: one row a configuration, protocol, seed and set. Columns: the settings of
            AdaNegConfig, :data:`STREAM_AXES`, ``seed``, ``split``, ``dataset``, ``n_id``, ``n_ood``,
            the metrics in percent, and :data:`BANK_COLUMNS` (rows that hold images at the end of the
            stream, and images held).
        axes: the columns that vary.
        computed: runs that were computed now; the others had been written down before.
    """

    records: pd.DataFrame
    axes: tuple[str, ...]
    computed: int

    def summary(self) -> pd.DataFrame:
        """Mean and standard deviation (ddof = 1) over seeds, of every set and of near and far means.

        One row a configuration, protocol and set or group; columns ``METRIC`` and ``METRIC std``. A
        group's deviation is that of its mean. With one seed deviations are 0.
        """
        import pandas as pd

        records = self.records
        point = [*SETTINGS, *STREAM_AXES]
        groups = (
            records.groupby([*point, "seed", "split"], sort=False, dropna=False)[list(METRICS)]
            .mean()
            .reset_index()
        )
        groups["dataset"] = groups["split"].map(GROUP_ROWS)
        rows = pd.concat([records, groups], ignore_index=True)
        grouped = rows.groupby([*point, "split", "dataset"], sort=False, dropna=False)[list(METRICS)]
        mean, spread = grouped.mean(), grouped.std(ddof=1).fillna(0.0)
        out = mean.copy()
        for metric in reversed(METRICS):
            out.insert(list(out.columns).index(metric) + 1, f"{metric} std", spread[metric])
        return out.reset_index()

    def best(self, metric: str = "AUROC", row: str = "farood") -> pd.DataFrame:
        """Rows of :meth:`summary` for one set or group, best first."""
        summary = self.summary()
        chosen = summary[summary["dataset"] == row]
        return chosen.sort_values(metric, ascending=metric.startswith("FPR"), kind="stable")

    def write(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write ``results.csv`` (long form), ``summary.csv`` and ``conventions.json``, atomically."""
        root = Path(folder)
        files = [root / "results.csv", root / "summary.csv", root / "conventions.json"]
        for file, frame in zip(files, (self.records, self.summary())):
            with atomic_path(file) as temporary:
                frame.to_csv(temporary, index=False, encoding="utf-8", lineterminator="\n")
        with atomic_path(files[-1]) as temporary:
            about = {"units": "percent", "axes": list(self.axes), "conventions": CONVENTIONS}
            temporary.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", "utf-8")
        return files


def sweep(
    data: FeatureSet,
    grid: Mapping[str, Sequence[Any]],
    *,
    base: AdaNegConfig | None = None,
    released: bool = False,
    seeds: Sequence[int] = (0, 1, 2),
    batch_sizes: Sequence[int] = (256,),
    orders: Sequence[str] = ("mixed",),
    ratios: Sequence[Ratio | None] = (None,),
    n_images: Sequence[int | None] = (None,),
    folder: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> SweepResult:
    """Run AdaNeg with every combination of settings, protocols and seeds on every OOD set.

    Each run equals one of :func:`~adaneg_openood.evaluation.evaluate` with the same settings, bit for
    bit. Configurations meet each stream side by side, so that what the text says of a batch is computed
    once for all that group the negatives alike; those that differ in ``score`` alone are one run.

    With ``folder``, runs are written down as soon as they are there. Called again, after a kill or with
    a larger grid, it computes what is missing; the files it writes at the end are the same bytes.

    Args:
        data: the features.
        grid: setting of AdaNegConfig -> its values; what is not in it is as in ``base``.
        base: None is the published configuration.
        released: run each as the released code does, see ``AdaNegConfig.released``.
        seeds: of stream orders, and of the choice of images where ratio or number leave some out.
        batch_sizes, orders, ratios, n_images: protocols, see :class:`Protocol`.
        folder: journal and results; None keeps nothing.
        device: where features and detectors are put.
        progress: show a bar.

    Raises:
        ValueError, TypeError: an unknown or impossible setting, more images than there are, or a folder
            with runs on other data, by another version of this package or of torch.
        BlockingIOError: another process is at work in the folder.
    """
    configs = grid_configs(grid, base, released)
    protocols = [Protocol(*point) for point in itertools.product(batch_sizes, orders, ratios, n_images)]
    _check_protocols(protocols, seeds, data)
    if folder is None:
        return _run(data, configs, protocols, seeds, None, device, progress)
    root = Path(folder)
    with held(root / "lock"):
        _check_folder(root, data, device)
        journal = Journal(root / "journal.jsonl")
        result = _run(data, configs, protocols, seeds, journal, device, progress)
        result.write(root)
        return result


def grid_configs(
    grid: Mapping[str, Sequence[Any]], base: AdaNegConfig | None = None, released: bool = False
) -> list[AdaNegConfig]:
    """Every combination, in the order of the grid, each once.

    Raises:
        ValueError, TypeError: a setting that AdaNegConfig does not have or allow, or without values.
    """
    for key, values in grid.items():
        if key not in SETTINGS:
            raise ValueError(f"grid: {unknown_key(key, SETTINGS)}")
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ValueError(f"grid: {key} must have a list of values, got {values!r}")
    start = dataclasses.asdict(AdaNegConfig() if base is None else base)
    made = []
    for values in itertools.product(*grid.values()):
        settings = {**start, **dict(zip(grid, values))}
        config = AdaNegConfig.released(**settings) if released else AdaNegConfig(**settings)
        # 0 and 0.0 are one value, and must look the same in the files
        floats: dict[str, Any] = {name: float(getattr(config, name)) for name in _FLOATS}
        made.append(dataclasses.replace(config, **floats))
    return list(dict.fromkeys(made))


def _run(
    data: FeatureSet,
    configs: Sequence[AdaNegConfig],
    protocols: Sequence[Protocol],
    seeds: Sequence[int],
    journal: Journal | None,
    device: torch.device | str,
    progress: bool,
) -> SweepResult:
    import pandas as pd
    from tqdm import tqdm

    known: dict[str, dict[str, Any]] = {} if journal is None else journal.records
    families = _families(configs)
    streams = list(_streams(data, protocols, seeds))
    computed, rows = 0, []
    builder = _Detectors(data, device)
    with tqdm(total=len(streams) * len(configs), unit="run", disable=not progress) as bar:
        for family in families:  # outermost, so that its detectors are made once
            for stream in streams:
                keys = {config: stream.key(config) for config in family}
                missing = [config for config in family if keys[config] not in known]
                if missing:
                    scored = stream.run(data, builder.of(missing), missing)
                    records = {keys[config]: value for config, value in scored.items()}
                    if journal is None:
                        known.update(records)
                    else:
                        journal.append(records)
                    computed += len(missing)
                bar.update(len(family))
    for config in configs:
        for protocol in protocols:
            for seed in seeds:
                for stream in _streams(data, [protocol], [seed]):
                    value = known[stream.key(config)]
                    rows.append({**_point(config, protocol), "seed": seed, **value})
    frame = pd.DataFrame(rows)
    nullable = {name: "Int64" for name in ("n_images", *BANK_COLUMNS)}
    frame = frame.astype(nullable)
    axes = [key for key in (*SETTINGS, *STREAM_AXES) if frame[key].nunique(dropna=False) > 1]
    return SweepResult(frame, tuple(axes), computed)


class _Detectors:
    """Detectors of one family, which share their text features; kept while the family stays the same."""

    def __init__(self, data: FeatureSet, device: torch.device | str) -> None:
        self.data, self.device = data, device
        self.made: dict[AdaNegConfig, AdaNeg] = {}

    def of(self, configs: Sequence[AdaNegConfig]) -> list[AdaNeg]:
        """One a score-free configuration, in order."""
        wanted = list(dict.fromkeys(map(_scoreless, configs)))
        if not set(wanted) <= set(self.made):
            self.made = {}
            first: AdaNeg | None = None
            for config in wanted:
                detector = AdaNeg(
                    self.data.text_features, self.data.n_id, self.data.logit_scale, config
                ).to(self.device)
                if first is not None:  # hundreds of megabytes, were each to hold its own
                    detector.text_features = first.text_features
                first = first or detector
                self.made[config] = detector
        return [self.made[config] for config in wanted]


@dataclass(frozen=True, eq=False)
class _Stream:
    """One OOD set met in one way."""

    split: str
    dataset: str
    ood: Tensor
    seed: int
    protocol: Protocol

    def key(self, config: AdaNegConfig) -> str:
        """Of a run: all it depends on besides the data."""
        return digest_of(
            {
                "config": dataclasses.asdict(config),
                "protocol": dataclasses.asdict(self.protocol),
                "seed": self.seed,
                "set": [self.split, self.dataset],
            }
        )

    def run(
        self, data: FeatureSet, detectors: Sequence[AdaNeg], configs: Sequence[AdaNegConfig]
    ) -> dict[AdaNegConfig, dict[str, Any]]:
        """Score the stream with every detector, and measure every configuration."""
        how = self.protocol
        part = draw_subset(len(data.id_features), len(self.ood), self.seed, how.ratio, how.n_images)
        order = stream_order(len(part.oods), len(part.ids), self.seed, how.order)
        place = detectors[0].text_features.device
        features = torch.cat(
            [
                self.ood[torch.from_numpy(part.oods)].to(place),
                data.id_features[torch.from_numpy(part.ids)].to(place),
            ]
        )
        labels = data.id_labels.cpu().numpy()[part.ids]
        label = np.concatenate([np.full(len(part.oods), -1), labels])
        scores = _side_by_side(detectors, features, order, how.batch_size)
        by_config = {detector.config: index for index, detector in enumerate(detectors)}
        measured = {}
        for config in configs:
            index = by_config[_scoreless(config)]
            pred, s_nl, s_ada = scores[index]
            conf = combined(s_nl, s_ada, config).cpu().numpy()
            metrics = ood_metrics(_unsorted(conf, order), label, _unsorted(pred.cpu().numpy(), order))
            counts = detectors[index].bank.counts
            n_id = data.n_id
            measured[config] = {
                "split": self.split,
                "dataset": self.dataset,
                "n_id": len(part.ids),
                "n_ood": len(part.oods),
                **metrics,
                "id_rows_filled": int((counts[:n_id] > 0).sum()),
                "n_id_rows": n_id,
                "negative_rows_filled": int((counts[n_id:] > 0).sum()),
                "cached": int(counts.sum()),
            }
        return measured


@torch.no_grad()
def _side_by_side(
    detectors: Sequence[AdaNeg], features: Tensor, order: np.ndarray, batch_size: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(pred, S_nl, S_ada) of each detector, (N,) each, in stream order. All read the same."""
    for detector in detectors:
        detector.reset()
    kept: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in detectors]
    for rows in torch.from_numpy(order).to(features.device).split(batch_size):
        reading = detectors[0].read(features[rows])
        for index, detector in enumerate(detectors):
            last = index == len(detectors) - 1
            scores = detector.score_reading(reading, keep=not last)
            assert scores.s_neglabel is not None and scores.s_adaptive is not None
            kept[index].append((scores.pred, scores.s_neglabel, scores.s_adaptive))
    return [tuple(map(torch.cat, zip(*parts))) for parts in kept]  # type: ignore[misc]


def _unsorted(values: np.ndarray, order: np.ndarray) -> np.ndarray:
    out = np.empty_like(values)
    out[order] = values
    return out


def _scoreless(config: AdaNegConfig) -> AdaNegConfig:
    return dataclasses.replace(config, score="combine")


def _families(configs: Sequence[AdaNegConfig]) -> list[list[AdaNegConfig]]:
    """Configurations that read the text alike, at most :data:`_TOGETHER` detectors each."""
    alike: dict[tuple[int, bool], dict[AdaNegConfig, list[AdaNegConfig]]] = {}
    for config in configs:
        same = alike.setdefault((config.groups, config.permute), {})
        same.setdefault(_scoreless(config), []).append(config)
    families = []
    for same in alike.values():
        members = list(same.values())
        for start in range(0, len(members), _TOGETHER):
            families.append([c for part in members[start : start + _TOGETHER] for c in part])
    return families


def _streams(data: FeatureSet, protocols: Sequence[Protocol], seeds: Sequence[int]) -> Iterator[_Stream]:
    n_id = len(data.id_features)
    done = set()
    for split, sets in (("near", data.near), ("far", data.far)):
        for dataset, ood in sets.items():
            for protocol in protocols:
                sizes = subset_sizes(n_id, len(ood), protocol.ratio, protocol.n_images)
                for seed in seeds:
                    # a seed that changes nothing is not run again
                    fixed = protocol.order == "id_first" and sizes == (n_id, len(ood))
                    used = 0 if fixed else seed
                    if (dataset, protocol, used) not in done:
                        done.add((dataset, protocol, used))
                        yield _Stream(split, dataset, ood, used, protocol)


def _point(config: AdaNegConfig, protocol: Protocol) -> dict[str, Any]:
    ratio = protocol.ratio
    return {
        **dataclasses.asdict(config),
        **dataclasses.asdict(protocol),
        "ratio": "as is" if ratio is None else f"{ratio[0]}:{ratio[1]}",
    }


def _check_protocols(protocols: Sequence[Protocol], seeds: Sequence[int], data: FeatureSet) -> None:
    if not protocols:
        raise ValueError("batch_sizes, orders, ratios and n_images need at least one value each")
    if len(set(protocols)) < len(protocols):
        raise ValueError("batch_sizes, orders, ratios and n_images must not repeat a value")
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"seeds must be distinct and >= 0, at least one, got {tuple(seeds)}")
    for protocol in protocols:
        if protocol.batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {protocol.batch_size}")
        if protocol.order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {protocol.order!r}")
        for name, ood in {**data.near, **data.far}.items():
            try:
                subset_sizes(len(data.id_features), len(ood), protocol.ratio, protocol.n_images)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None


def _check_folder(root: Path, data: FeatureSet, device: torch.device | str) -> None:
    """Runs that cannot be compared must not meet in one folder."""
    about = {
        "format": _FORMAT,
        "data": data_digest(data),
        "adaneg_openood": __version__,
        "torch": torch.__version__,
        "device": torch.device(device).type,
    }
    file = root / "sweep.json"
    if file.exists():
        known = json.loads(file.read_text("utf-8"))
        key = first_different(known, about, list(about))
        if key is not None:
            raise ValueError(
                f"{root}: holds runs with {key} {known.get(key)!r}, these have {about[key]!r}; "
                "name another folder"
            )
        return
    if (root / "journal.jsonl").exists():
        raise ValueError(f"{root}: has a journal but no sweep.json, so its runs are of unknown data")
    with atomic_path(file) as temporary:
        temporary.write_text(json.dumps(about, indent=1, sort_keys=True) + "\n", "utf-8")


def data_digest(data: FeatureSet) -> str:
    """SHA-256 of all features, labels and set names, 16 hex digits."""
    digest = hashlib.sha256()
    parts = {
        "text": data.text_features,
        "id": data.id_features,
        "labels": data.id_labels,
        **{f"near/{name}": part for name, part in data.near.items()},
        **{f"far/{name}": part for name, part in data.far.items()},
    }
    for name, tensor in parts.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(plain.numpy().data)
    digest.update(f"{data.n_id} {data.logit_scale!r}".encode())
    return digest.hexdigest()[:16]
