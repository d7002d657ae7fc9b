"""What a target gave: our numbers, the published ones beside them, and what kept them apart."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from adaneg_openood.evaluation.metrics import CONVENTIONS
from adaneg_openood.evaluation.tables import over_seeds, plain_rows, with_spread
from adaneg_openood.io.files import atomic_path, write_json
from adaneg_openood.io.names import harmless_table
from adaneg_openood.reproduce.targets import TARGETS, Target

if TYPE_CHECKING:
    import pandas as pd

_KEYS = ["features", "method", "setting"]
_SHOWN = ["FPR@95", "FPR@95 (ID positive)", "AUROC", "ACC"]
_FPR = "FPR@95 takes OOD as positive (OpenOOD), FPR@95 (ID positive) takes ID (MCM, NegLabel)."


@dataclass(frozen=True, eq=False)
class Reproduction:
    """Result of one target.

    Attributes:
        target: its name.
        protocol: seeds, batch size, settings.
        records: one row per features, method, setting, OOD set and seed: n_id, n_ood and metrics in
            percent. For ``isor`` and ``tsne`` the measures of :mod:`adaneg_openood.reproduce.geometry`.
        notes: what people must know to read it.
        comparison: one row per published figure that has a counterpart of ours: both numbers and, where
            the data are the same, the difference (ours - published); None for ``isor`` and ``tsne``.
        points: coordinates of a plane (``tsne``), or None.
        splits: OOD set -> near or far.
    """

    target: str
    protocol: Mapping[str, Any]
    records: pd.DataFrame
    notes: tuple[str, ...] = ()
    comparison: pd.DataFrame | None = None
    points: pd.DataFrame | None = None
    splits: Mapping[str, str] = field(default_factory=dict)

    @property
    def spec(self) -> Target:
        """Its title, its place in the papers, and what it varies."""
        return TARGETS[self.target]

    @property
    def detects(self) -> bool:
        """Whether the records are of detection, and not of the geometry of proxies."""
        return not self.spec.geometry

    def table(self) -> pd.DataFrame:
        """Means over seeds: index (features, method, setting, dataset), metrics, n_id and n_ood.

        After a method's OOD sets come the means ``near`` and ``far`` where both kinds exist, and
        ``mean`` over all sets where there are several.
        """
        return summarised(self.records, self.splits)[0]

    def spread(self) -> pd.DataFrame:
        """Standard deviations over seeds (ddof 1; NaN with one seed), rows and metrics as in table."""
        return summarised(self.records, self.splits)[1]

    def to_text(self, every_set: bool | None = None) -> str:
        """For a terminal.

        Args:
            every_set: show every OOD set's row, and not means alone; None does where nothing is varied.
        """
        lines = [f"{self.target}: {self.spec.title}", f"({self.spec.source})", ""]
        if self.detects:
            seeds = ", ".join(map(str, self.protocol["seeds"]))
            given = self.protocol["given_orders"]
            order = "given stream orders" if given else f"mixed streams, seeds {seeds}"
            lines += [f"In percent, {order}, batch size {self.protocol['batch_size']}.", _FPR, ""]
            lines += [self._text_table(every_set), ""]
        else:
            lines += [self._text_measures(), ""]
        beside = self.comparison
        if beside is not None and len(beside):
            taken = beside["difference_taken"].any()
            lines.append(
                "Beside the published figures (difference = ours - published)"
                if taken
                else "Published figures, from other data or settings than these"
            )
            shown = _without_empty(beside.drop(columns=["difference_taken"]))
            shown = shown.dropna(axis="columns", how="all").round(2)
            lines += [str(shown.to_string(index=False, na_rep="")), ""]
        return "\n".join([*lines, *(f"- {note}" for note in self.notes)])

    def _text_measures(self) -> str:
        keys = ["dataset", "negatives"]
        means = self.records.drop(columns="seed").groupby(keys, sort=False).mean().reset_index()
        for column in ("rows_filled", "n_id", "n_ood"):
            if (means[column] % 1 == 0).all():
                means[column] = means[column].astype("int64")
        return str(means.round(4).to_string(index=False))

    def _text_table(self, every_set: bool | None) -> str:
        table = self.table()[[*_SHOWN, "n_id", "n_ood"]]
        shown = with_spread(table, self.spread()[_SHOWN]).reset_index()
        varied = (shown["setting"] != "").any()
        if every_set is False or (every_set is None and varied):
            groups = shown[~shown["dataset"].isin(self.splits)]
            shown = groups if len(groups) else shown
        return str(_without_empty(shown).to_string(index=False))

    def to_dict(self) -> dict[str, Any]:
        """What :meth:`to_json` writes; missing values are None."""
        found: dict[str, Any] = {
            "target": self.target,
            "title": self.spec.title,
            "source": self.spec.source,
            "units": "percent" if self.detects else "see notes",
            "conventions": dict(CONVENTIONS),
            "protocol": dict(self.protocol),
            "notes": list(self.notes),
            "comparison": [] if self.comparison is None else plain_rows(self.comparison),
            "records": plain_rows(self.records),
        }
        if self.detects:
            found["table"] = plain_rows(self.table().reset_index())
        if self.points is not None:
            found["points"] = plain_rows(self.points)
        return found

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_dict` as UTF-8 JSON, atomically."""
        write_json(path, self.to_dict())

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the records as UTF-8 CSV, atomically."""
        with atomic_path(path) as temporary:
            harmless_table(self.records).to_csv(temporary, index=False, encoding="utf-8")


def summarised(records: pd.DataFrame, splits: Mapping[str, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Means and deviations over seeds: row by row as in the records, each with its sets, then groups."""
    names = list(dict.fromkeys(records["dataset"]))
    groups = {split: [name for name in names if splits[name] == split] for split in ("near", "far")}
    groups = {split: members for split, members in groups.items() if 0 < len(members) < len(names)}
    if len(names) > 1:
        groups["mean"] = names
    means, spreads = over_seeds(records, groups, _KEYS)
    rows = dict.fromkeys(records[_KEYS].itertuples(index=False, name=None))
    wanted = [(*row, name) for row in rows for name in (*names, *groups)]
    kept = [row for row in wanted if row in means.index]
    return means.loc[kept], spreads.loc[kept]


def _without_empty(shown: pd.DataFrame) -> pd.DataFrame:
    """Without the columns of names that name nothing."""
    return shown.drop(columns=[name for name in ("features", "setting") if (shown[name] == "").all()])
