"""Evaluation results: one record a run, and the tables people read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from adaneg_openood.evaluation.metrics import CONVENTIONS, METRICS
from adaneg_openood.evaluation.streams import ORDERS
from adaneg_openood.io.files import atomic_path

if TYPE_CHECKING:
    import pandas as pd

    from adaneg_openood.detectors.diagnosis import Diagnosis
    from adaneg_openood.evaluation.uncertainty import Bootstrap

SPLITS = ("near", "far")
GROUP_ROWS = {"near": "nearood", "far": "farood"}
RECORD_COLUMNS = (
    *("method", "split", "dataset", "seed", "n_id", "n_ood"),
    *METRICS,
    *("id_rows_filled", "n_id_rows"),
)
# OpenOOD's columns first, as it prints them
TABLE_METRICS = ("FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT", "ACC", "FPR@95 (ID positive)")
_SUMMARY_METRICS = ("FPR@95", "FPR@95 (ID positive)", "AUROC")


@dataclass(frozen=True, eq=False)
class Results:
    """What an evaluation measured, and under which protocol.

    Attributes:
        records: one row a method, OOD set and seed, with columns :data:`RECORD_COLUMNS`. Metrics
            are float64 in percent; ``id_rows_filled`` is the number of ID rows of the detector's
            bank that hold an image at the end of the stream, out of ``n_id_rows``
            (missing without a bank).
        order: ``"mixed"`` or ``"id_first"``.
        seeds: seeds of the streams.
        batch_size: images a batch.
        bootstrap: resampled metrics, for intervals and paired tests; None if they were not asked for.
        diagnoses: (method, OOD set, seed) -> what AdaNeg's memory looked like at the stream's end.
        provenance: where features and labels come from, as JSON values; empty where it is not known.

    Raises:
        ValueError: no record, or columns missing.
    """

    records: pd.DataFrame
    order: str
    seeds: tuple[int, ...]
    batch_size: int
    bootstrap: Bootstrap | None = None
    diagnoses: Mapping[tuple[str, str, int], Diagnosis] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        missing = [column for column in RECORD_COLUMNS if column not in self.records.columns]
        if missing:
            raise ValueError(f"records lack the column(s) {', '.join(missing)}")
        if self.records.empty:
            raise ValueError("records are empty: nothing was evaluated")

    @property
    def methods(self) -> list[str]:
        """Method names in the order of evaluation."""
        return [str(name) for name in self.records["method"].unique()]

    def table(self, method: str) -> pd.DataFrame:
        """Means over the seeds in OpenOOD's layout.

        Rows: each near set, ``nearood``, each far set, ``farood``; a split without sets has no row.
        Columns: the metrics in percent, ``n_id`` and ``n_ood``. A group row holds the mean of its
        sets' metrics, and the sum of their ``n_ood``.

        Raises:
            KeyError: unknown method.
        """
        table = self._per_seed(method).groupby(level="dataset", sort=False).mean()
        return table.astype({"n_id": "int64", "n_ood": "int64"})

    def spread(self, method: str) -> pd.DataFrame:
        """Standard deviation over the seeds (ddof = 1), rows as in :meth:`table`, metrics only.

        A group row holds the deviation of the group's mean per seed, not the mean of deviations.
        With one seed every entry is 0.

        Raises:
            KeyError: unknown method.
        """
        metrics = self._per_seed(method)[list(TABLE_METRICS)]
        # one seed has no deviation: pandas says NaN
        return metrics.groupby(level="dataset", sort=False).std(ddof=1).fillna(0.0)

    def summary(self) -> pd.DataFrame:
        """One row a method: near and far means of both FPR@95 and AUROC, and ACC over all sets."""
        import pandas as pd

        rows = {}
        for method in self.methods:
            table = self.table(method)
            row = {
                f"{split} {metric}": table.loc[group, metric]
                for split, group in GROUP_ROWS.items()
                if group in table.index
                for metric in _SUMMARY_METRICS
            }
            row["ACC"] = table.drop(index=list(GROUP_ROWS.values()), errors="ignore")["ACC"].mean()
            rows[method] = row
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")

    def format_table(self, method: str) -> str:
        """Readable text: the protocol, then the table, "mean ± spread" if several seeds."""
        table, spread = self.table(method), self.spread(method)
        text = table.astype(object)
        for metric in TABLE_METRICS:
            text[metric] = [
                f"{mean:.2f} ± {deviation:.2f}" if len(self.seeds) > 1 else f"{mean:.2f}"
                for mean, deviation in zip(table[metric], spread[metric])
            ]
        seeds = ", ".join(map(str, self.seeds))
        return "\n".join(
            [
                f"{method}: order {self.order}, batch size {self.batch_size}, seeds {seeds}; in percent",
                "FPR@95 takes OOD as positive (OpenOOD), FPR@95 (ID positive) takes ID",
                text.rename_axis(None).to_string(),
            ]
        )

    def format_occupancy(self) -> str:
        """One line a method with a bank: how many ID rows hold images when a stream ends."""
        lines = []
        for method in self.methods:
            rows = self.records[self.records["method"] == method].dropna(subset=["id_rows_filled"])
            if len(rows):
                filled = rows["id_rows_filled"].astype(float)
                lines.append(
                    f"{method}: {filled.mean():.1f} of {int(rows['n_id_rows'].iloc[0])} ID rows hold "
                    f"cached images at a stream's end ({filled.min():.0f} to {filled.max():.0f})"
                )
        return "\n".join(lines)

    def format_warnings(self) -> str:
        """Where AdaNeg was used outside of where it helps: a paragraph a method and kind of trouble."""
        first: dict[tuple[str, str], str] = {}
        sets: dict[tuple[str, str], dict[str, None]] = {}
        for (method, dataset, _), diagnosis in self.diagnoses.items():
            for kind, text in diagnosis.warnings.items():
                first.setdefault((method, kind), text)
                sets.setdefault((method, kind), {})[dataset] = None
        return "\n".join(
            f"warning: {method}, {kind} ({', '.join(sets[method, kind])}): {text}"
            for (method, kind), text in first.items()
        )

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write :attr:`records` as UTF-8 CSV, atomically; missing values are empty fields."""
        with atomic_path(path) as temporary:
            self.records.to_csv(temporary, index=False, encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
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
            "summary": _by_row(self.summary()),
            "tables": {method: _by_row(self.table(method)) for method in self.methods},
            "spread": {method: _by_row(self.spread(method)) for method in self.methods},
            "diagnoses": [
                {"method": method, "dataset": dataset, "seed": seed, **asdict(diagnosis)}
                for (method, dataset, seed), diagnosis in self.diagnoses.items()
            ],
            "records": plain_rows(self.records),
            **({} if self.bootstrap is None else {"bootstrap": self.bootstrap.to_dict()}),
            **({"provenance": dict(self.provenance)} if self.provenance else {}),
        }

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_dict` as UTF-8 JSON, atomically."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        with atomic_path(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    def _per_seed(self, method: str) -> pd.DataFrame:
        """The table of each seed, stacked: index (dataset, seed) with the group rows in place."""
        import pandas as pd

        if method not in self.methods:
            raise KeyError(f"no method {method!r}; there are {', '.join(map(repr, self.methods))}")
        records = self.records[self.records["method"] == method]
        metrics = list(TABLE_METRICS)
        parts = []
        for split in SPLITS:
            rows = records[records["split"] == split]
            if rows.empty:
                continue
            group = rows.groupby("seed", sort=False).agg(
                {**dict.fromkeys(metrics, "mean"), "n_id": "first", "n_ood": "sum"}
            )
            group = group.reset_index().assign(dataset=GROUP_ROWS[split])
            parts += [rows[["dataset", "seed", *metrics, "n_id", "n_ood"]], group]
        stacked = pd.concat(parts, ignore_index=True)
        return stacked.set_index(["dataset", "seed"])[[*metrics, "n_id", "n_ood"]]


def records_frame(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Records as :class:`Results` takes them, with columns :data:`RECORD_COLUMNS`."""
    import pandas as pd

    frame = pd.DataFrame(records, columns=list(RECORD_COLUMNS))
    # nullable integers: a method without a bank has no rows to fill
    return frame.astype({"id_rows_filled": "Int64", "n_id_rows": "Int64"})


def plain_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """One dict of JSON values a row, missing values as None."""
    return list(_by_row(frame.reset_index(drop=True)).values())


def _by_row(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """{row: {column: plain Python value}}, missing values as None."""
    import pandas as pd

    return {
        str(row): {
            str(column): None if pd.isna(value) else getattr(value, "item", lambda v=value: v)()
            for column, value in zip(frame.columns, values)
        }
        for row, values in zip(frame.index, zip(*(frame[column] for column in frame.columns)))
    }
