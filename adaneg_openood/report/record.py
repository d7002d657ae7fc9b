"""The record of a run: every image's score, what the banks held, and where it all came from."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adaneg_openood.evaluation import Run, StreamResult
from adaneg_openood.io.files import read_checked, write_checked

FORMAT = 4
RECORD_FILE = "report.json"
MEMORY = "memory"
_AGAIN = "run the report on the features again"


@dataclass(frozen=True)
class Example:
    """An image that the page shows.

    Attributes:
        dataset: OOD set of the stream.
        place: ``"ood high"``, ``"ood low"``, ``"id high"`` or ``"id low"`` for an end of the confidences
            of OOD or ID images; ``"memory"`` for an image that the bank holds when the stream ends.
        row: text row that the memory filed it under; -1 elsewhere.
        is_ood: whether it is an OOD image.
        conf: its confidence.
        text: what it is and what it was taken for.
        file: its name.
        picture: a small JPEG.
    """

    dataset: str
    place: str
    row: int
    is_ood: bool
    conf: float
    text: str
    file: str
    picture: bytes = field(repr=False)


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A run with what a page shows besides.

    Attributes:
        results: the run, whose banks were watched.
        provenance: versions, where the features come from and their files' hashes.
        judge: the method whose verdicts are listed and whose confidences choose the examples.
        examples: images of the judge's first streams; empty where no images are at hand.
        names: ``"id"`` or an OOD set -> names of its images, in order, where they are known.
        nearest: ``"id"`` or an OOD set -> (N, 3) text rows of the negative labels nearest to each image;
            empty without negative labels.
        negative_scores: method -> (M,) score of each negative label's own name, for some methods.
    """

    results: Run
    provenance: Mapping[str, Any]
    judge: str
    examples: tuple[Example, ...] = ()
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    nearest: Mapping[str, np.ndarray] = field(default_factory=dict)
    negative_scores: Mapping[str, np.ndarray] = field(default_factory=dict)

    def first(self, method: str, dataset: str) -> StreamResult:
        """What a method said of an OOD set's first stream."""
        return self.results.stream(method, dataset, self.results.seeds[0])

    def image_names(self, part: str, n: int) -> tuple[str, ...]:
        """Names of a part's n images, or their numbers where the names are not known."""
        return self.names.get(part) or tuple(map(str, range(n)))

    def row_name(self, row: int) -> str:
        """Name of a text row, or its number."""
        names = self.results.about.names
        return names[row] if names is not None else f"row {row}"

    def banks(self, dataset: str) -> list[tuple[list[str], StreamResult]]:
        """Methods with a bank, and the first stream of each; those that held the same are together.

        What is cached does not depend on the proxies, for one.
        """
        found: list[tuple[list[str], StreamResult]] = []
        for method in self.results.methods:
            stream = self.first(method, dataset)
            if stream.counts is None:
                continue
            for names, known in found:
                parts = ("counts", "ood_counts", "filled")
                if all(np.array_equal(getattr(stream, part), getattr(known, part)) for part in parts):
                    names.append(method)
                    break
            else:
                found.append(([method], stream))
        return found


def telling_rows(stream: StreamResult, n_classes: int, n: int) -> tuple[list[int], list[int]]:
    """The n ID rows of a bank with the most OOD images, and its n fullest negative rows."""
    assert stream.counts is not None and stream.ood_counts is not None
    counts, oods = stream.counts.astype(np.int64), stream.ood_counts.astype(np.int64)
    ids = np.lexsort((-counts[:n_classes], -oods[:n_classes]))
    negatives = n_classes + np.lexsort((-oods[n_classes:], -counts[n_classes:]))
    first, second = ([row for row in rows[:n].tolist() if counts[row]] for rows in (ids, negatives))
    return first, second


def save_record(record: RunRecord, folder: str | os.PathLike[str]) -> Path:
    """Write a record into a folder: the run, and ``report.json`` last.

    Returns:
        The JSON's path.
    """
    root = Path(folder)
    record.results.save(root)
    about = {
        "provenance": dict(record.provenance),
        "judge": record.judge,
        "names": {part: list(names) for part, names in record.names.items()},
        "nearest": {part: rows.tolist() for part, rows in record.nearest.items()},
        "negative_scores": {
            method: values.tolist() for method, values in record.negative_scores.items()
        },
        "examples": [
            {**vars(example), "picture": base64.b64encode(example.picture).decode("ascii")}
            for example in record.examples
        ],
    }
    write_checked(root / RECORD_FILE, FORMAT, about, indent=None)
    return root / RECORD_FILE


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
    about = read_checked(path, FORMAT, _AGAIN)
    examples = tuple(
        Example(**{**values, "picture": base64.b64decode(values["picture"])})
        for values in about["examples"]
    )
    return RunRecord(
        Run.load(root),
        about["provenance"],
        about["judge"],
        examples,
        {part: tuple(names) for part, names in about["names"].items()},
        {part: np.asarray(rows) for part, rows in about["nearest"].items()},
        {method: np.asarray(values) for method, values in about["negative_scores"].items()},
    )
