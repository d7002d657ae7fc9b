"""A run: every score of every method, and all that people read of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adaneg_openood.evaluation.doubts import doubts
from adaneg_openood.evaluation.intervals import BOOTSTRAPPED, Bootstrap, check_draws, resampled
from adaneg_openood.evaluation.metrics import CONVENTIONS
from adaneg_openood.evaluation.provenance import About
from adaneg_openood.evaluation.run_files import StreamFiles, read_run
from adaneg_openood.evaluation.stream_result import StreamResult
from adaneg_openood.evaluation.streams import ORDERS, Protocol, Stream
from adaneg_openood.evaluation.tables import (
    GROUP_ROWS,
    RECORD_COLUMNS,
    TABLE_METRICS,
    by_row,
    over_seeds,
    plain_rows,
    with_spread,
)
from adaneg_openood.io.files import atomic_path, write_json
from adaneg_openood.io.names import harmless, harmless_table

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Run:
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
        files = StreamFiles(folder, self.about)
        for result in self.streams.values():
            files.save(result)
        return files.finish(self.streams)

    @property
    def protocol(self) -> Protocol:
        """Seeds, batch size, order, and which images."""
        return self.about.protocol

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the streams."""
        return self.protocol.seeds

    @property
    def order(self) -> str:
        """``"mixed"`` or ``"id_first"``."""
        return self.protocol.order

    @property
    def batch_size(self) -> int:
        """Images per batch."""
        return self.protocol.batch_size

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
    def records(self) -> pd.DataFrame:
        """One row per method, OOD set and seed: sizes, metrics in percent, filled ID rows of the bank.

        ``id_rows_filled`` is the number of ID rows that hold an image at the end of the stream, out of
        ``n_id_rows`` (missing without a bank).
        """
        import pandas as pd

        rows = [
            self._record(self.stream(method, dataset, seed), seed)
            for method in self.methods
            for dataset in self.splits
            for seed in self.seeds
        ]
        frame = pd.DataFrame(rows, columns=list(RECORD_COLUMNS))
        # nullable integers: a method without a bank has no rows to fill
        return frame.astype({"id_rows_filled": "Int64", "n_id_rows": "Int64"})

    def _record(self, result: StreamResult, seed: int) -> dict[str, Any]:
        n_classes = self.about.n_classes
        bank = {}
        if result.counts is not None:
            filled = int((result.counts[:n_classes] > 0).sum())
            bank = {"id_rows_filled": filled, "n_id_rows": n_classes}
        where = {name: getattr(result, name) for name in ("method", "split", "dataset", "n_id", "n_ood")}
        return {**where, "seed": seed, **result.metrics, **bank}

    @property
    def _groups(self) -> dict[str, list[str]]:
        """Row of a table -> the sets that it is the mean of."""
        groups = {
            row: [name for name, of in self.splits.items() if of == split]
            for split, row in GROUP_ROWS.items()
        }
        return {row: names for row, names in groups.items() if names}

    def _over_seeds(self, method: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Means and deviations, in a table's rows and columns."""
        if method not in self.methods:
            raise KeyError(f"no method {method!r}; there are {', '.join(map(repr, self.methods))}")
        records = self.records[self.records["method"] == method]
        means, spreads = over_seeds(records, self._groups)
        rows = [row for group, names in self._groups.items() for row in (*names, group)]
        metrics = list(TABLE_METRICS)
        return means.loc[rows, [*metrics, "n_id", "n_ood"]], spreads.loc[rows, metrics]

    def table(self, method: str) -> pd.DataFrame:
        """Means over the seeds in OpenOOD's layout.

        Rows: each near set, ``nearood``, each far set, ``farood``; a split without sets has no row.
        Columns: the metrics in percent, ``n_id`` and ``n_ood``. A group row holds the mean of its
        sets' metrics, and the sum of their ``n_ood``.

        Raises:
            KeyError: unknown method.
        """
        return self._over_seeds(method)[0]

    def spread(self, method: str) -> pd.DataFrame:
        """Standard deviation over the seeds (ddof = 1), rows as in :meth:`table`, metrics only.

        A group row holds the deviation of the group's mean per seed, not the mean of deviations.
        With one seed every entry is 0.

        Raises:
            KeyError: unknown method.
        """
        return self._over_seeds(method)[1].fillna(0.0)  # one seed has no deviation: pandas says NaN

    def summary(self) -> pd.DataFrame:
        """One row per method: near and far means of both FPR@95 and AUROC, and ACC over all sets."""
        import pandas as pd

        rows = {}
        for method in self.methods:
            table = self.table(method)
            rows[method] = {
                f"{split} {metric}": table.loc[group, metric]
                for split, group in GROUP_ROWS.items()
                if group in table.index
                for metric in BOOTSTRAPPED
            }
            rows[method]["ACC"] = table.drop(index=list(self._groups))["ACC"].mean()
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")

    def bootstrap(self, n_resamples: int = 1000, level: float = 0.95) -> Bootstrap:
        """Intervals over the images and paired tests, of every method, set and group.

        Raises:
            ValueError: several seeds, and the protocol leaves images out, so that each seed has images
                of its own; or ``n_resamples`` or ``level`` out of range.
        """
        check_draws(n_resamples, level)
        observed: dict[tuple[str, str], np.ndarray] = {}
        drawn: dict[tuple[str, str], np.ndarray] = {}
        n_images: dict[str, int] = {}
        for group, names in self._groups.items():
            for dataset in names:
                if len(self.seeds) > 1 and not self.protocol.takes_all(*self.about.sizes(dataset)):
                    raise ValueError(
                        f"{dataset}: intervals need the same images under every seed, and this run's "
                        "protocol leaves other ones out for each; run one seed, or every image"
                    )
                label = self.stream(self.methods[0], dataset, self.seeds[0]).label
                confs: dict[str, list[np.ndarray]] = {method: [] for method in self.methods}
                for (method, name, _), result in self.streams.items():
                    if name == dataset:
                        confs[method].append(result.conf)
                number = list(self.splits).index(dataset)
                found = resampled(confs, dataset, label, n_resamples, self.seeds[0], number)
                observed.update(found[0])
                drawn.update(found[1])
                n_images.update(found[2])
            n_images[group] = min(n_images[name] for name in names)
            for method in self.methods:
                for kept in (observed, drawn):
                    kept[method, group] = np.mean([kept[method, name] for name in names], axis=0)
        return Bootstrap(observed, drawn, n_images, n_resamples, level)

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """Where a number says less than it seems to: one line per kind of trouble and method."""
        return doubts(self.streams, self.protocol)

    def format_table(self, method: str) -> str:
        """Readable text: the protocol, then the table, "mean ± spread" if several seeds."""
        shown = with_spread(*self._over_seeds(method))
        seeds = ", ".join(map(str, self.seeds))
        return "\n".join(
            [
                f"{harmless(method)}: order {self.order}, batch size {self.batch_size}, seeds {seeds}; "
                "in percent",
                "FPR@95 takes OOD as positive (OpenOOD), FPR@95 (ID positive) takes ID",
                shown.rename(index=harmless).rename_axis(None).to_string(),
            ]
        )

    def format_warnings(self) -> str:
        """:attr:`warnings` as lines."""
        return "\n".join(f"warning: {harmless(text)}" for text in self.warnings)

    def format_occupancy(self) -> str:
        """One line per method with a bank: of how many ID classes it holds images at a stream's end."""
        lines = []
        for method in self.methods:
            rows = self.records[self.records["method"] == method].dropna(subset=["id_rows_filled"])
            if len(rows):
                filled = rows["id_rows_filled"].astype(float)
                n_rows = int(rows["n_id_rows"].iloc[0])
                lines.append(
                    f"{harmless(method)}: at a stream's end the memory holds images of "
                    f"{filled.mean():.1f} of {n_rows} classes ({filled.min():.0f} to {filled.max():.0f})"
                )
        return "\n".join(lines)

    def provenance(self) -> dict[str, Any]:
        """Where the numbers come from: methods' settings, negatives, and what the caller told."""
        return {
            "methods": {name: dict(settings) for name, settings in self.about.settings.items()},
            "negatives": dict(self.about.data["negatives"]),
            **self.about.provenance,
        }

    def to_dict(self, bootstrap: Bootstrap | None = None) -> dict[str, Any]:
        """What :meth:`to_json` writes: protocol, conventions, summary, tables, spread, records."""
        return {
            "protocol": {
                "order": self.order,
                "order_meaning": ORDERS[self.order],
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
        write_json(path, self.to_dict(bootstrap))
