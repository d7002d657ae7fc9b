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
        metric: as people read it, such as ``"FPR95 (OOD positive)"``.
        higher_is_better: direction.
        mean: methods x columns, percent, over seeds.
        spread: standard deviations over seeds, 0 with one seed.
        rank: methods x columns: 1 best, 2 second best, 0 neither. Equal as printed, equal in rank.
        n_seeds: of the mean.
    """

    metric: str
    higher_is_better: bool
    mean: pd.DataFrame
    spread: pd.DataFrame
    rank: pd.DataFrame
    n_seeds: int

    def cell(self, method: str, column: str) -> str:
        """Printed value, ``mean ± deviation`` with several seeds."""
        value = f"{_number(self.mean, method, column):.2f}"
        return f"{value} ± {_number(self.spread, method, column):.2f}" if self.n_seeds > 1 else value

    def place(self, method: str, column: str) -> int:
        """1 best, 2 second best, 0 neither."""
        return int(_number(self.rank, method, column))


def run_tables(results: Run) -> list[Table]:
    """A table for each metric."""
    import pandas as pd

    means = {method: results.table(method).rename(index=GROUP_NAMES) for method in results.methods}
    spreads = {method: results.spread(method).rename(index=GROUP_NAMES) for method in results.methods}
    tables = []
    for metric, (name, higher) in METRICS.items():
        mean = pd.DataFrame({method: frame[metric] for method, frame in means.items()}).T
        spread = pd.DataFrame({method: frame[metric] for method, frame in spreads.items()}).T
        order = list(next(iter(means.values())).index)
        mean, spread = mean[order], spread[order]
        tables.append(Table(name, higher, mean, spread, ranks(mean, higher), len(results.seeds)))
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
        columns = [str(column) for column in table.mean.columns]
        lines = [
            f"### {table.metric}, % ({_direction(table)})",
            "",
            "| method | " + " | ".join(harmless(column, "markdown") for column in columns) + " |",
            "|---|" + "---:|" * len(columns),
        ]
        for method in map(str, table.mean.index):
            cells = [_marked(table, method, column, ("**", "**"), ("*", "*")) for column in columns]
            lines.append(f"| {harmless(method, 'markdown')} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def to_latex(tables: Sequence[Table]) -> str:
    r"""LaTeX tabulars in a ``table`` each (booktabs): best ``\textbf``, second best ``\underline``."""
    parts = []
    for table in tables:
        columns = [str(column) for column in table.mean.columns]
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{harmless(table.metric, 'latex')}, \% ({_direction(table)}). "
            "Best in bold, second best underlined.}",
            r"\begin{tabular}{l" + "r" * len(columns) + "}",
            r"\toprule",
            "Method & " + " & ".join(harmless(column, "latex") for column in columns) + r" \\",
            r"\midrule",
        ]
        for method in map(str, table.mean.index):
            cells = [
                _marked(table, method, column, (r"\textbf{", "}"), (r"\underline{", "}"))
                for column in columns
            ]
            row = f"{harmless(method, 'latex')} & " + " & ".join(cells) + r" \\"
            lines.append(row.replace("±", r"$\pm$"))
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]))
    return "% needs \\usepackage{booktabs}\n" + "\n\n".join(parts) + "\n"


def to_long(tables: Sequence[Table]) -> pd.DataFrame:
    """One row per metric, method and column: mean, deviation, rank."""
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "metric": table.metric,
                "method": method,
                "column": column,
                "mean": table.mean.loc[method, column],
                "std": table.spread.loc[method, column],
                "rank": table.rank.loc[method, column],
            }
            for table in tables
            for method in table.mean.index
            for column in table.mean.columns
        ]
    )


def filled_negatives(record: RunRecord, method: str, dataset: str) -> pd.DataFrame:
    """Negative rows that hold images after the first stream, fullest first.

    Returns:
        Columns row (of the text features), name, images, of_ood (how many are OOD images).
    """
    import pandas as pd

    stream = record.stream_of(method, dataset)
    if stream.counts is None or stream.ood_counts is None:
        return pd.DataFrame(columns=["row", "name", "images", "of_ood"])
    counts, oods = stream.counts, stream.ood_counts
    rows = [row for row in range(record.n_classes, len(counts)) if counts[row]]
    frame = pd.DataFrame(
        {
            "row": rows,
            "name": [record.row_name(row) for row in rows],
            "images": [int(counts[row]) for row in rows],
            "of_ood": [int(oods[row]) for row in rows],
        }
    )
    return frame.sort_values(["images", "of_ood"], ascending=False, kind="stable", ignore_index=True)


def _direction(table: Table) -> str:
    return "higher is better" if table.higher_is_better else "lower is better"


def _marked(
    table: Table, method: str, column: str, best: tuple[str, str], second: tuple[str, str]
) -> str:
    before, after = {1: best, 2: second}.get(table.place(method, column), ("", ""))
    return f"{before}{table.cell(method, column)}{after}"


def _number(frame: pd.DataFrame, row: str, column: str) -> float:
    return float(frame.at[row, column])  # type: ignore[arg-type]
