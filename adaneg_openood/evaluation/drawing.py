"""The one style of every figure, and matplotlib without global state.

Text and axes are drawn in one ink that no series uses, so that a page can give it its own colour.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaneg_openood.evaluation.metrics import METRICS
from adaneg_openood.io.files import atomic_path

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9.0  # of a figure, inches
INK = "#1f2329"
FAINT = "#8a8f97"  # grids and marks: visible on a light and on a dark ground
ID_COLOUR, OOD_COLOUR, NEGATIVE_COLOUR = "#3b82d0", "#e0862b", "#1f9d86"
PROXY_COLOURS = (NEGATIVE_COLOUR, "#7d6bea")
# told apart by lightness and dash too
_METHOD_STYLES = (
    ("#8a8f97", (0, (1, 1.2))),
    ("#c8629c", (0, (5, 1.5))),
    ("#1f9d86", "solid"),
    ("#7d6bea", (0, (7, 1.5, 1.5, 1.5))),
    ("#c98a12", "solid"),
    ("#d1495b", (0, (3, 1))),
    ("#4f9d3a", (0, (1, 1))),
    ("#3b82d0", (0, (6, 2, 1, 2))),
)
_INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
STYLE: Any = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.labelsize": 9.5,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.alpha": 0.28,
    "grid.linewidth": 0.6,
    "axes.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "text.parse_math": False,  # a name may hold dollar signs
    "svg.fonttype": "none",
    "svg.hashsalt": "adaneg",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    **dict.fromkeys((*_INKED, "axes.titlecolor"), INK),
}


def require_matplotlib() -> None:
    """Raise an ImportError that names the command, if matplotlib is absent."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ImportError(
            "plots need matplotlib, which is not installed; install it with: "
            "pip install 'adaneg_openood[plots]'"
        ) from None


def method_style(index: int) -> dict[str, Any]:
    """Colour and dash of the i-th method."""
    colour, dash = _METHOD_STYLES[index % len(_METHOD_STYLES)]
    return {"color": colour, "linestyle": dash}


@contextmanager
def drawing(width: float, height: float, **grid: Any) -> Iterator[tuple[Figure, Any]]:
    """A figure of so many inches and its axes, in this style; pyplot and its state are not used.

    Args:
        width, height: inches.
        grid: of ``Figure.subplots``.
    """
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(**grid)


def legend_below(figure: Figure, axes: Axes, columns: int = 4) -> None:
    """One legend for the figure, beneath it."""
    named = {label: handle for handle, label in zip(*axes.get_legend_handles_labels())}
    columns = min(columns, len(named))
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=columns)


def lines_over(rows: pd.DataFrame, axis: str, series: str, title: str, label: str = "") -> Figure:
    """FPR95 in both conventions and AUROC over what varies: one line per series, bars of one deviation.

    Values without a number, such as words, are side by side and not joined. Where some values have one,
    the others are levels.

    Args:
        rows: columns ``axis``, ``series``, and ``METRIC`` and ``METRIC std`` in percent.
        axis: what varies: numbers, ratios (``1:10``), words, or text that ends in a number.
        series: what tells the lines apart.
        title: of the figure.
        label: of the axis; its name if not given.
    """
    import pandas as pd

    words = rows[axis].astype(str)
    parts = words.str.extract(r"([\d.eE+-]+)(?::([\d.]+))?$")
    numbers = parts.apply(pd.to_numeric, errors="coerce")
    at = numbers[0] / numbers[1].fillna(1.0)
    ordered = bool(at.notna().any())
    if not ordered:
        codes, names = pd.factorize(words)
        at = pd.Series(codes, index=rows.index, dtype="float64")
    wide = at.nunique() > 2 and at.min() > 0 and at.max() / at.min() > 50
    with drawing(WIDTH, 3.3, ncols=3) as (figure, panels):
        for panel, metric in zip(panels, METRICS[:3]):
            for index, (name, mine) in enumerate(rows.groupby(series, sort=False)):
                style = method_style(index + 1)
                for level in mine.loc[at[mine.index].isna(), metric]:
                    panel.axhline(level, label=name, **style)
                mine = mine.loc[at[mine.index].dropna().sort_values(kind="stable").index]
                if len(mine):
                    style = {**style, "linestyle": style["linestyle"] if ordered else "none"}
                    marks = {"marker": "o", "ms": 4, "capsize": 2, "label": name, **style}
                    bars = mine[f"{metric} std"].fillna(0.0)
                    panel.errorbar(at[mine.index], mine[metric], yerr=bars, **marks)
            if not ordered:
                panel.set_xticks(range(len(names)), names)
                panel.margins(x=0.15)
            if wide:
                panel.set_xscale("log")
            # a deviation may reach beyond what a percentage can be
            low, high = panel.get_ylim()
            panel.set_ylim(max(0.0, low), min(101.0, high))
            panel.set_title(f"{metric}, %", loc="left")
            panel.set_xlabel(label or axis)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        legend_below(figure, panels[0])
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure in the format of the path's ending (png, svg, pdf), atomically.

    Raises:
        ValueError: another ending.
    """
    import matplotlib

    kind = picture_format(path)
    with atomic_path(path) as temporary, matplotlib.rc_context(STYLE):
        figure.savefig(temporary, format=kind, dpi=150, facecolor="white")


def picture_format(path: str | Path) -> str:
    """The format that a path's ending names.

    Raises:
        ValueError: another ending than png, svg or pdf.
    """
    kind = Path(path).suffix.lstrip(".").lower()
    if kind not in ("png", "svg", "pdf"):
        raise ValueError(f"{path}: a plot's name must end in .png, .svg or .pdf")
    return kind
