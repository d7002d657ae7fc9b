"""Tables of a run: means and deviations over seeds, of every set and of near and far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adaneg_openood.evaluation.metrics import METRICS
from adaneg_openood.evaluation.streams import Protocol
from adaneg_openood.io.names import harmless

if TYPE_CHECKING:
    import pandas as pd

GROUP_ROWS = {"near": "nearood", "far": "farood"}
RECORD_COLUMNS = (
    *("method", "split", "dataset", "seed", "n_id", "n_ood"),
    *METRICS,
    *("id_rows_filled", "n_id_rows"),
)
# OpenOOD's columns first, as it prints them
TABLE_METRICS = ("FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT", "ACC", "FPR@95 (ID positive)")
_SUMMARY_METRICS = ("FPR@95", "FPR@95 (ID positive)", "AUROC")


class Tables:
    """The tables that people read, from :attr:`records`."""

    records: pd.DataFrame
    protocol: Protocol

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
        """One row per method: near and far means of both FPR@95 and AUROC, and ACC over all sets."""
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
                f"{harmless(method)}: order {self.order}, batch size {self.batch_size}, seeds {seeds}; "
                "in percent",
                "FPR@95 takes OOD as positive (OpenOOD), FPR@95 (ID positive) takes ID",
                text.rename(index=harmless).rename_axis(None).to_string(),
            ]
        )

    def _per_seed(self, method: str) -> pd.DataFrame:
        """The table of each seed, stacked: index (dataset, seed) with the group rows in place."""
        import pandas as pd

        if method not in self.methods:
            raise KeyError(f"no method {method!r}; there are {', '.join(map(repr, self.methods))}")
        records = self.records[self.records["method"] == method]
        columns = [*TABLE_METRICS, "n_id", "n_ood"]
        parts = []
        for split, name in GROUP_ROWS.items():
            rows = records[records["split"] == split]
            if len(rows):
                group = group_means(rows, {name: list(rows["dataset"].unique())}, [])
                parts += [rows[["dataset", "seed", *columns]], group[["dataset", "seed", *columns]]]
        stacked = pd.concat(parts, ignore_index=True)
        return stacked.set_index(["dataset", "seed"])[columns]


def group_means(
    records: pd.DataFrame,
    groups: Mapping[str, Sequence[str]],
    keys: Sequence[str],
    metrics: Sequence[str] = METRICS,
) -> pd.DataFrame:
    """Means over the sets of each group, seed by seed, as records of their own.

    Args:
        records: one row per ``keys``, seed and dataset, with metrics, n_id and n_ood.
        groups: name of the group -> its sets; the name becomes the row's ``dataset``.
        keys: columns that tell apart what is not to be averaged.
        metrics: columns that are averaged.

    Returns:
        Columns ``keys``, seed, dataset, the metrics' means, the first n_id and the sum of n_ood.
    """
    import pandas as pd

    wanted = {**dict.fromkeys(metrics, "mean"), "n_id": "first", "n_ood": "sum"}
    parts = []
    for name, members in groups.items():
        inside = records[records["dataset"].isin(list(members))]
        means = inside.groupby([*keys, "seed"], sort=False, dropna=False).agg(wanted)
        parts.append(means.reset_index().assign(dataset=name))
    return pd.concat(parts, ignore_index=True)


def records_frame(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Records as :class:`Tables` takes them, with columns :data:`RECORD_COLUMNS`."""
    import pandas as pd

    frame = pd.DataFrame(records, columns=list(RECORD_COLUMNS))
    # nullable integers: a method without a bank has no rows to fill
    return frame.astype({"id_rows_filled": "Int64", "n_id_rows": "Int64"})


def plain_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """One dict of JSON values per row, missing values as None."""
    return list(by_row(frame.reset_index(drop=True)).values())


def by_row(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """{row: {column: plain Python value}}, missing values as None."""
    import pandas as pd

    return {
        str(row): {
            str(column): None if pd.isna(value) else getattr(value, "item", lambda v=value: v)()
            for column, value in zip(frame.columns, values)
        }
        for row, values in zip(frame.index, zip(*(frame[column] for column in frame.columns)))
    }
