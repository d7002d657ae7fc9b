"""The one style of every figure, and matplotlib without global state.

Text and axes are drawn in one ink that no series uses, so that a page can give it its own colour.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaneg_openood.io.files import atomic_path

if TYPE_CHECKING:
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
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)))


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
