"""The figures of ``reproduce``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from adaneg_openood.evaluation.drawing import (
    FAINT,
    ID_COLOUR,
    INK,
    OOD_COLOUR,
    PROXY_COLOURS,
    WIDTH,
    drawing,
    legend_below,
    lines_over,
)
from adaneg_openood.evaluation.metrics import METRICS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from adaneg_openood.reproduce.result import Reproduction


def reproduction_figure(result: Reproduction) -> Figure:
    """The picture of a target: a plane of points, lines over what was varied, or bars of a table.

    Raises:
        ImportError: matplotlib is absent.
    """
    if result.points is not None:
        return plane_figure(result)
    if not result.detects:
        return _proxy_figure(result)
    return _varied_figure(result) if result.spec.varies else _bar_figure(result)


def plane_figure(result: Reproduction) -> Figure:
    """One panel an OOD set, with images, static negatives and adaptive proxies."""
    assert result.points is not None
    styles = {
        "ID image": {"color": ID_COLOUR, "marker": "o", "s": 11, "alpha": 0.55, "linewidths": 0},
        "OOD image": {"color": OOD_COLOUR, "marker": "o", "s": 11, "alpha": 0.55, "linewidths": 0},
        "static negative": {"color": FAINT, "marker": "x", "s": 20, "linewidths": 1.0},
        "adaptive proxy": {"color": PROXY_COLOURS[0], "marker": "^", "s": 34, "linewidths": 0},
    }
    sets = list(dict.fromkeys(result.points["dataset"]))
    columns = min(3, len(sets))
    rows = -(-len(sets) // columns)
    size = WIDTH / columns if columns > 1 else 5.5
    with drawing(columns * size, rows * size * 0.95 + 0.3, nrows=rows, ncols=columns, squeeze=False) as (
        figure,
        axes,
    ):
        for panel in axes.flat[len(sets) :]:
            panel.set_visible(False)
        for panel, name in zip(axes.flat, sets):
            inside = result.points[result.points["dataset"] == name]
            for kind, style in styles.items():
                part = inside[inside["kind"] == kind]
                panel.scatter(
                    part["x"], part["y"], label=f"{kind}s".replace("proxys", "proxies"), **style
                )
            panel.set_title(name, loc="left")
            panel.set(xticks=(), yticks=())
            panel.grid(visible=False)
        legend_below(figure, axes.flat[0])
    return figure


def _varied_figure(result: Reproduction) -> Figure:
    """FPR95 in both conventions and AUROC over the setting, mean over the OOD sets, bars: seeds."""
    group, mean = _mean(result)
    detail = f"{_group_name(group)}, bars: standard deviation over seeds"
    title = f"{result.spec.title}\n{detail}"
    return lines_over(mean, "setting", "method", title, result.spec.varies)


def _bar_figure(result: Reproduction) -> Figure:
    """FPR95 in both conventions and AUROC, one bar a row of the table, mean over the OOD sets."""
    group, mean = _mean(result)
    names = [
        " ".join(filter(None, row)) for row in zip(mean["features"], mean["method"], mean["setting"])
    ]
    with drawing(WIDTH, 1.2 + 0.32 * len(mean), ncols=3, sharey=True) as (figure, axes):
        for panel, metric in zip(axes, METRICS[:3]):
            bars = panel.barh(names, mean[metric], color=ID_COLOUR, height=0.62, alpha=0.85)
            panel.bar_label(bars, fmt="%.1f", padding=3, fontsize=8.5, color=INK)
            panel.set_title(f"{metric}, %", loc="left")
            panel.set_xlim(0, 1.18 * float(mean[metric].max()) + 1e-9)
            panel.grid(axis="y", visible=False)
        axes[0].invert_yaxis()
        title = f"{result.spec.title}\n{_group_name(group)}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure


def _group_name(group: str) -> str:
    return "mean over OOD sets" if group == "mean" else group


def _mean(result: Reproduction) -> tuple[str, pd.DataFrame]:
    """The row that stands for all OOD sets, and means and deviations of every method there."""
    table = result.table().join(result.spread().add_suffix(" std"))
    group = "mean" if "mean" in table.index.get_level_values("dataset") else next(iter(result.splits))
    return group, table.xs(group, level="dataset").reset_index()


def _proxy_figure(result: Reproduction) -> Figure:
    """The ratio and the separation of each kind of negatives, OOD set by OOD set."""
    means = result.records.groupby(["dataset", "negatives"], sort=False)[["ratio", "separation"]].mean()
    sets = list(dict.fromkeys(result.records["dataset"]))
    kinds = list(dict.fromkeys(result.records["negatives"]))
    titles = {
        "ratio": "similarity of ID / of OOD images (lower is better)",
        "separation": "AUROC by margin, % (higher is better)",
    }
    with drawing(WIDTH, 3.3, ncols=2) as (figure, axes):
        for panel, (measure, title) in zip(axes, titles.items()):
            for index, kind in enumerate(kinds):
                heights = [means.loc[(name, kind), measure] for name in sets]
                places = np.arange(len(sets)) + (index - (len(kinds) - 1) / 2) * 0.27
                colour = (FAINT, *PROXY_COLOURS)[index % 3]
                panel.bar(places, heights, width=0.25, color=colour, label=kind)
            panel.set_xticks(np.arange(len(sets)), sets)
            panel.set_title(title, loc="left")
            panel.grid(axis="x", visible=False)
        legend_below(figure, axes[0])
    return figure
