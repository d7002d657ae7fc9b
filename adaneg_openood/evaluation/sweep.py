"""Many settings over the same features: the text is read once for all of them; resumed after a kill."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import numbers
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from adaneg_openood.data.feature_set import FeatureSet
from adaneg_openood.detectors import (
    DETECTORS,
    AdaNegConfig,
    TextDetector,
    default_settings,
    make_detector,
)
from adaneg_openood.detectors.adaneg import combined
from adaneg_openood.evaluation.metrics import ood_metrics
from adaneg_openood.evaluation.provenance import describe_data, made_with
from adaneg_openood.evaluation.replaying import replay_streams
from adaneg_openood.evaluation.stream_result import StreamResult
from adaneg_openood.evaluation.streams import Protocol, Ratio, Stream, streams_of
from adaneg_openood.evaluation.sweep_result import BANK_COLUMNS, STREAM_AXES, SweepResult
from adaneg_openood.io.checks import unknown_key
from adaneg_openood.io.digests import digest_of
from adaneg_openood.io.files import Journal, read_json_object, write_json
from adaneg_openood.io.locks import first_holds
from adaneg_openood.io.processes import ALONE, Group

_FORMAT = 1
_TOGETHER = 16  # detectors at a time: each holds a bank of its own


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
    device = torch.device(device)
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
        floats = {name: getattr(config, name) for name, value in known.items() if type(value) is float}
        for name, value in floats.items():
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise TypeError(f"{method}: {name} must be a number, got {value!r}")
            floats[name] = float(value)
        made.append(dataclasses.replace(config, **floats))
    return list(dict.fromkeys(made))


def _run(
    data: FeatureSet,
    method: str,
    configs: Sequence[Any],
    protocols: Sequence[Protocol],
    known: dict[str, dict[str, Any]],
    journal: Journal | None,
    device: torch.device,
    progress: bool,
    group: Group,
) -> SweepResult:
    import pandas as pd
    from tqdm import tqdm

    met = dict.fromkeys(
        stream for protocol in protocols for _, stream in _distinct(data, protocol, method)
    )
    jobs = []
    for family in _families(configs):  # outermost, so that its detectors are made once
        for stream in met:
            keys = {config: _run_key(stream, method, config) for config in family}
            missing = {config: key for config, key in keys.items() if key not in known}
            if missing:
                jobs.append((family, stream, missing))
    before = list(itertools.accumulate((len(missing) for *_, missing in jobs), initial=0))

    @functools.lru_cache(maxsize=1)
    def detectors(family: tuple[Any, ...]) -> dict[Any, TextDetector]:
        made: dict[Any, TextDetector] = {}
        for config in dict.fromkeys(map(_scoreless, family)):
            settings = dataclasses.asdict(config)
            rows = data.text_features, data.n_id, data.logit_scale
            made[config] = make_detector(method, *rows, settings).to(device)
            # hundreds of megabytes, were each to hold its own
            made[config].text_features = next(iter(made.values())).text_features
        return made

    def run(job: tuple[tuple[Any, ...], Stream, dict[Any, str]]) -> dict[str, dict[str, Any]]:
        family, stream, missing = job
        made = detectors(family)
        wanted = list(dict.fromkeys(map(_scoreless, missing)))
        named = {str(number): made[config] for number, config in enumerate(wanted)}
        results = replay_streams(data, named, [stream], device=device, keep_parts=True)
        found = dict(zip(wanted, results))
        records = {
            key: _record(found[_scoreless(config)], config, data.n_id) for config, key in missing.items()
        }
        if journal is not None:
            journal.append(records)
        return records

    done = len(met) * len(configs) - before[-1]
    hidden = not (progress and group.is_first)
    with tqdm(total=done + before[-1], initial=done, unit="run", disable=hidden) as bar:
        for records in group.share(jobs, run, lambda begun: bar.update(done + before[begun] - bar.n)):
            known.update(records)
        bar.update(done + before[-1] - bar.n)
    rows = [
        {**_point(config, protocol), "seed": seed, **known[_run_key(stream, method, config)]}
        for config in configs
        for protocol in protocols
        for seed, stream in sorted(
            _distinct(data, protocol, method), key=lambda one: protocol.seeds.index(one[0])
        )
    ]
    frame = pd.DataFrame(rows).astype(dict.fromkeys(("n_images", *BANK_COLUMNS), "Int64"))
    settings = tuple(default_settings(method))
    axes = [key for key in (*settings, *STREAM_AXES) if frame[key].nunique(dropna=False) > 1]
    return SweepResult(frame, tuple(axes), before[-1], settings)


def _distinct(data: FeatureSet, protocol: Protocol, method: str) -> Iterator[tuple[int, Stream]]:
    """Every seed's stream of every set; a seed that changes nothing has the stream of seed 0."""
    keeps_state = DETECTORS[method].info.keeps_state
    for stream in streams_of(data, protocol):
        sizes = len(getattr(data, stream.split)[stream.dataset]), len(data.id_features)
        own = stream.depends_on_seed(*sizes, keeps_state)
        yield stream.seed, stream if own else dataclasses.replace(stream, seed=0)


def _families(configs: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """Configurations that read the text alike, at most :data:`_TOGETHER` detectors each."""
    alike: dict[tuple[Any, Any], dict[Any, list[Any]]] = {}
    for config in configs:
        key = getattr(config, "groups", None), getattr(config, "permute", None)
        alike.setdefault(key, {}).setdefault(_scoreless(config), []).append(config)
    for same in alike.values():
        members = list(same.values())
        for start in range(0, len(members), _TOGETHER):
            yield tuple(itertools.chain.from_iterable(members[start : start + _TOGETHER]))


def _scoreless(config: Any) -> Any:
    """Configurations that differ in the score alone are one detector."""
    return dataclasses.replace(config, score="combine") if isinstance(config, AdaNegConfig) else config


def _run_key(stream: Stream, method: str, config: Any) -> str:
    """Of a run: all it depends on besides the data."""
    how = dataclasses.asdict(stream.protocol)
    del how["seeds"]
    return digest_of(
        {
            "method": method,
            "config": dataclasses.asdict(config),
            "protocol": how,
            "seed": stream.seed,
            "set": [stream.split, stream.dataset],
        }
    )


def _record(result: StreamResult, config: Any, n_id: int) -> dict[str, Any]:
    bank: dict[str, Any] = dict.fromkeys(BANK_COLUMNS)
    if result.counts is not None:
        filled, cached = result.counts > 0, int(result.counts.sum())
        numbers = int(filled[:n_id].sum()), n_id, int(filled[n_id:].sum()), cached
        bank = dict(zip(BANK_COLUMNS, numbers))
    metrics = result.metrics
    if isinstance(config, AdaNegConfig):
        assert result.s_neglabel is not None and result.s_adaptive is not None
        s_nl, s_ada = torch.from_numpy(result.s_neglabel), torch.from_numpy(result.s_adaptive)
        metrics = ood_metrics(combined(s_nl, s_ada, config), result.label, result.pred)
    where = {name: getattr(result, name) for name in ("split", "dataset", "n_id", "n_ood")}
    return {**where, **metrics, **bank}


def _point(config: Any, protocol: Protocol) -> dict[str, Any]:
    ratio = protocol.ratio
    return {
        **dataclasses.asdict(config),
        **{axis: getattr(protocol, axis) for axis in STREAM_AXES},
        "ratio": "as is" if ratio is None else f"{ratio[0]}:{ratio[1]}",
    }


def _written_down(
    root: Path, data: FeatureSet, method: str, device: torch.device
) -> dict[str, dict[str, Any]]:
    """The runs in a folder, of however many ranks; runs that cannot be compared must not meet there."""
    digest = digest_of(describe_data(data))
    about = {"format": _FORMAT, "data": digest, "method": method, **made_with(device)}
    file = root / "sweep.json"
    if not file.exists():
        if (root / "journal.jsonl").exists():
            raise ValueError(f"{root}: has a journal but no sweep.json, so its runs are of unknown data")
        write_json(file, about, indent=1, sort_keys=True)
    known = read_json_object(file)
    key = next((key for key in about if known.get(key) != about[key]), None)
    if key is not None:
        raise ValueError(
            f"{root}: holds runs with {key} {known.get(key)!r}, these have {about[key]!r}; "
            "name another folder"
        )
    found: dict[str, dict[str, Any]] = {}
    for journal in sorted(root.glob("journal*.jsonl")):
        found.update(Journal(journal).records)
    return found
