"""Tables of a run: one per metric, methods in rows, OOD sets and their means in columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaneg_openood.evaluation.tables import GROUP_ROWS
from adaneg_openood.io.names import harmless

if TYPE_CHECKING:
    import pandas as pd

    from adaneg_openood.evaluation import Run
    from adaneg_openood.report.record import RunRecord

# metric of the results -> (what people read, whether higher is better)
METRICS = {
    "FPR@95": ("FPR95 (OOD positive)", False),
    "FPR@95 (ID positive)": ("FPR95 (ID positive)", False),
    "AUROC": ("AUROC", True),
    "AUPR_IN": ("AUPR (ID positive)", True),
    "AUPR_OUT": ("AUPR (OOD positive)", True),
    "ACC": ("ID accuracy", True),
}
GROUP_NAMES = {GROUP_ROWS["near"]: "near (mean)", GROUP_ROWS["far"]: "far (mean)"}


@dataclass(frozen=True, eq=False)
class Table:
    """One metric.

    Attributes:
        key: the metric as results name it, such as ``"FPR@95"``.
        mean: methods x columns, percent, over seeds.
        spread: standard deviations over seeds, 0 with one seed.
        text: the cells as they are printed, ``mean ± deviation`` with several seeds.
        rank: methods x columns: 1 best, 2 second best, 0 neither. Equal as printed, equal in rank.
    """

    key: str
    mean: pd.DataFrame
    spread: pd.DataFrame
    text: pd.DataFrame
    rank: pd.DataFrame

    @property
    def metric(self) -> str:
        """As people read it, such as ``"FPR95 (OOD positive)"``."""
        return METRICS[self.key][0]

    @property
    def higher_is_better(self) -> bool:
        """Direction."""
        return METRICS[self.key][1]

    @property
    def direction(self) -> str:
        """Direction, for people."""
        return "higher is better" if self.higher_is_better else "lower is better"


def run_tables(results: Run) -> list[Table]:
    """A table for each metric."""
    import pandas as pd

    tables = []
    for key, (_, higher) in METRICS.items():
        mean, spread = (
            pd.DataFrame({method: of(method)[key] for method in results.methods}).T.rename(
                columns=GROUP_NAMES
            )
            for of in (results.table, results.spread)
        )
        text = mean.apply(lambda column: column.map("{:.2f}".format))
        if len(results.seeds) > 1:
            text += spread.apply(lambda column: column.map(" ± {:.2f}".format))
        tables.append(Table(key, mean, spread, text, ranks(mean, higher)))
    return tables


def ranks(values: pd.DataFrame, higher_is_better: bool, digits: int = 2) -> pd.DataFrame:
    """1 for a column's best, 2 for its second best, 0 for the rest and where all are equal.

    Values equal to the printed digits share a rank.
    """
    rounded = values.round(digits)
    found = rounded.rank(method="dense", ascending=not higher_is_better).fillna(0).astype(int)
    found = found.where(found <= 2, 0)
    for column in found.columns[rounded.nunique() <= 1]:
        found[column] = 0
    return found


def to_markdown(tables: Sequence[Table]) -> str:
    """GitHub-flavoured Markdown: best in bold, second best in italics."""
    parts = []
    for table in tables:
        marked = _marked(table, "markdown", "**{}**", "*{}*")
        lines = [
            f"### {table.metric}, % ({table.direction})",
            "",
            "| method | " + " | ".join(marked.columns) + " |",
            "|---|" + "---:|" * len(marked.columns),
            *(f"| {method} | " + " | ".join(cells) + " |" for method, *cells in marked.itertuples()),
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def to_latex(tables: Sequence[Table]) -> str:
    r"""LaTeX tabulars in a ``table`` each (booktabs): best ``\textbf``, second best ``\underline``."""
    parts = ["% needs \\usepackage{booktabs}"]
    for table in tables:
        marked = _marked(table, "latex", r"\textbf{{{}}}", r"\underline{{{}}}")
        caption = f"{harmless(table.metric, 'latex')}, \\% ({table.direction}). "
        parts.append(
            marked.rename_axis(columns="Method").to_latex(
                caption=caption + "Best in bold, second best underlined.",
                column_format="l" + "r" * len(marked.columns),
                escape=False,
                position="tbp",
            )
        )
    return "\n".join(parts).replace("±", r"$\pm$")


def to_long(tables: Sequence[Table]) -> pd.DataFrame:
    """One row per metric, method and column: mean, deviation, rank."""
    import pandas as pd

    parts = {
        table.metric: pd.concat(
            {"mean": table.mean.stack(), "std": table.spread.stack(), "rank": table.rank.stack()}, axis=1
        )
        for table in tables
    }
    return pd.concat(parts, names=["metric", "method", "column"]).reset_index()


def filled_negatives(record: RunRecord, method: str, dataset: str) -> pd.DataFrame:
    """Negative rows that hold images after the first stream, fullest first.

    Returns:
        Columns row (of the text features), name, images, of_ood (how many are OOD images).
    """
    import pandas as pd

    stream, n_classes = record.first(method, dataset), record.results.about.n_classes
    if stream.counts is None or stream.ood_counts is None:
        return pd.DataFrame(columns=["row", "name", "images", "of_ood"])
    rows = n_classes + stream.counts[n_classes:].nonzero()[0]
    frame = pd.DataFrame(
        {
            "row": rows,
            "name": [record.row_name(row) for row in rows.tolist()],
            "images": stream.counts[rows],
            "of_ood": stream.ood_counts[rows],
        }
    )
    return frame.sort_values(["images", "of_ood"], ascending=False, kind="stable", ignore_index=True)


def _marked(table: Table, place: str, best: str, second: str) -> pd.DataFrame:
    """The printed cells and harmless names, the best and second best as these formats say."""
    marked = table.text.mask(table.rank == 1, table.text.apply(lambda cells: cells.map(best.format)))
    marked = marked.mask(table.rank == 2, table.text.apply(lambda cells: cells.map(second.format)))
    return marked.rename(
        index=lambda name: harmless(name, place), columns=lambda name: harmless(name, place)
    )
