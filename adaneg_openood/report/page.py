"""What the page says, for its one template, ``page.html.j2``; nothing in the page points outside."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from adaneg_openood.detectors.threshold import find_threshold
from adaneg_openood.evaluation.metrics import CONVENTIONS
from adaneg_openood.evaluation.streams import ORDERS
from adaneg_openood.io.names import harmless_lines
from adaneg_openood.report.certainty import reference_of, surely_best
from adaneg_openood.report.figures import distinct_banks
from adaneg_openood.report.svg import to_svg
from adaneg_openood.report.tables import GROUP_NAMES, Table, filled_negatives

if TYPE_CHECKING:
    import pandas as pd

    from adaneg_openood.evaluation.intervals import Bootstrap
    from adaneg_openood.report.figures import Picture
    from adaneg_openood.report.record import RunRecord

_NEGATIVES_SHOWN, _CONFUSIONS_SHOWN, _IMAGES_SHOWN = 20, 15, 300
_LEAST_IMAGES = 20  # below which a threshold says little
_STRIPS = {
    ("ood", "high"): "OOD images taken most surely for ID",
    ("ood", "low"): "OOD images recognised most surely",
    ("id", "low"): "ID images taken most surely for OOD",
    ("id", "high"): "ID images recognised most surely",
}


def page(
    record: RunRecord,
    tables: Sequence[Table],
    pictures: Iterable[Picture],
    title: str,
    bootstrap: Bootstrap | None = None,
    certainty: pd.DataFrame | None = None,
    images: pd.DataFrame | None = None,
) -> str:
    """The report as HTML text.

    Args:
        record: the run.
        tables: of :func:`~adaneg_openood.report.tables.run_tables`.
        pictures: of :func:`~adaneg_openood.report.figures.run_pictures`.
        title: of the page.
        bootstrap, certainty: intervals and tests, see
            :func:`~adaneg_openood.report.certainty.certainty_table`; None shows none.
        images: of :func:`~adaneg_openood.report.image_table.image_table`, or None.
    """
    from jinja2 import Environment, PackageLoader

    figures: dict[str, list[dict[str, str]]] = {dataset: [] for dataset in record.sets}
    for picture in pictures:
        svg = to_svg(picture.figure, picture.caption)
        figures[picture.dataset].append({"svg": svg, "caption": picture.caption})
    environment = Environment(
        loader=PackageLoader("adaneg_openood", "report"),
        autoescape=True,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html.j2").render(
        title=title,
        subtitle=_subtitle(record),
        warnings=record.results.warnings,
        findings=_findings(tables, bootstrap),
        legend=_legend(record, bootstrap),
        tables=[_table(table, bootstrap) for table in tables],
        certainty=None if certainty is None else _certainty(certainty),
        reference=None if bootstrap is None else reference_of(bootstrap),
        sets=[_set(record, name, index, figures[name]) for index, name in enumerate(record.sets)],
        example_method=record.example_method,
        first_seed=record.seeds[0],
        confused=_confused(record),
        images=None if images is None or images.empty else _images(images),
        provenance=_provenance(record),
    )


def _visible(value: object) -> object:
    """Names of strangers, without what hides in them; markup of our own is left alone."""
    return harmless_lines(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _subtitle(record: RunRecord) -> str:
    seeds = ", ".join(map(str, record.seeds))
    order = "mixed streams" if record.order == "mixed" else "ID images first"
    return (
        f"{record.n_classes} ID classes, {len(record.id_labels):,} ID images, {len(record.sets)} "
        f"OOD sets; {order}, seeds {seeds}, batch size {record.batch_size}"
    )


def _findings(tables: Sequence[Table], bootstrap: Bootstrap | None) -> list[str]:
    """What was compared, in one sentence per group of sets, with the interval where there is one."""
    auroc = next(table for table in tables if table.metric == "AUROC")
    found = []
    for row, column in GROUP_NAMES.items():
        if column not in auroc.mean.columns or len(auroc.mean) < 2:
            continue
        values = {str(name): float(value) for name, value in auroc.mean[column].items()}
        best = max(values, key=lambda name: values[name])
        said = f"On {column.split()[0]} OOD sets {best} has the highest mean AUROC, {values[best]:.2f} %"
        if bootstrap is None:
            found.append(f"{said}.")
            continue
        interval = bootstrap.intervals(best, row)["AUROC"]
        said += f" (95 % interval {interval.low:.2f} to {interval.high:.2f})"
        reference = reference_of(bootstrap)
        if best != reference:
            other = bootstrap.differences(best, reference, row)["AUROC"]
            said += (
                f"; its difference to {reference} is {other.value:+.2f} points, "
                f"{other.low:+.2f} to {other.high:+.2f}"
            )
            if other.low <= 0 <= other.high:
                said += ", which holds 0: these images do not tell the two apart"
        found.append(f"{said}.")
    return found


def _legend(record: RunRecord, bootstrap: Bootstrap | None) -> str:
    def convention(metric: str) -> str:
        return CONVENTIONS[metric].partition(": ")[2]

    parts = [
        "The best value is bold and the second best underlined; values that print alike share a rank."
    ]
    if bootstrap is not None:
        parts.append("A best value is shaded only where a paired test tells it from the second best.")
    if len(record.seeds) > 1:
        parts.append("A cell shows the mean ± the standard deviation over stream orders.")
    parts.append(
        "FPR95 exists in two conventions that are never comparable with each other: OOD positive is the "
        f"{convention('FPR@95')}; ID positive is the {convention('FPR@95 (ID positive)')}."
    )
    return " ".join(parts)


def _table(table: Table, bootstrap: Bootstrap | None) -> dict[str, Any]:
    marks = {1: "best", 2: "second"}
    columns = [str(column) for column in table.mean.columns]
    sure = {column: surely_best(table, column, bootstrap) for column in columns}
    rows = []
    for method in map(str, table.mean.index):
        cells = []
        for column in columns:
            mark = marks.get(table.place(method, column), "")
            shaded = " sure" if sure[column] == method else ""
            cells.append({"text": table.cell(method, column), "mark": mark + shaded})
        rows.append({"method": method, "cells": cells})
    direction = "higher is better" if table.higher_is_better else "lower is better"
    return {"metric": table.metric, "direction": direction, "columns": columns, "rows": rows}


def _certainty(frame: pd.DataFrame) -> list[dict[str, Any]]:
    parts = []
    for metric, rows in frame.groupby("metric", sort=False):
        means = rows[rows["column"].str.endswith("(mean)")]
        body = []
        for row in (means if len(means) else rows).to_dict("records"):
            compared = row["method"] != row["reference"]
            ends = f"[{row['difference_low']:+.2f}, {row['difference_high']:+.2f}]" if compared else ""
            body.append(
                {
                    "column": row["column"],
                    "method": row["method"],
                    "interval": f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]",
                    "difference": f"{row['difference']:+.2f} {ends}" if compared else "",
                    "p": f"{row['p_value']:.3f}" if compared else "",
                }
            )
        parts.append({"metric": metric, "rows": body})
    return parts


def _set(record: RunRecord, dataset: str, index: int, figures: list[dict[str, str]]) -> dict[str, Any]:
    strips = []
    for (side, end), title in _STRIPS.items():
        chosen = [e for e in record.examples if (e.dataset, e.side, e.end) == (dataset, side, end)]
        if chosen:
            examples = [
                {
                    "file": example.file,
                    "picture": base64.b64encode(example.picture).decode("ascii"),
                    "conf": f"{example.conf:.4f}",
                    "text": example.text,
                }
                for example in chosen
            ]
            strips.append({"title": title, "examples": examples})
    return {
        "anchor": f"set-{index}",
        "name": dataset,
        "split": record.sets[dataset],
        "n_ood": f"{record.n_ood(dataset):,}",
        "figures": figures,
        "thresholds": [_threshold(record, method, dataset) for method in record.methods],
        "banks": [_bank(record, names, dataset) for names, _ in distinct_banks(record, dataset)],
        "strips": strips,
    }


def _threshold(record: RunRecord, method: str, dataset: str) -> dict[str, str]:
    """The threshold that keeps 95 % of the ID images of the first stream, and what it lets through."""
    result = record.stream_of(method, dataset)
    is_ood = result.label == -1
    row = {"method": method, "value": "", "kept": "", "passed": "", "taken_for": ""}
    if result.n_id < _LEAST_IMAGES:
        return {**row, "value": "too few ID images"}
    value = find_threshold(result.conf[~is_ood]).value
    passed = is_ood & (result.conf >= value)
    names = Counter(result.pred[passed].tolist()).most_common(3)
    return {
        **row,
        "value": f"{value:.4f}",
        "kept": f"{100 * float(np.mean(result.conf[~is_ood] >= value)):.1f} %",
        "passed": f"{int(passed.sum()):,} ({100 * float(passed.sum()) / result.n_ood:.1f} %)",
        "taken_for": ", ".join(f"{record.row_name(label)} ({n})" for label, n in names),
    }


def _bank(record: RunRecord, methods: Sequence[str], dataset: str) -> dict[str, Any]:
    """The fullest negative rows of a bank; methods whose banks are alike share it."""
    frame = filled_negatives(record, methods[0], dataset)
    if frame.empty:
        return {"methods": ", ".join(methods), "said": "No negative row holds an image.", "rows": []}
    more = f" The fullest {_NEGATIVES_SHOWN} are listed." if len(frame) > _NEGATIVES_SHOWN else ""
    right = 100.0 * frame["of_ood"].sum() / frame["images"].sum()
    said = (
        f"{len(frame):,} negative rows are in use. They hold {frame['images'].sum():,} images, of which "
        f"{right:.1f} % are OOD images.{more}"
    )
    rows = frame.head(_NEGATIVES_SHOWN).to_dict("records")
    return {"methods": ", ".join(methods), "said": said, "rows": rows}


def _confused(record: RunRecord) -> list[dict[str, Any]]:
    """Pairs of classes that ID images are most often confused in, by the zero-shot-like first method."""
    result = record.stream_of(record.methods[0], next(iter(record.sets)))
    wrong = (result.label >= 0) & (result.label != result.pred)
    pairs = Counter(zip(result.label[wrong].tolist(), result.pred[wrong].tolist()))
    return [
        {"label": record.row_name(label), "pred": record.row_name(pred), "images": n}
        for (label, pred), n in pairs.most_common(_CONFUSIONS_SHOWN)
    ]


def _images(frame: pd.DataFrame) -> dict[str, Any]:
    shown = frame.head(_IMAGES_SHOWN)
    said = f"The file images.csv beside this page lists all {len(frame):,} images"
    said += f", of which the first {len(shown):,} are here." if len(shown) < len(frame) else "."
    rows = [
        [f"{value:.4f}" if isinstance(value, float) else str(value) for value in row]
        for row in shown.itertuples(index=False)
    ]
    return {"said": said, "columns": list(shown.columns), "rows": rows}


def _provenance(record: RunRecord) -> list[dict[str, Any]]:
    about = dict(record.provenance)
    protocol = {
        "stream order": f"{record.order}: {ORDERS.get(record.order, '')}",
        "seeds": list(record.seeds),
        "batch size": record.batch_size,
        "before each stream": "the detector forgets everything",
        "run made": about.pop("made", ""),
        "platform": about.pop("platform", ""),
        "device": about.pop("device", ""),
    }
    features = dict(about.pop("features", {}))
    files = features.pop("files", {})
    methods, benchmark = about.pop("methods", {}), about.pop("benchmark", {})
    parts = [
        ("Protocol", protocol, ""),
        ("Versions", about.pop("versions", {}), ""),
        ("Features", {**features, **about}, ""),
        ("Files", files, f"{len(files)} feature file(s) and their SHA-256"),
        ("Benchmark", benchmark, ""),
        ("Methods", methods, ""),
    ]
    return [
        {"title": title, "facts": {key: _flat(fact) for key, fact in facts.items()}, "folded": folded}
        for title, facts, folded in parts
        if facts
    ]


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {_flat(part)}" for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_flat, value))
    return str(value)
