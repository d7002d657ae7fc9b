"""A run: every score of every method, and all that people read of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adaneg_openood.evaluation.intervals import Bootstrap, observed_and_drawn
from adaneg_openood.evaluation.metrics import CONVENTIONS
from adaneg_openood.evaluation.provenance import About
from adaneg_openood.evaluation.run_files import read_run, write_run
from adaneg_openood.evaluation.run_warnings import run_warnings
from adaneg_openood.evaluation.stream_result import StreamResult
from adaneg_openood.evaluation.streams import ORDERS, Protocol, Stream
from adaneg_openood.evaluation.tables import GROUP_ROWS, Tables, by_row, plain_rows, records_frame
from adaneg_openood.io.files import atomic_path
from adaneg_openood.io.names import harmless, harmless_table

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Run(Tables):
    """What methods said of every OOD set of a benchmark, under every seed.

    Attributes:
        about: protocol, sets, settings, digests.
        streams: (method, OOD set, seed) -> its scores. A method that the seed does not change has the
            first seed's alone; :meth:`stream` finds it under every seed.
    """

    about: About
    streams: Mapping[tuple[str, str, int], StreamResult]

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Run:
        """Read what :meth:`save` wrote. Nothing is unpickled, and everything is checked.

        Raises:
            FileNotFoundError: no run there.
            ValueError: another format, damaged, or values that cannot be; the message names the file.
        """
        return cls(*read_run(Path(folder)))

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the run: one ``.npz`` per stream, and the index ``scores.json`` with their checksums.

        Returns:
            The index.
        """
        return write_run(Path(folder), self.about, self.streams)

    @property
    def protocol(self) -> Protocol:  # type: ignore[override]
        """Seeds, batch size, order, and which images."""
        return self.about.protocol

    @property
    def splits(self) -> Mapping[str, str]:
        """OOD set -> ``"near"`` or ``"far"``, in the order of tables."""
        return self.about.splits

    @property
    def methods(self) -> list[str]:
        """Method names in the order of evaluation."""
        return list(self.about.settings)

    def stream(self, method: str, dataset: str, seed: int) -> StreamResult:
        """The scores of one stream.

        Raises:
            KeyError: there are none.
        """
        found = self.streams.get((method, dataset, seed))
        if found is None and seed in self.seeds:
            found = self.streams.get((method, dataset, self.seeds[0]))
        if found is None:
            raise KeyError(
                f"no stream of {method!r}, {dataset!r} and seed {seed}; methods are "
                f"{', '.join(self.methods)}, sets {', '.join(self.splits)}, seeds {self.seeds}"
            )
        return found

    def stream_order(self, dataset: str, seed: int) -> np.ndarray:
        """(N,) the order in which the images of a stream were scored, over concat(OOD, ID)."""
        result = self.stream(self.methods[0], dataset, seed)
        given = self.about.given_orders.get(dataset)
        stream = Stream(self.splits[dataset], dataset, seed, self.protocol, given)
        return stream.order(result.n_ood, result.n_id)

    @cached_property
    def records(self) -> pd.DataFrame:  # type: ignore[override]
        """One row per method, OOD set and seed: sizes, metrics in percent, filled ID rows of the bank.

        ``id_rows_filled`` is the number of ID rows that hold an image at the end of the stream, out of
        ``n_id_rows`` (missing without a bank).
        """
        return records_frame(
            [
                self._record(self.stream(method, dataset, seed), seed)
                for method in self.methods
                for dataset in self.splits
                for seed in self.seeds
            ]
        )

    def _record(self, result: StreamResult, seed: int) -> dict[str, Any]:
        filled = None
        if result.counts is not None:
            filled = int((result.counts[: self.about.n_classes] > 0).sum())
        return {
            "method": result.method,
            "split": result.split,
            "dataset": result.dataset,
            "seed": seed,
            "n_id": result.n_id,
            "n_ood": result.n_ood,
            **result.metrics,
            "id_rows_filled": filled,
            "n_id_rows": None if filled is None else self.about.n_classes,
        }

    def metrics(self) -> pd.DataFrame:
        """:attr:`records`: one row per method, OOD set and seed."""
        return self.records

    def bootstrap(self, n_resamples: int = 1000, level: float = 0.95) -> Bootstrap:
        """Intervals over the images and paired tests, of every method, set and group.

        Raises:
            ValueError: the protocol leaves images out, so that seeds hold different ones.
        """
        observed: dict[tuple[str, str], np.ndarray] = {}
        drawn: dict[tuple[str, str], np.ndarray] = {}
        for number, dataset in enumerate(self.splits):
            confs: dict[str, list[np.ndarray]] = {method: [] for method in self.methods}
            first = self.stream(self.methods[0], dataset, self.seeds[0])
            for (method, name, _), result in self.streams.items():
                if name == dataset:
                    if not np.array_equal(result.label, first.label):
                        raise ValueError(
                            "intervals need the same images under every seed, and this run's protocol "
                            "leaves images out"
                        )
                    confs[method].append(result.conf)
            parts = observed_and_drawn(confs, first.label, n_resamples, self.seeds[0], number)
            for kept, part in zip((observed, drawn), parts):
                kept.update({(method, dataset): values for method, values in part.items()})
        groups = {
            split: tuple(name for name, of in self.splits.items() if of == split) for split in GROUP_ROWS
        }
        return Bootstrap(observed, drawn, groups, n_resamples, level)

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """Where a number says less than it seems to, one line per method and kind."""
        return run_warnings(self.streams, self.seeds, self.batch_size, self.order)

    def format_warnings(self) -> str:
        """:attr:`warnings` as lines."""
        return "\n".join(f"warning: {harmless(text)}" for text in self.warnings)

    def format_occupancy(self) -> str:
        """One line per method with a bank: how many ID rows hold images when a stream ends."""
        lines = []
        for method in self.methods:
            rows = self.records[self.records["method"] == method].dropna(subset=["id_rows_filled"])
            if len(rows):
                filled = rows["id_rows_filled"].astype(float)
                n_rows = int(rows["n_id_rows"].iloc[0])
                lines.append(
                    f"{harmless(method)}: {filled.mean():.1f} of {n_rows} ID rows hold cached images at "
                    f"a stream's end ({filled.min():.0f} to {filled.max():.0f})"
                )
        return "\n".join(lines)

    def provenance(self) -> dict[str, Any]:
        """Where the numbers come from: methods' settings, negatives, and what the caller told."""
        negatives = self.about.data["negatives"]
        return {
            "methods": {name: dict(settings) for name, settings in self.about.settings.items()},
            "negatives": dict(negatives),
            **self.about.provenance,
        }

    def to_dict(self, bootstrap: Bootstrap | None = None) -> dict[str, Any]:
        """What :meth:`to_json` writes: protocol, conventions, summary, tables, spread, records."""
        return {
            "protocol": {
                "order": self.order,
                "order_meaning": ORDERS.get(self.order, self.order),
                "seeds": list(self.seeds),
                "batch_size": self.batch_size,
                "reset": "the detector forgets everything before each stream",
            },
            "units": "percent",
            "conventions": dict(CONVENTIONS),
            "summary": by_row(self.summary()),
            "tables": {method: by_row(self.table(method)) for method in self.methods},
            "spread": {method: by_row(self.spread(method)) for method in self.methods},
            "diagnoses": [
                {"method": method, "dataset": dataset, "seed": seed, **result.diagnosis}
                for (method, dataset, seed), result in self.streams.items()
                if result.diagnosis is not None
            ],
            "warnings": list(self.warnings),
            "records": plain_rows(self.records),
            **({} if bootstrap is None else {"bootstrap": bootstrap.to_dict()}),
            "provenance": self.provenance(),
        }

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write :attr:`records` as UTF-8 CSV, atomically; missing values are empty fields."""
        with atomic_path(path) as temporary:
            harmless_table(self.records).to_csv(temporary, index=False, encoding="utf-8")

    def to_json(self, path: str | os.PathLike[str], bootstrap: Bootstrap | None = None) -> None:
        """Write :meth:`to_dict` as UTF-8 JSON, atomically."""
        text = json.dumps(self.to_dict(bootstrap), indent=2, ensure_ascii=False, allow_nan=False)
        with atomic_path(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
