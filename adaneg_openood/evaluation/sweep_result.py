"""What a sweep measured, as tables and files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaneg_openood.evaluation.drawing import lines_over, save_figure
from adaneg_openood.evaluation.metrics import CONVENTIONS, FEW_IMAGES, METRICS
from adaneg_openood.evaluation.tables import GROUP_ROWS, over_seeds
from adaneg_openood.io.checks import check_choice
from adaneg_openood.io.files import atomic_path, write_json
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
        sets = self.records.groupby("split", sort=False)["dataset"].unique()
        groups = {GROUP_ROWS[str(split)]: list(names) for split, names in sets.items()}
        keys = [*self.settings, *STREAM_AXES, "split"]
        means, spreads = over_seeds(self.records, groups, keys)
        both = means.join(spreads.fillna(0.0).add_suffix(" std"))
        columns = [f"{metric}{what}" for metric in METRICS for what in ("", " std")]
        return both[columns].reset_index()

    def warnings(self) -> list[str]:
        """One line where runs hold so few images that their numbers say little."""
        fewest = self.records[["n_id", "n_ood"]].min(axis=1)
        few = self.records[fewest < FEW_IMAGES]
        if few.empty:
            return []
        least = f"{few['n_id'].min()} ID and {few['n_ood'].min()} OOD"
        return [
            f"{len(few)} of {len(self.records)} runs hold fewer than {FEW_IMAGES} ID or OOD images "
            f"(down to {least}): one image moves their numbers by points"
        ]

    def best(self, metric: str = "AUROC", row: str = "farood") -> pd.DataFrame:
        """Rows of :meth:`summary` for one set or group, best first.

        Raises:
            ValueError: no such set or group; the message lists those there are.
        """
        summary = self.summary()
        check_choice("row", row, list(summary["dataset"].unique()))
        chosen = summary[summary["dataset"] == row]
        return chosen.sort_values(metric, ascending=metric.startswith("FPR"), kind="stable")

    def plot(self, folder: str | os.PathLike[str], fixed: Mapping[str, Any] | None = None) -> list[Path]:
        """Write ``plot_AXIS.png`` for each axis that varies; the title says where others are held.

        Args:
            folder: where the pictures go.
            fixed: axis -> the value it is held at while others are drawn; the first one otherwise.

        Returns:
            The files.

        Raises:
            ImportError: matplotlib is not installed.
        """
        import pandas as pd

        means = self.summary()
        means = means[means["dataset"].isin(GROUP_ROWS.values())]
        held = {axis: means[axis].unique()[0] for axis in self.axes}
        held.update({axis: v for axis, v in (fixed or {}).items() if v in list(means.get(axis, ()))})
        n_seeds = self.records["seed"].nunique()
        bars = f"mean and one standard deviation over {n_seeds} seeds" if n_seeds > 1 else "one seed"
        files = []
        for axis in self.axes:
            rows, at = means, []
            for key in self.axes:
                if key != axis:
                    missing = pd.isna(held[key])
                    rows = rows[rows[key].isna() if missing else rows[key] == held[key]]
                    at.append(f"{key} {'all' if missing else held[key]}")
            title = f"{axis}: {bars}{'; ' if at else ''}{', '.join(at)}"
            files.append(Path(folder) / f"plot_{axis}.png")
            label = "ID images per OOD image" if axis == "ratio" else axis
            save_figure(lines_over(rows, axis, "dataset", title, label), files[-1])
        return files

    def write(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write ``results.csv`` (long form), ``summary.csv`` and ``conventions.json``, atomically."""
        root = Path(folder)
        files = [root / "results.csv", root / "summary.csv", root / "conventions.json"]
        for file, frame in zip(files, (self.records, self.summary())):
            with atomic_path(file) as temporary:
                text = harmless_table(frame).to_csv(index=False, lineterminator="\n")
                temporary.write_bytes(text.encode())
        about = {"units": "percent", "axes": list(self.axes), "conventions": CONVENTIONS}
        write_json(files[-1], about, indent=1)
        return files
