"""Many settings over the same features: the text is read once for all of them; resumed after a kill."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from adaneg_openood._version import __version__
from adaneg_openood.data.feature_set import FeatureSet, named_tensors
from adaneg_openood.detectors import DETECTORS, AdaNegConfig, default_settings
from adaneg_openood.evaluation.streams import Protocol, Stream, streams_of
from adaneg_openood.evaluation.subsets import Ratio
from adaneg_openood.evaluation.sweep_result import BANK_COLUMNS, STREAM_AXES, SweepResult
from adaneg_openood.evaluation.sweep_runs import (
    Detectors,
    distinct_streams,
    families,
    measured,
    run_key,
)
from adaneg_openood.io.checks import unknown_key
from adaneg_openood.io.digests import tensor_bytes
from adaneg_openood.io.files import Journal, atomic_path, read_json_object
from adaneg_openood.io.locks import first_holds
from adaneg_openood.io.processes import ALONE, Group

__all__ = ["SweepResult", "data_digest", "grid_configs", "sweep"]

logger = logging.getLogger(__name__)

_FORMAT = 1


def sweep(
    data: FeatureSet,
    grid: Mapping[str, Sequence[Any]],
    *,
    method: str = "adaneg",
    base: Any = None,
    released: bool = False,
    seeds: Sequence[int] = (0, 1, 2),
    batch_sizes: Sequence[int] = (256,),
    orders: Sequence[str] = ("mixed",),
    ratios: Sequence[Ratio | None] = (None,),
    n_images: Sequence[int | None] = (None,),
    folder: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
    group: Group = ALONE,
) -> SweepResult:
    """Run a method with every combination of settings, protocols and seeds on every OOD set.

    Each run equals one of :func:`~adaneg_openood.evaluation.replay` with the same settings, bit for bit.
    Configurations meet each stream side by side, so that what the text says of a batch is computed once
    for all that group the negatives alike; those that differ in ``score`` alone are one run.

    With ``folder``, runs are written down as soon as they are there. Called again, after a kill or with
    a larger grid, it computes what is missing; the files it writes at the end are the same bytes.

    Args:
        data: the features.
        grid: setting of the method -> its values; what is not in it is as in ``base``.
        method: a key of :data:`~adaneg_openood.detectors.DETECTORS`.
        base: an AdaNegConfig, or a mapping of settings; None is the published configuration.
        released: run each as the released code does, see ``AdaNegConfig.released``; AdaNeg alone.
        seeds: of stream orders, and of the choice of images where ratio or number leave some out.
        batch_sizes, orders, ratios, n_images: protocols, see :class:`Protocol`.
        folder: journal and results; None keeps nothing.
        device: where features and detectors are put.
        progress: show a bar.
        group: ranks that share the streams. Each keeps a journal of its own in the folder, and rank 0
            writes the results, which are the same bytes for any number of ranks.

    Raises:
        ValueError, TypeError: an unknown or impossible setting, more images than there are, or a folder
            with runs on other data, by another version of this package or of torch.
        BlockingIOError: another process is at work in the folder.
    """
    configs = grid_configs(grid, base, released, method)
    points = list(itertools.product(batch_sizes, orders, ratios, n_images))
    if not points or len(set(points)) < len(points):
        raise ValueError("batch_sizes, orders, ratios and n_images need values, none of them twice")
    protocols = [Protocol(tuple(seeds), *point) for point in points]
    for protocol in protocols:
        list(streams_of(data, protocol))  # more images than there are: an error before the first stream
    if folder is None:
        return _run(data, method, configs, protocols, {}, None, device, progress, group)
    root = Path(folder)
    with first_holds(group, root / "journal.jsonl"):
        known = group.first(lambda: _written_down(root, data, method, device))
        journal = Journal(root / f"journal{f'-{group.rank}' if group.rank else ''}.jsonl")
        result = _run(data, method, configs, protocols, known, journal, device, progress, group)
        group.first(lambda: [str(file) for file in result.write(root)])
        return result


def grid_configs(
    grid: Mapping[str, Sequence[Any]],
    base: Any = None,
    released: bool = False,
    method: str = "adaneg",
) -> list[Any]:
    """Every combination, in the order of the grid, each once, as frozen dataclasses of settings.

    Raises:
        ValueError, TypeError: a setting that the method does not have or allow, or without values.
    """
    known = default_settings(method)
    if released and method != "adaneg":
        raise ValueError(f"released is for adaneg, not for {method}")
    for key, values in grid.items():
        if key not in known:
            raise ValueError(f"grid: {unknown_key(key, tuple(known))}")
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ValueError(f"grid: {key} must have a list of values, got {values!r}")
    # a method whose constructor takes its settings one by one has no class of them
    make: Any = DETECTORS[method].config_class or dataclasses.make_dataclass(
        "Settings", list(known), frozen=True
    )
    given = {} if base is None else dict(base if isinstance(base, Mapping) else vars(base))
    made = []
    for values in itertools.product(*grid.values()):
        settings = {**known, **given, **dict(zip(grid, values))}
        config = AdaNegConfig.released(**settings) if released else make(**settings)
        # 0 and 0.0 are one value, and must look the same in the files
        floats = {
            name: float(getattr(config, name)) for name, value in known.items() if type(value) is float
        }
        made.append(dataclasses.replace(config, **floats))
    return list(dict.fromkeys(made))


def _run(
    data: FeatureSet,
    method: str,
    configs: Sequence[Any],
    protocols: Sequence[Protocol],
    known: dict[str, dict[str, Any]],
    journal: Journal | None,
    device: torch.device | str,
    progress: bool,
    group: Group,
) -> SweepResult:
    import pandas as pd
    from tqdm import tqdm

    met = list(
        dict.fromkeys(stream for protocol in protocols for _, stream in distinct_streams(data, protocol))
    )
    jobs: list[tuple[Stream, dict[Any, str]]] = []
    for family in families(configs):  # outermost, so that its detectors are made once
        for stream in met:
            keys = {config: run_key(stream, method, config) for config in family}
            missing = {config: key for config, key in keys.items() if key not in known}
            if missing:
                jobs.append((stream, missing))
    before = list(itertools.accumulate((len(missing) for _, missing in jobs), initial=0))
    builder = Detectors(data, method, device)

    def run(job: tuple[Stream, dict[Any, str]]) -> dict[str, dict[str, Any]]:
        stream, missing = job
        scored = measured(data, stream, builder, list(missing))
        records = {missing[config]: value for config, value in scored.items()}
        if journal is not None:
            journal.append(records)
        return records

    done = len(met) * len(configs) - before[-1]
    bar = tqdm(
        total=done + before[-1], initial=done, unit="run", disable=not (progress and group.is_first)
    )
    with bar:
        for records in group.share(jobs, run, lambda begun: bar.update(done + before[begun] - bar.n)):
            known.update(records)
        bar.update(done + before[-1] - bar.n)
    rows = []
    for config in configs:
        for protocol in protocols:
            # seed by seed, each with every set
            by_seed = sorted(
                distinct_streams(data, protocol), key=lambda one: protocol.seeds.index(one[0])
            )
            for seed, stream in by_seed:
                value = known[run_key(stream, method, config)]
                rows.append({**_point(config, protocol), "seed": seed, **value})
    frame = pd.DataFrame(rows)
    nullable = {name: "Int64" for name in ("n_images", *BANK_COLUMNS)}
    frame = frame.astype(nullable)
    settings = tuple(default_settings(method))
    axes = [key for key in (*settings, *STREAM_AXES) if frame[key].nunique(dropna=False) > 1]
    return SweepResult(frame, tuple(axes), before[-1], settings)


def _point(config: Any, protocol: Protocol) -> dict[str, Any]:
    ratio = protocol.ratio
    return {
        **dataclasses.asdict(config),
        **{axis: getattr(protocol, axis) for axis in STREAM_AXES},
        "ratio": "as is" if ratio is None else f"{ratio[0]}:{ratio[1]}",
    }


def _written_down(
    root: Path, data: FeatureSet, method: str, device: torch.device | str
) -> dict[str, dict[str, Any]]:
    """The runs in a folder, of however many ranks."""
    _check_folder(root, data, method, device)
    known: dict[str, dict[str, Any]] = {}
    for file in sorted(root.glob("journal*.jsonl")):
        known.update(Journal(file).records)
    return known


def _check_folder(root: Path, data: FeatureSet, method: str, device: torch.device | str) -> None:
    """Runs that cannot be compared must not meet in one folder."""
    about = {
        "format": _FORMAT,
        "data": data_digest(data),
        "method": method,
        "adaneg_openood": __version__,
        "torch": torch.__version__,
        "device": torch.device(device).type,
    }
    file = root / "sweep.json"
    if file.exists():
        known = read_json_object(file)
        key = next((key for key in about if known.get(key) != about[key]), None)
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
    for name, tensor in named_tensors(data):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor_bytes(tensor))
    digest.update(f"{data.n_id} {data.logit_scale!r}".encode())
    return digest.hexdigest()[:16]
