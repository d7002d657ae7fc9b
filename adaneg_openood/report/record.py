"""The record of a run: every image's score, what the banks held, and where it all came from."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adaneg_openood.evaluation import Run, StreamResult
from adaneg_openood.io.files import atomic_path, read_json_object
from adaneg_openood.io.journal import digest_of

FORMAT = 3
RECORD_FILE = "report.json"


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
    """A run with what a page shows besides.

    Attributes:
        results: the run, whose banks were watched.
        provenance: versions, settings, where the features come from and their hashes.
        examples: images with extreme confidences of ``example_method``; may be empty.
        example_method: the method they belong to, or ``""``.
        names: ``"id"`` or an OOD set -> names of its images, in order, where they are known.
    """

    results: Run
    provenance: Mapping[str, Any]
    examples: tuple[Example, ...] = ()
    example_method: str = ""
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def image_names(self, part: str, n: int) -> tuple[str, ...]:
        """Names of a part's n images, or their numbers where the names are not known."""
        return self.names.get(part) or tuple(str(index) for index in range(n))

    @property
    def methods(self) -> tuple[str, ...]:
        """Names, in the order of evaluation."""
        return tuple(self.results.methods)

    @property
    def sets(self) -> Mapping[str, str]:
        """OOD set -> near or far, in order."""
        return self.results.splits

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the stream orders."""
        return self.results.seeds

    @property
    def order(self) -> str:
        """``"mixed"`` or ``"id_first"``."""
        return self.results.order

    @property
    def batch_size(self) -> int:
        """Images per batch."""
        return self.results.batch_size

    @property
    def n_classes(self) -> int:
        """C."""
        return self.results.about.n_classes

    @property
    def id_labels(self) -> np.ndarray:
        """(n_id,) int64."""
        return np.asarray(self.labels(next(iter(self.sets)))[self.n_ood(next(iter(self.sets))) :])

    def stream_of(self, method: str, dataset: str, seed_index: int = 0) -> StreamResult:
        """What a method said of the stream of one seed."""
        return self.results.stream(method, dataset, self.seeds[seed_index])

    def conf(self, method: str, dataset: str, seed_index: int = 0) -> np.ndarray:
        """(n_ood + n_id,) confidences of the stream of one seed."""
        return self.stream_of(method, dataset, seed_index).conf

    def n_ood(self, dataset: str) -> int:
        """Number of OOD images of a set."""
        return self.stream_of(self.methods[0], dataset).n_ood

    def labels(self, dataset: str) -> np.ndarray:
        """(n_ood + n_id,) int64, -1 for OOD images."""
        return self.stream_of(self.methods[0], dataset).label

    def stream(self, dataset: str, seed_index: int = 0) -> np.ndarray:
        """(n_ood + n_id,) the order in which images were scored."""
        return self.results.stream_order(dataset, self.seeds[seed_index])

    @property
    def bank_methods(self) -> tuple[str, ...]:
        """Methods with a bank."""
        first = next(iter(self.sets))
        return tuple(name for name in self.methods if self.stream_of(name, first).counts is not None)

    def row_name(self, row: int) -> str:
        """Name of a text row, or its number."""
        names = self.results.about.names
        return names[row] if names is not None else f"row {row}"


def save_record(record: RunRecord, folder: str | os.PathLike[str]) -> Path:
    """Write a record into a folder: the run, and ``report.json`` last.

    Returns:
        The JSON's path.
    """
    root = Path(folder)
    record.results.save(root)
    about = {
        "provenance": dict(record.provenance),
        "example_method": record.example_method,
        "names": {part: list(names) for part, names in record.names.items()},
        "examples": [
            {**vars(example), "picture": base64.b64encode(example.picture).decode("ascii")}
            for example in record.examples
        ],
    }
    content = {"format": FORMAT, "checksum": digest_of(about, 64), **about}
    path = root / RECORD_FILE
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
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
    about = read_json_object(path)
    if about.pop("format", None) != FORMAT:
        raise ValueError(
            f"{path}: not a record of format {FORMAT}; run the report on the features again"
        )
    if about.pop("checksum", None) != digest_of(about, 64):
        raise ValueError(f"{path}: damaged; run the report on the features again")
    examples = tuple(
        Example(**{**values, "picture": base64.b64decode(values["picture"])})
        for values in about["examples"]
    )
    names = {part: tuple(names) for part, names in about["names"].items()}
    return RunRecord(Run.load(root), about["provenance"], examples, about["example_method"], names)
