"""The figures of a report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from adaneg_openood.evaluation import StreamResult
from adaneg_openood.evaluation.drawing import (
    FAINT,
    ID_COLOUR,
    INK,
    OOD_COLOUR,
    WIDTH,
    drawing,
    legend_below,
    method_style,
)
from adaneg_openood.report.curves import fpr_over_stream, histogram, roc, threshold_fpr95
from adaneg_openood.report.record import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BINS = 40
_FEW_ROWS = 20  # a panel of rows shows at least these


class Picture(NamedTuple):
    """A figure, what to call its file, its caption, and the OOD set it is about."""

    name: str
    caption: str
    dataset: str
    figure: Figure


def run_pictures(record: RunRecord) -> Iterator[Picture]:
    """Every figure of a run, OOD set by OOD set."""
    for dataset in record.sets:
        slug = "".join(c if c.isalnum() else "-" for c in dataset)
        yield Picture(
            f"{slug}-scores",
            f"{dataset}: confidences of ID and OOD images, seed {record.seeds[0]}. "
            "Left of the dashed line lie 95 % of the OOD images; FPR95 is the share of ID images there.",
            dataset,
            score_histograms(record, dataset),
        )
        yield Picture(
            f"{slug}-roc-and-stream",
            f"{dataset}: ROC curves (seed {record.seeds[0]}), and FPR95 (OOD positive) over the images "
            "seen so far, mean over seeds with the range shaded.",
            dataset,
            roc_and_stream(record, dataset),
        )
        if record.bank_methods:
            yield Picture(
                f"{slug}-bank",
                f"{dataset}: images cached in each row of the bank at the stream's end (seed "
                f"{record.seeds[0]}), fullest rows first, and rows in use as the stream goes on.",
                dataset,
                bank_occupancy(record, dataset),
            )


def score_histograms(record: RunRecord, dataset: str) -> Figure:
    """One panel per method: share of ID and of OOD images per bin of confidence."""
    n = len(record.methods)
    columns = min(n, 4)
    rows = -(-n // columns)
    is_ood = record.labels(dataset) == -1
    with drawing(WIDTH, 2.5 * rows + 0.3, nrows=rows, ncols=columns, squeeze=False) as (figure, axes):
        for panel in axes.flat[n:]:
            panel.set_visible(False)
        for panel, method in zip(axes.flat, record.methods):
            conf = record.conf(method, dataset)
            edges = np.linspace(conf.min(), max(conf.max(), conf.min() + 1e-6), _BINS + 1)
            for mask, name, colour in ((~is_ood, "ID", ID_COLOUR), (is_ood, "OOD", OOD_COLOUR)):
                shares = histogram(conf[mask], edges)
                panel.stairs(shares, edges, fill=True, alpha=0.3, color=colour)
                panel.stairs(shares, edges, color=colour, linewidth=1.4, label=f"{name} images")
            cut, fpr = threshold_fpr95(conf, is_ood)
            panel.axvline(cut, color=INK, linestyle=(0, (3, 2)), linewidth=1)
            panel.set_title(f"{method}\nFPR95 {fpr:.1f} %", loc="left")
            panel.set_xlabel("confidence")
            panel.grid(axis="x", visible=False)
            panel.locator_params(axis="x", nbins=4)
        for row in axes:
            row[0].set_ylabel("% of images per bin")
        legend_below(figure, axes.flat[0])
    return figure


def roc_and_stream(record: RunRecord, dataset: str) -> Figure:
    """ROC curves on the left, FPR95 over the stream on the right."""
    is_ood = record.labels(dataset) == -1
    with drawing(WIDTH, 3.7, ncols=2) as (figure, (left, right)):
        left.plot([0, 100], [0, 100], color=FAINT, linewidth=0.8, linestyle=(0, (2, 2)))
        for index, method in enumerate(record.methods):
            style = method_style(index)
            curve = roc(record.conf(method, dataset), is_ood)
            left.plot(curve.fpr, curve.tpr, label=method, **style)
            _course(right, record, method, dataset, is_ood, style)
        left.axhline(95, color=FAINT, linewidth=0.8)
        left.set_yticks((0, 20, 40, 60, 80, 95))
        left.set(xlabel="ID images flagged (%)", ylabel="OOD images detected (%)")
        left.set(xlim=(-1, 101), ylim=(-1, 101))
        left.set_title("ROC", loc="left")
        right.set(xlabel="images seen", ylabel="FPR95 (OOD positive), %")
        right.set_ylim(bottom=0)
        right.set_title("FPR95 over the stream so far", loc="left")
        legend_below(figure, left)
    return figure


def _course(
    axes: Axes,
    record: RunRecord,
    method: str,
    dataset: str,
    is_ood: np.ndarray,
    style: dict[str, object],
) -> None:
    courses = [
        fpr_over_stream(
            record.conf(method, dataset, index), is_ood, record.stream(dataset, index), record.batch_size
        )
        for index in range(len(record.seeds))
    ]
    # a short stream may begin with one kind of image only: keep the points that all seeds have
    common = courses[0].seen
    for course in courses[1:]:
        common = np.intersect1d(common, course.seen)
    if not len(common):
        return
    values = np.stack([course.fpr95[np.isin(course.seen, common)] for course in courses])
    mark = "o" if len(common) == 1 else None
    axes.plot(common, values.mean(axis=0), marker=mark, **style)  # type: ignore[arg-type]
    axes.fill_between(
        common,
        values.min(axis=0),
        values.max(axis=0),
        color=str(style["color"]),
        alpha=0.13,
        linewidth=0,
    )


def bank_occupancy(record: RunRecord, dataset: str) -> Figure:
    """Images per ID row, per negative row, and rows in use over time; one line of panels a bank.

    What is cached does not depend on the proxies, so methods whose banks are equal share a line.
    """
    banks = distinct_banks(record, dataset)
    c = record.n_classes
    with drawing(WIDTH, 2.4 * len(banks) + 0.5, nrows=len(banks), ncols=3, squeeze=False) as (
        figure,
        axes,
    ):
        for (of_id, of_neg, course), (names, stream) in zip(axes, banks):
            assert stream.counts is not None and stream.ood_counts is not None
            assert stream.filled is not None
            counts, oods = stream.counts, stream.ood_counts
            _rows(of_id, counts[:c], oods[:c], "ID rows")
            _rows(of_neg, counts[c:], oods[c:], "negative rows")
            of_id.set_ylabel("\n".join([*names, "images cached"]))
            n_images = len(stream.conf)
            seen = np.minimum(np.arange(1, len(stream.filled) + 1) * record.batch_size, n_images)
            sides = (
                ("ID", ID_COLOUR, c, "solid"),
                ("negative", OOD_COLOUR, len(counts) - c, (0, (5, 1.5))),
            )
            for side, (name, colour, total, dash) in enumerate(sides):
                share = 100.0 * stream.filled[:, side] / max(1, total)
                course.plot(
                    seen, share, color=colour, linestyle=dash, marker="o" if len(seen) < 3 else None
                )
                course.annotate(
                    f"{name} rows",
                    (seen[-1], share[-1]),
                    ha="right",
                    va="bottom",
                    color=colour,
                    fontsize=8.5,
                )
            course.set_title("rows that hold an image", loc="left")
            course.set(ylabel="% of rows", ylim=(0, 112), xlim=(0, None), yticks=(0, 25, 50, 75, 100))
        for panel, name in zip(axes[-1], ("row, fullest first", "row, fullest first", "images seen")):
            panel.set_xlabel(name)
        legend_below(figure, axes[0][0])
    return figure


def distinct_banks(record: RunRecord, dataset: str) -> list[tuple[list[str], StreamResult]]:
    found: list[tuple[list[str], StreamResult]] = []
    for method in record.bank_methods:
        stream = record.stream_of(method, dataset)
        for names, known in found:
            if all(
                np.array_equal(getattr(stream, part), getattr(known, part))
                for part in ("counts", "ood_counts", "filled")
            ):
                names.append(method)
                break
        else:
            found.append(([method], stream))
    return found


def _rows(axes: Axes, counts: np.ndarray, oods: np.ndarray, title: str) -> None:
    """Rows sorted by fill, stacked: ID images below, OOD images above."""
    used = int((counts > 0).sum())
    shown = min(len(counts), max(_FEW_ROWS, round(1.1 * used)))
    order = np.lexsort((oods, -counts))[:shown]
    full, ids = counts[order], (counts - oods)[order]
    if shown <= 120:
        places = np.arange(shown) + 0.5
        axes.bar(places, ids, width=0.82, color=ID_COLOUR, label="ID images")
        axes.bar(places, full - ids, bottom=ids, width=0.82, color=OOD_COLOUR, label="OOD images")
    else:
        edges = np.arange(shown + 1)
        axes.stairs(ids, edges, fill=True, color=ID_COLOUR, label="ID images")
        axes.stairs(full, edges, baseline=ids, fill=True, color=OOD_COLOUR, label="OOD images")
    axes.set_title(f"{title}: {used} of {len(counts)} used", loc="left")
    axes.set_xlim(0, shown)
    axes.set_ylim(0, max(1, int(counts.max())) * 1.05)
    axes.grid(axis="x", visible=False)
    axes.locator_params(axis="both", integer=True, nbins=5)
