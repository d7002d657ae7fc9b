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
    method_style,
)
from adaneg_openood.reproduce.result import FPR_ID, FPR_OOD

if TYPE_CHECKING:
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
    return _varied_figure(result) if result.varies else _bar_figure(result)


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
    table, spread = result.table(), result.spread()
    group = "mean" if "mean" in table.index.get_level_values("dataset") else next(iter(result.splits))
    mean = table.xs(group, level="dataset").reset_index()
    error = spread.xs(group, level="dataset").reset_index()
    values = mean["setting"].str.extract(r"([\d.]+)(?::([\d.]+))?$").astype("float64")
    mean = mean.assign(value=values[0] / values[1].fillna(1.0))
    settings = mean.loc[mean["setting"] != "", "value"].unique()
    logarithmic = bool(len(settings) > 2 and settings.min() > 0 and settings.max() / settings.min() > 50)
    with drawing(WIDTH, 3.3, ncols=3) as (figure, axes):
        for panel, metric in zip(axes, (FPR_OOD, FPR_ID, "AUROC")):
            for index, method in enumerate(dict.fromkeys(mean["method"])):
                rows = mean[mean["method"] == method]
                style = method_style(index + 1)
                if (rows["setting"] == "").all():
                    panel.axhline(rows[metric].iloc[0], label=method, **style)
                    continue
                bars = error.loc[rows.index, metric].fillna(0.0)
                panel.errorbar(
                    rows["value"],
                    rows[metric],
                    yerr=bars,
                    label=method,
                    marker="o",
                    ms=4,
                    capsize=2,
                    **style,
                )
            if logarithmic:
                panel.set_xscale("log")
            # a deviation may reach beyond what a percentage can be
            low, high = panel.get_ylim()
            panel.set_ylim(max(0.0, low), min(101.0, high))
            panel.set_title(f"{metric}, %", loc="left")
            panel.set_xlabel(result.varies)
        _headline(figure, result, f"{_group_name(group)}, bars: standard deviation over seeds")
        legend_below(figure, axes[0])
    return figure


def _bar_figure(result: Reproduction) -> Figure:
    """FPR95 in both conventions and AUROC, one bar a row of the table, mean over the OOD sets."""
    table = result.table()
    group = "mean" if "mean" in table.index.get_level_values("dataset") else next(iter(result.splits))
    mean = table.xs(group, level="dataset").reset_index()
    names = [
        " ".join(filter(None, row)) for row in zip(mean["features"], mean["method"], mean["setting"])
    ]
    with drawing(WIDTH, 1.2 + 0.32 * len(mean), ncols=3, sharey=True) as (figure, axes):
        for panel, metric in zip(axes, (FPR_OOD, FPR_ID, "AUROC")):
            bars = panel.barh(names, mean[metric], color=ID_COLOUR, height=0.62, alpha=0.85)
            panel.bar_label(bars, fmt="%.1f", padding=3, fontsize=8.5, color=INK)
            panel.set_title(f"{metric}, %", loc="left")
            panel.set_xlim(0, 1.18 * float(mean[metric].max()) + 1e-9)
            panel.grid(axis="y", visible=False)
        axes[0].invert_yaxis()
        _headline(figure, result, _group_name(group))
    return figure


def _group_name(group: str) -> str:
    return "mean over OOD sets" if group == "mean" else group


def _headline(figure: Figure, result: Reproduction, detail: str) -> None:
    figure.suptitle(f"{result.title}\n{detail}", x=0.01, ha="left", fontsize=10)


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
