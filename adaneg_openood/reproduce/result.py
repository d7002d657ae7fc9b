"""What a target gave: our numbers, the published ones beside them, and what kept them apart."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from adaneg_openood.evaluation.tables import group_means
from adaneg_openood.io.files import atomic_path
from adaneg_openood.io.names import harmless_table

if TYPE_CHECKING:
    import pandas as pd

FPR_OOD, FPR_ID = "FPR95 (OOD positive)", "FPR95 (ID positive)"
METRICS = (FPR_OOD, FPR_ID, "AUROC", "AUPR_IN", "AUPR_OUT", "ACC")
RECORD_COLUMNS = ("features", "method", "setting", "dataset", "seed", "n_id", "n_ood", *METRICS)
SHOWN = (FPR_OOD, FPR_ID, "AUROC", "ACC")
CONVENTIONS = (
    f"{FPR_OOD}: ID images flagged when 95 % of OOD images are detected (OpenOOD). "
    f"{FPR_ID}: OOD images let through when 95 % of ID images are kept (MCM, NegLabel)."
)
_ROW = ("features", "method", "setting", "dataset")


def _no_rows() -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame()


@dataclass(frozen=True, eq=False)
class Reproduction:
    """Result of one target.

    Attributes:
        target: its name.
        title: one line for people.
        source: where the table or figure stands in the papers.
        protocol: seeds, batch size, settings.
        records: one row per method, setting, OOD set and seed; metrics in percent. For ``isor`` and
            ``tsne`` the measures of :mod:`adaneg_openood.reproduce.geometry`.
        comparison: one row per published figure that has a counterpart of ours: both numbers and, where
            the data are the same, the difference (ours - published). May be empty.
        notes: what people must know to read it.
        points: coordinates of a plane (``tsne``), or None.
        splits: OOD set -> near or far.
        varies: axis of the varied setting, or ``""``.
    """

    target: str
    title: str
    source: str
    protocol: dict[str, Any]
    records: pd.DataFrame = field(default_factory=_no_rows)
    comparison: pd.DataFrame = field(default_factory=_no_rows)
    notes: tuple[str, ...] = ()
    points: pd.DataFrame | None = None
    splits: dict[str, str] = field(default_factory=dict)
    varies: str = ""

    @property
    def detects(self) -> bool:
        """Whether the records are of detection, and not of the geometry of proxies."""
        return FPR_OOD in self.records.columns

    def table(self) -> pd.DataFrame:
        """Means over seeds: index (features, method, setting, dataset), metrics, n_id and n_ood.

        After a method's OOD sets come the means ``near`` and ``far`` where both kinds exist, and
        ``mean`` over all sets where there are several.
        """
        return summarised(self.records, self.splits)

    def spread(self) -> pd.DataFrame:
        """Standard deviations over seeds (ddof 1; NaN with one seed), rows and metrics as in table."""
        return summarised(self.records, self.splits, "std")[list(METRICS)]

    def to_text(self, every_set: bool | None = None) -> str:
        """For a terminal.

        Args:
            every_set: show every OOD set's row, and not means alone; None does where nothing is varied.
        """
        lines = [f"{self.target}: {self.title}", f"({self.source})", ""]
        if not self.detects:
            return "\n".join([*lines, self._text_measures(), "", *(f"- {note}" for note in self.notes)])
        lines += [f"In percent, {_protocol_text(self.protocol)}.", CONVENTIONS, ""]
        lines += [self._text_table(every_set), ""]
        taken = self.comparison[self.comparison["difference_taken"]] if len(self.comparison) else []
        if len(taken):
            lines += ["Beside the published figures (difference = ours - published)"]
            lines += [_comparison_text(self.comparison), ""]
        elif len(self.comparison):
            lines += ["Published figures, from other data or settings than these"]
            lines += [_comparison_text(self.comparison), ""]
        return "\n".join([*lines, *(f"- {note}" for note in self.notes)])

    def _text_measures(self) -> str:
        keys = ["dataset", "negatives"]
        means = self.records.drop(columns="seed").groupby(keys, sort=False).mean().reset_index()
        for column in ("rows_filled", "n_id", "n_ood"):
            if (means[column] % 1 == 0).all():
                means[column] = means[column].astype("int64")
        return str(means.round(4).to_string(index=False))

    def _text_table(self, every_set: bool | None) -> str:
        import pandas as pd

        table, spread = self.table(), self.spread()
        shown = table[[*SHOWN, "n_id", "n_ood"]].astype(object)
        for metric in SHOWN:
            shown[metric] = [
                f"{mean:.2f}" if pd.isna(deviation) else f"{mean:.2f} ± {deviation:.2f}"
                for mean, deviation in zip(table[metric], spread[metric])
            ]
        shown = shown.reset_index()
        varied = (shown["setting"] != "").any()
        if every_set is False or (every_set is None and varied):
            groups = shown[~shown["dataset"].isin(self.splits)]
            shown = groups if len(groups) else shown
        empty = [name for name in ("features", "setting") if (shown[name] == "").all()]
        return str(shown.drop(columns=empty).to_string(index=False))

    def to_dict(self) -> dict[str, Any]:
        """What :meth:`to_json` writes; missing values are None."""
        found: dict[str, Any] = {
            "target": self.target,
            "title": self.title,
            "source": self.source,
            "units": "percent" if self.detects else "see notes",
            "conventions": CONVENTIONS,
            "protocol": self.protocol,
            "notes": list(self.notes),
            "comparison": _plain(self.comparison),
            "records": _plain(self.records),
        }
        if self.detects:
            found["table"] = _plain(self.table().reset_index())
        if self.points is not None:
            found["points"] = _plain(self.points)
        return found

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_dict` as UTF-8 JSON, atomically."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        with atomic_path(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the records as UTF-8 CSV, atomically."""
        with atomic_path(path) as temporary:
            harmless_table(self.records).to_csv(temporary, index=False, encoding="utf-8")


def summarised(records: pd.DataFrame, splits: dict[str, str], how: str = "mean") -> pd.DataFrame:
    """Means or deviations over seeds: row by row as in the records, each with its sets, then groups."""
    import pandas as pd

    names = list(dict.fromkeys(records["dataset"]))
    groups: dict[str, list[str]] = {}
    for split in ("near", "far"):
        members = [name for name in names if splits.get(name) == split]
        if members and len(members) < len(names):
            groups[split] = members
    if len(names) > 1:
        groups["mean"] = names
    keys = list(_ROW[:3])
    parts = [records, *([group_means(records, groups, keys, METRICS)] if groups else [])]
    every = pd.concat(parts, ignore_index=True)
    found = every.groupby(list(_ROW), sort=False).agg(
        {**dict.fromkeys(METRICS, how), "n_id": "first", "n_ood": "first"}
    )
    rows = dict.fromkeys(records[keys].itertuples(index=False, name=None))
    return found.loc[[(*row, name) for row in rows for name in (*names, *groups)]]


def _protocol_text(protocol: dict[str, Any]) -> str:
    seeds = ", ".join(map(str, protocol["seeds"]))
    order = "given stream orders" if protocol.get("given_orders") else f"mixed streams, seeds {seeds}"
    return f"{order}, batch size {protocol['batch_size']}"


def _comparison_text(comparison: pd.DataFrame) -> str:
    shown = comparison.drop(columns=["difference_taken"])
    shown = shown.drop(columns=[name for name in ("features", "setting") if (shown[name] == "").all()])
    shown = shown.dropna(axis="columns", how="all")
    return str(shown.round(2).to_string(index=False, na_rep=""))


def _plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain Python values."""
    rows = json.loads(frame.to_json(orient="records", double_precision=15))
    return list(rows)
