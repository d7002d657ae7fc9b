"""From numbers to pictures: matplotlib without global state, SVG that follows the page's colours.

Text and axes are drawn in one ink that no series uses. In a page it becomes ``currentColor``, so the
same drawing is readable on a light and on a dark ground; in a PNG it stays dark on white.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1f2329"
FAINT = "#8a8f97"  # grids and marks: visible on both grounds
ID_COLOUR, OOD_COLOUR = "#3b82d0", "#e0862b"
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
_SETTINGS: Any = {
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
    "svg.fonttype": "none",
    "svg.hashsalt": "adaneg",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    **dict.fromkeys(
        (
            "text.color",
            "axes.labelcolor",
            "axes.edgecolor",
            "xtick.color",
            "ytick.color",
            "axes.titlecolor",
        ),
        INK,
    ),
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
    """A figure and its axes, under this module's settings; pyplot and its state are not used.

    Args:
        width: inches.
        height: inches.
        grid: of ``Figure.subplots``.
    """
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(**grid)


def legend_below(figure: Figure, axes: Axes, columns: int = 4) -> None:
    """One legend for the figure, beneath it."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)))


def to_svg(figure: Figure, title: str) -> str:
    """An SVG element for a page: no prolog, no outside address, ink in the page's text colour.

    Args:
        figure: of :func:`drawing`.
        title: what the picture shows, for people who cannot see it.
    """
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context(_SETTINGS):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s(?:xmlns(?::\w+)?|version)="[^"]*"', "", text)
    text = text.replace("xlink:href", "href").replace(INK, "currentColor")
    # the page's font; matplotlib names those it measured with
    text = re.sub(r"font: [^;\"']*?(\d[\d.]*px)[^;\"]*", r"font-size: \1", text)
    text = _own_ids(text, title)
    attributes = f'role="img" aria-label="{_escaped(title)}"'
    return re.sub(r'<svg([^>]*?) width="[^"]*"', rf"<svg\1 {attributes}", text, count=1).replace(
        "<svg height=", "<svg data-height=", 1
    )


def to_png(figure: Figure, dpi: int = 150) -> bytes:
    """A PNG on white."""
    import matplotlib

    file = io.BytesIO()
    with matplotlib.rc_context(_SETTINGS):
        figure.savefig(file, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return file.getvalue()


def _own_ids(text: str, title: str) -> str:
    """Prefix every id, as several drawings share a page and matplotlib counts from 1 in each."""
    import hashlib

    prefix = "f" + hashlib.sha256(title.encode()).hexdigest()[:8]
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", text)
    return re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', text)


def _escaped(text: str) -> str:
    from html import escape

    return escape(text, quote=True)
