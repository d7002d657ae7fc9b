"""The figures of a report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from adaneg_openood.evaluation.drawing import (
    FAINT,
    ID_COLOUR,
    INK,
    NEGATIVE_COLOUR,
    OOD_COLOUR,
    WIDTH,
    drawing,
    legend_below,
    method_style,
)
from adaneg_openood.report.curves import fpr_over_stream, roc, threshold_fpr95
from adaneg_openood.report.record import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BINS, _MANY = 40, 400  # fewer values than these are drawn in bins of fourfold width
_FEW_ROWS = 20  # a panel of rows shows at least these
_TALLEST = 1.5  # the highest bin of negatives that is drawn whole, over that of images


class Picture(NamedTuple):
    """A figure, what to call its file, its caption, and the OOD set it is about."""

    name: str
    caption: str
    dataset: str
    figure: Figure


def run_pictures(record: RunRecord) -> Iterator[Picture]:
    """Every figure of a run, OOD set by OOD set."""
    seed = record.results.seeds[0]
    about_negatives = ""
    if record.negative_scores:
        about_negatives = (
            f" The green line ({', '.join(record.negative_scores)}) is of the negative labels: each "
            "name is scored in place of an image, against the ID names and the other negative labels, "
            "with an empty memory. Labels on the right resemble ID classes."
        )
    for dataset in record.results.splits:
        slug = "".join(c if c.isalnum() else "-" for c in dataset)
        yield Picture(
            f"{slug}-scores",
            f"{dataset}: confidences of ID and OOD images, seed {seed}. Left of the dashed line lie 95 "
            f"% of the OOD images; FPR95 is the share of ID images there.{about_negatives}",
            dataset,
            score_histograms(record, dataset),
        )
        yield Picture(
            f"{slug}-roc-and-stream",
            f"{dataset}: ROC curves (seed {seed}), and FPR95 (OOD positive) over the images seen so "
            "far, mean over seeds with the range shaded.",
            dataset,
            roc_and_stream(record, dataset),
        )
        if record.banks(dataset):
            yield Picture(
                f"{slug}-bank",
                f"{dataset}: images cached in each row of the bank at the stream's end (seed {seed}), "
                "fullest rows first, and rows in use as the stream goes on.",
                dataset,
                bank_occupancy(record, dataset),
            )


def score_histograms(record: RunRecord, dataset: str) -> Figure:
    """One panel per method: shares of ID images, OOD images and negative labels per bin of score."""
    methods = record.results.methods
    columns = min(len(methods), 4)
    rows = -(-len(methods) // columns)
    with drawing(WIDTH, 2.5 * rows + 0.3, nrows=rows, ncols=columns, squeeze=False) as (figure, axes):
        for panel in axes.flat[len(methods) :]:
            panel.set_visible(False)
        for panel, method in zip(axes.flat, methods):
            stream, negatives = record.first(method, dataset), record.negative_scores.get(method)
            conf, is_ood = stream.conf, stream.label < 0
            every = conf if negatives is None else np.concatenate([conf, negatives])
            edges = np.linspace(every.min(), max(every.max(), every.min() + 1e-6), _BINS + 1)
            tops = [
                _histogram(panel, conf[mask], edges, f"{name} images", colour)
                for mask, name, colour in ((~is_ood, "ID", ID_COLOUR), (is_ood, "OOD", OOD_COLOUR))
            ]
            if negatives is not None:
                wider = 1 if len(negatives) >= _MANY else 4
                top = _histogram(panel, negatives, edges, "negative labels", NEGATIVE_COLOUR, wider)
                if top > _TALLEST * max(tops):
                    panel.set_ylim(0, 1.08 * max(tops))
                    said = f"negatives to {top:.0f} %"
                    panel.set_title(said, loc="right", fontsize=8, color=NEGATIVE_COLOUR, y=0.97)
            cut, fpr = threshold_fpr95(conf, is_ood)
            panel.axvline(cut, color=INK, linestyle=(0, (3, 2)), linewidth=1)
            panel.set_title(f"{method}\nFPR95 {fpr:.1f} %", loc="left")
            panel.set_xlabel("confidence")
            panel.grid(axis="x", visible=False)
            panel.locator_params(axis="x", nbins=4)
        for row in axes:
            row[0].set_ylabel("% per bin")
        legend_below(figure, max(axes.flat, key=lambda panel: len(panel.get_legend_handles_labels()[0])))
    return figure


def _histogram(
    panel: Axes, values: np.ndarray, edges: np.ndarray, label: str, colour: str, wider: int = 0
) -> float:
    """Draw shares per bin, filled, or as a dashed line over ``wider`` bins each; the highest share."""
    edges = edges[:: wider or 1]
    shares = 100.0 * np.histogram(values, edges)[0] / max(1, len(values)) / (wider or 1)
    if not wider:
        panel.stairs(shares, edges, fill=True, alpha=0.3, color=colour)
    style = (0, (2, 1)) if wider else "solid"
    panel.stairs(shares, edges, color=colour, linewidth=1.4, linestyle=style, label=label)
    return float(shares.max())


def roc_and_stream(record: RunRecord, dataset: str) -> Figure:
    """ROC curves on the left, FPR95 over the stream on the right."""
    with drawing(WIDTH, 3.7, ncols=2) as (figure, (left, right)):
        left.plot([0, 100], [0, 100], color=FAINT, linewidth=0.8, linestyle=(0, (2, 2)))
        for index, method in enumerate(record.results.methods):
            stream, style = record.first(method, dataset), method_style(index)
            left.plot(*roc(stream.conf, stream.label < 0), label=method, **style)
            _course(right, record, method, dataset, style)
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


def _course(axes: Axes, record: RunRecord, method: str, dataset: str, style: dict[str, object]) -> None:
    run, courses = record.results, []
    for seed in run.seeds:
        stream, order = run.stream(method, dataset, seed), run.stream_order(dataset, seed)
        courses.append(fpr_over_stream(stream.conf, stream.label < 0, order, run.batch_size))
    # a short stream may begin with one kind of image only: the points that all seeds have
    common = [seen for seen in courses[0] if all(seen in course for course in courses)]
    if not common:
        return
    values = np.array([[course[seen] for seen in common] for course in courses])
    mark = "o" if len(common) == 1 else None
    axes.plot(common, values.mean(axis=0), marker=mark, **style)  # type: ignore[arg-type]
    low, high, colour = values.min(axis=0), values.max(axis=0), str(style["color"])
    axes.fill_between(common, low, high, color=colour, alpha=0.13, linewidth=0)


def bank_occupancy(record: RunRecord, dataset: str) -> Figure:
    """Images per ID row, per negative row, and rows in use over time; one line of panels per bank."""
    banks, c = record.banks(dataset), record.results.about.n_classes
    with drawing(WIDTH, 2.4 * len(banks) + 0.5, nrows=len(banks), ncols=3, squeeze=False) as (
        figure,
        axes,
    ):
        for (of_id, of_neg, course), (names, stream) in zip(axes, banks):
            counts, oods, filled = stream.counts, stream.ood_counts, stream.filled
            assert counts is not None and oods is not None and filled is not None
            _rows(of_id, counts[:c], oods[:c], "ID rows")
            _rows(of_neg, counts[c:], oods[c:], "negative rows")
            of_id.set_ylabel("\n".join([*names, "images cached"]))
            seen = np.minimum(
                np.arange(1, len(filled) + 1) * record.results.batch_size, len(stream.conf)
            )
            sides = (
                ("ID", ID_COLOUR, c, "solid"),
                ("negative", OOD_COLOUR, len(counts) - c, (0, (5, 1.5))),
            )
            for side, (name, colour, total, dash) in enumerate(sides):
                share = 100.0 * filled[:, side] / max(1, total)
                mark = "o" if len(seen) < 3 else None
                course.plot(seen, share, color=colour, linestyle=dash, marker=mark, label=f"{name} rows")
            course.set_title("rows that hold an image", loc="left")
            course.set(ylabel="% of rows", ylim=(0, 105), xlim=(0, None), yticks=(0, 25, 50, 75, 100))
            course.legend(loc="best", fontsize=8.5)
        for panel, name in zip(axes[-1], ("row, fullest first", "row, fullest first", "images seen")):
            panel.set_xlabel(name)
        legend_below(figure, axes[0][0])
    return figure


def _rows(axes: Axes, counts: np.ndarray, oods: np.ndarray, title: str) -> None:
    """Rows sorted by fill, stacked: ID images below, OOD images above."""
    used = int((counts > 0).sum())
    shown = min(len(counts), max(_FEW_ROWS, round(1.1 * used)))
    order = np.lexsort((oods, -counts))[:shown]
    full, ids, edges = counts[order], (counts - oods)[order], np.arange(shown + 1)
    axes.stairs(ids, edges, fill=True, color=ID_COLOUR, label="ID images")
    axes.stairs(full, edges, baseline=ids, fill=True, color=OOD_COLOUR, label="OOD images")
    axes.set_title(f"{title}: {used} of {len(counts)} used", loc="left")
    axes.set_xlim(0, shown)
    axes.set_ylim(0, max(1, int(counts.max())) * 1.05)
    axes.grid(axis="x", visible=False)
    axes.locator_params(axis="both", integer=True, nbins=5)
