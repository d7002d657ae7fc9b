"""The record of a run: every image's score, what the banks held, and where it all came from."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from adaneg_openood.evaluation import Results, ood_metrics, stream_order
from adaneg_openood.evaluation.results import records_frame
from adaneg_openood.io.digests import file_digest
from adaneg_openood.io.files import atomic_path

FORMAT = 1
RECORD_FILE = "run.json"


@dataclass(frozen=True, eq=False)
class StreamRecord:
    """What one method gave on one OOD set, in S streams (S = 1 where the order changes nothing).

    Attributes:
        conf: (S, n_ood + n_id) float, concat(OOD, ID), larger = more ID.
        pred: (S, n_ood + n_id) int32, predicted ID class.
        counts: (S, C + M) int32, images in each row of the bank at the end; None without a bank.
        ood_counts: (S, C + M) int32, how many of them are OOD images.
        filled: (S, batches, 2) int32, ID and negative rows that hold an image, after each batch.
    """

    conf: np.ndarray
    pred: np.ndarray
    counts: np.ndarray | None = None
    ood_counts: np.ndarray | None = None
    filled: np.ndarray | None = None


@dataclass(frozen=True)
class Example:
    """An image at one end of the confidences.

    Attributes:
        dataset: OOD set of the stream.
        side: ``"ood"`` or ``"id"``.
        end: ``"high"`` or ``"low"``.
        conf: its confidence.
        text: what it is and what it was taken for.
        file: its name.
        picture: a PNG.
    """

    dataset: str
    side: str
    end: str
    conf: float
    text: str
    file: str
    picture: bytes = field(repr=False)


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A run of several methods over every OOD set of a benchmark.

    Attributes:
        methods: names, in the order of evaluation.
        sets: OOD set -> near or far, in order.
        streams: (method, OOD set) -> its record.
        id_labels: (n_id,) int64.
        n_classes: C.
        names: C + M label names, or None.
        seeds: of the stream orders.
        order: ``"mixed"`` or ``"id_first"``.
        batch_size: images a batch.
        provenance: versions, settings, where the features come from and their hashes.
        examples: images with extreme confidences of ``example_method``; may be empty.
        example_method: the method they belong to, or ``""``.
    """

    methods: tuple[str, ...]
    sets: Mapping[str, str]
    streams: Mapping[tuple[str, str], StreamRecord]
    id_labels: np.ndarray
    n_classes: int
    names: tuple[str, ...] | None
    seeds: tuple[int, ...]
    order: str
    batch_size: int
    provenance: Mapping[str, Any]
    examples: tuple[Example, ...] = ()
    example_method: str = ""

    def conf(self, method: str, dataset: str, seed_index: int = 0) -> np.ndarray:
        """(n_ood + n_id,) confidences of the stream of one seed."""
        every = self.streams[method, dataset].conf
        return np.asarray(every[min(seed_index, len(every) - 1)])

    def n_ood(self, dataset: str) -> int:
        """Number of OOD images of a set."""
        return int(self.streams[self.methods[0], dataset].conf.shape[1] - len(self.id_labels))

    def labels(self, dataset: str) -> np.ndarray:
        """(n_ood + n_id,) int64, -1 for OOD images."""
        return np.concatenate([np.full(self.n_ood(dataset), -1), self.id_labels])

    def stream(self, dataset: str, seed_index: int = 0) -> np.ndarray:
        """(n_ood + n_id,) the order in which images were scored."""
        seed = self.seeds[seed_index]
        return stream_order(self.n_ood(dataset), len(self.id_labels), seed, self.order)

    @property
    def bank_methods(self) -> tuple[str, ...]:
        """Methods with a bank."""
        first = next(iter(self.sets))
        return tuple(name for name in self.methods if self.streams[name, first].counts is not None)

    @cached_property
    def results(self) -> Results:
        """The metrics, in percent."""
        rows: list[dict[str, Any]] = []
        for method in self.methods:
            for dataset, split in self.sets.items():
                record, labels = self.streams[method, dataset], self.labels(dataset)
                measured = [ood_metrics(c, labels, p) for c, p in zip(record.conf, record.pred)]
                for index, seed in enumerate(self.seeds):
                    which = min(index, len(measured) - 1)
                    filled = None
                    if record.counts is not None:
                        filled = int((record.counts[which][: self.n_classes] > 0).sum())
                    rows.append(
                        {
                            "method": method,
                            "split": split,
                            "dataset": dataset,
                            "seed": seed,
                            "n_id": len(self.id_labels),
                            "n_ood": self.n_ood(dataset),
                            **measured[which],
                            "id_rows_filled": filled,
                            "n_id_rows": None if filled is None else self.n_classes,
                        }
                    )
        return Results(records_frame(rows), self.order, self.seeds, self.batch_size)

    def row_name(self, row: int) -> str:
        """Name of a text row, or its number."""
        return self.names[row] if self.names is not None else f"row {row}"


def save_record(record: RunRecord, folder: str | os.PathLike[str]) -> Path:
    """Write a record into a folder: ``run.json`` and the ``.npz`` file it names.

    The JSON comes last and holds the other's checksum, so a folder is a whole record or none.

    Returns:
        The JSON's path.
    """
    root = Path(folder)
    arrays: dict[str, np.ndarray] = {"id_labels": record.id_labels}
    for m, method in enumerate(record.methods):
        for d, dataset in enumerate(record.sets):
            for name, value in vars(record.streams[method, dataset]).items():
                if value is not None:
                    arrays[f"{name}/{m}/{d}"] = value
    for index, example in enumerate(record.examples):
        arrays[f"picture/{index}"] = np.frombuffer(example.picture, dtype=np.uint8)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    digest = hashlib.sha256(content.getbuffer()).hexdigest()
    # a name of its own, so that an older run.json never points at newer scores
    target = root / f"scores-{digest[:12]}.npz"
    with atomic_path(target) as temporary:
        temporary.write_bytes(content.getbuffer())
    about = {
        "format": FORMAT,
        "scores": {"file": target.name, "sha256": digest},
        "methods": list(record.methods),
        "sets": dict(record.sets),
        "n_classes": record.n_classes,
        "names": None if record.names is None else list(record.names),
        "seeds": list(record.seeds),
        "order": record.order,
        "batch_size": record.batch_size,
        "provenance": dict(record.provenance),
        "example_method": record.example_method,
        "examples": [
            {key: value for key, value in vars(example).items() if key != "picture"}
            for example in record.examples
        ],
    }
    path = root / RECORD_FILE
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for old in root.glob("scores-*.npz"):
        if old != target:
            old.unlink()
    return path


def load_record(folder: str | os.PathLike[str]) -> RunRecord:
    """Read what :func:`save_record` wrote. Nothing is unpickled.

    Raises:
        FileNotFoundError: no record there.
        ValueError: another format, or a damaged file; the message names it.
    """
    root = Path(folder)
    path = root / RECORD_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{root}: holds no {RECORD_FILE}, so it is no run's record")
    try:
        about = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON, {error}; run the report on the features again") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(
            f"{path}: not a record of format {FORMAT}; run the report on the features again"
        )
    scores = root / Path(about["scores"]["file"]).name
    if not scores.is_file() or file_digest(scores) != about["scores"]["sha256"]:
        raise ValueError(f"{scores}: missing or damaged; run the report on the features again")
    with np.load(scores, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    streams = {
        (method, dataset): StreamRecord(
            **{
                name: arrays.get(f"{name}/{m}/{d}")  # type: ignore[arg-type]
                for name in ("conf", "pred", "counts", "ood_counts", "filled")
            }
        )
        for m, method in enumerate(about["methods"])
        for d, dataset in enumerate(about["sets"])
    }
    examples = tuple(
        Example(**values, picture=arrays[f"picture/{index}"].tobytes())
        for index, values in enumerate(about["examples"])
    )
    return RunRecord(
        methods=tuple(about["methods"]),
        sets=about["sets"],
        streams=streams,
        id_labels=arrays["id_labels"],
        n_classes=about["n_classes"],
        names=None if about["names"] is None else tuple(about["names"]),
        seeds=tuple(about["seeds"]),
        order=about["order"],
        batch_size=about["batch_size"],
        provenance=about["provenance"],
        examples=examples,
        example_method=about["example_method"],
    )
