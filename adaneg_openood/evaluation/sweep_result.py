"""What a sweep measured, as tables and files."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adaneg_openood.evaluation.metrics import CONVENTIONS, METRICS
from adaneg_openood.evaluation.tables import GROUP_ROWS, group_means
from adaneg_openood.io.files import atomic_path
from adaneg_openood.io.names import harmless_table

if TYPE_CHECKING:
    import pandas as pd

STREAM_AXES = ("batch_size", "order", "ratio", "n_images")
BANK_COLUMNS = ("id_rows_filled", "n_id_rows", "negative_rows_filled", "cached")


@dataclass(frozen=True, eq=False)
class SweepResult:
    """What a sweep measured.

    Attributes:
        records: one row per configuration, protocol, seed and set. Columns: the method's
            settings, :data:`STREAM_AXES`, ``seed``, ``split``, ``dataset``, ``n_id``, ``n_ood``,
            the metrics in percent, and :data:`BANK_COLUMNS` (rows that hold images at the end of the
            stream, and images held).
        axes: the columns that vary.
        computed: runs that were computed now; the others had been written down before.
        settings: names of the method's settings.
    """

    records: pd.DataFrame
    axes: tuple[str, ...]
    computed: int
    settings: tuple[str, ...]

    def summary(self) -> pd.DataFrame:
        """Mean and standard deviation (ddof = 1) over seeds, of every set and of near and far means.

        One row a configuration, protocol and set or group; columns ``METRIC`` and ``METRIC std``. A
        group's deviation is that of its mean. With one seed deviations are 0.
        """
        import pandas as pd

        records = self.records
        point = [*self.settings, *STREAM_AXES]
        sets = {split: rows["dataset"].unique() for split, rows in records.groupby("split", sort=False)}
        named = {GROUP_ROWS[str(split)]: list(names) for split, names in sets.items()}
        groups = group_means(records, named, [*point, "split"])
        rows = pd.concat([records, groups], ignore_index=True)
        grouped = rows.groupby([*point, "split", "dataset"], sort=False, dropna=False)[list(METRICS)]
        mean, spread = grouped.mean(), grouped.std(ddof=1).fillna(0.0)
        out = mean.copy()
        for metric in reversed(METRICS):
            out.insert(list(out.columns).index(metric) + 1, f"{metric} std", spread[metric])
        return out.reset_index()

    def best(self, metric: str = "AUROC", row: str = "farood") -> pd.DataFrame:
        """Rows of :meth:`summary` for one set or group, best first."""
        summary = self.summary()
        chosen = summary[summary["dataset"] == row]
        return chosen.sort_values(metric, ascending=metric.startswith("FPR"), kind="stable")

    def write(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write ``results.csv`` (long form), ``summary.csv`` and ``conventions.json``, atomically."""
        root = Path(folder)
        files = [root / "results.csv", root / "summary.csv", root / "conventions.json"]
        for file, frame in zip(files, (self.records, self.summary())):
            with atomic_path(file) as temporary:
                text = harmless_table(frame).to_csv(index=False, lineterminator="\n")
                temporary.write_bytes(text.encode())
        with atomic_path(files[-1]) as temporary:
            about = {"units": "percent", "axes": list(self.axes), "conventions": CONVENTIONS}
            temporary.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", "utf-8")
        return files
