"""Saved runs are checked before they are used: a stranger may have written them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adaneg_openood.evaluation.provenance import About
from adaneg_openood.evaluation.stream_result import StreamResult
from adaneg_openood.evaluation.streams import SPLITS, Protocol

Streams = Mapping[tuple[str, str, int], StreamResult]


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def checked_about(index: Path, value: Any) -> About:
    """The head of a saved run.

    Raises:
        ValueError: something in it cannot be; the message names the file and the key.
    """

    def need(good: bool, key: str, what: str) -> None:
        if not good:
            raise ValueError(f"{index}: {key} must be {what}; run the evaluation again")

    need(isinstance(value, dict), "about", "an object")
    protocol, splits, n_classes = (value.get(key) for key in ("protocol", "splits", "n_classes"))
    need(isinstance(protocol, dict), "protocol", "an object")
    try:
        ratio = protocol.get("ratio")
        made = Protocol(**{**protocol, "ratio": None if ratio is None else (ratio[0], ratio[1])})
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise ValueError(f"{index}: protocol: {error}") from error
    need(
        isinstance(splits, dict) and bool(splits) and all(of in SPLITS for of in splits.values()),
        "splits",
        "OOD set -> near or far, at least one",
    )
    settings, data = value.get("settings"), value.get("data")
    for key, mapping in (("settings", settings), ("data", data)):
        need(
            isinstance(mapping, dict) and all(isinstance(one, dict) for one in mapping.values()),
            key,
            "an object of objects",
        )
    need(bool(settings), "settings", "one entry per method, at least one")
    for part in ("text", "negatives", "id", *(f"{of}/{name}" for name, of in splits.items())):
        rows = data.get(part, {}).get("rows")
        need(_is_count(rows), f"data of {part}", "there, with its number of rows")
    n_rows = data["text"]["rows"]
    need(_is_count(n_classes) and 1 <= n_classes <= n_rows, "n_classes", f"in [1, {n_rows}]")
    states = value.get("states")
    need(
        isinstance(states, dict)
        and set(states) == set(settings)
        and all(one is None or isinstance(one, str) for one in states.values()),
        "states",
        "one digest per method",
    )
    names = value.get("names")
    need(
        names is None
        or (isinstance(names, list) and len(names) == n_rows and all(isinstance(n, str) for n in names)),
        "names",
        f"{n_rows} texts, one per text row",
    )
    made_with, provenance = value.get("made_with"), value.get("provenance")
    need(isinstance(made_with, dict), "made_with", "an object")
    need(isinstance(provenance, dict), "provenance", "an object")
    orders = value.get("given_orders")
    need(isinstance(orders, dict) and set(orders) <= set(splits), "given_orders", "of the run's sets")
    for name, order in orders.items():
        n = data["id"]["rows"] + data[f"{splits[name]}/{name}"]["rows"]
        need(
            isinstance(order, list)
            and all(type(row) is int for row in order)
            and sorted(order) == list(range(n)),
            f"given_orders of {name}",
            f"every index from 0 to {n - 1} once",
        )
    return About(
        protocol=made,
        splits=splits,
        n_classes=n_classes,
        names=None if names is None else tuple(names),
        settings=settings,
        states=states,
        data=data,
        made_with=made_with,
        given_orders={name: np.asarray(order) for name, order in orders.items()},
        provenance=provenance,
    )


def checked_result(result: StreamResult, about: About, path: Path | None = None) -> None:
    """Raise a ValueError unless a stream's scores are what this run's can be."""

    def need(good: Any, key: str, what: str) -> None:
        if not good:
            where = path or f"{result.method}, {result.dataset}, seed {result.seed}"
            raise ValueError(f"{where}: {key} must be {what}; run the evaluation again")

    n_id, n_ood = about.protocol.sizes(
        about.data["id"]["rows"], about.data[f"{about.splits[result.dataset]}/{result.dataset}"]["rows"]
    )
    n, n_classes, n_rows = n_id + n_ood, about.n_classes, about.data["text"]["rows"]
    need(result.split == about.splits[result.dataset], "split", about.splits[result.dataset])
    for name in ("label", "pred"):
        values = getattr(result, name)
        need(values is not None and values.dtype.kind == "i", name, "integers")
        need(values.shape == (n,), name, f"of shape ({n},), got {values.shape}")
    need((result.label[:n_ood] == -1).all(), "label", f"-1 for the first {n_ood} images, which are OOD")
    for name, low in (("label", 0), ("pred", 0)):
        values = getattr(result, name)[n_ood:] if name == "label" else getattr(result, name)
        need(((values >= low) & (values < n_classes)).all(), name, f"classes in [0, {n_classes})")
    for name in ("conf", "s_neglabel", "s_adaptive"):
        values = getattr(result, name)
        if values is None and name != "conf":
            continue
        need(values is not None and values.dtype.kind == "f", name, "floating point")
        need(values.shape == (n,), name, f"of shape ({n},), got {values.shape}")
        need(np.isfinite(values).all(), name, "finite")
    counts, oods, filled = result.counts, result.ood_counts, result.filled
    for name, values in (("counts", counts), ("ood_counts", oods)):
        if values is not None:
            need(values.dtype.kind == "i" and values.shape == (n_rows,), name, f"{n_rows} integers")
            need((values >= 0).all() and values.sum() <= n, name, "a number of images per row")
    if oods is not None:
        need(counts is not None and (oods <= counts).all(), "ood_counts", "at most counts")
    if filled is not None:
        batches = -(-n // about.protocol.batch_size)
        good = filled.dtype.kind == "i" and filled.shape == (batches, 2)
        need(good, "filled", f"({batches}, 2) integers")
        most = (n_classes, n_rows - n_classes)
        need((filled >= 0).all() and (filled <= most).all(), "filled", f"rows, at most {most}")
    told = result.diagnosis
    need(told is None or isinstance(told, dict), "diagnosis", "an object")
    warned = {} if told is None else told.get("warnings", {})
    need(
        isinstance(warned, dict) and all(isinstance(text, str) for text in warned.values()),
        "diagnosis",
        "with warnings that are texts",
    )


def check_run(index: Path, about: About, streams: Streams) -> None:
    """Raise a ValueError unless every method has every set, and all agree on the images' labels."""
    seeds = about.protocol.seeds
    for dataset, split in about.splits.items():
        whole = about.protocol.takes_all(
            about.data["id"]["rows"], about.data[f"{split}/{dataset}"]["rows"]
        )
        for method in about.settings:
            there = [seed for seed in seeds if (method, dataset, seed) in streams]
            # one stream stands for all seeds where these change nothing
            if there != list(seeds) and not (whole and there == [seeds[0]]):
                raise ValueError(
                    f"{index}: scores of {method!r} on {dataset!r} are there for the seeds {there}, not "
                    f"for {list(seeds)}; run the evaluation again"
                )
        for seed in seeds:
            met = [streams.get((method, dataset, seed)) for method in about.settings]
            labels = [result.label for result in met if result is not None]
            if any(not np.array_equal(one, labels[0]) for one in labels):
                raise ValueError(f"{index}: methods disagree on the labels of {dataset!r}")
