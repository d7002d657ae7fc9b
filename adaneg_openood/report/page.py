"""What the page says, for its one template, ``page.html.j2``; nothing in the page points outside."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from adaneg_openood.evaluation.metrics import CONVENTIONS
from adaneg_openood.evaluation.streams import ORDERS
from adaneg_openood.io.names import harmless_lines
from adaneg_openood.report.certainty import reference_of, surely_best
from adaneg_openood.report.image_table import threshold_of
from adaneg_openood.report.record import MEMORY, telling_rows
from adaneg_openood.report.svg import to_svg
from adaneg_openood.report.tables import GROUP_NAMES, Table, filled_negatives

if TYPE_CHECKING:
    import pandas as pd

    from adaneg_openood.evaluation import StreamResult
    from adaneg_openood.evaluation.intervals import Bootstrap
    from adaneg_openood.report.figures import Picture
    from adaneg_openood.report.record import RunRecord

_NEGATIVES_SHOWN, _CLASSES_SHOWN, _CONFUSIONS_SHOWN, _IMAGES_SHOWN = 20, 4, 15, 300
_STRIPS = {
    "ood high": "OOD images taken most surely for ID",
    "ood low": "OOD images recognised most surely",
    "id low": "ID images taken most surely for OOD",
    "id high": "ID images recognised most surely",
}


def page(
    record: RunRecord,
    tables: Sequence[Table],
    pictures: Iterable[Picture],
    title: str,
    bootstrap: Bootstrap | None,
    certainty: pd.DataFrame | None,
    images: pd.DataFrame,
) -> str:
    """The report as HTML text.

    Args:
        record: the run.
        tables: of :func:`~adaneg_openood.report.tables.run_tables`.
        pictures: of :func:`~adaneg_openood.report.figures.run_pictures`.
        title: of the page.
        bootstrap, certainty: intervals and tests, see
            :func:`~adaneg_openood.report.certainty.certainty_table`; None shows none.
        images: of :func:`~adaneg_openood.report.image_table.image_table`.
    """
    from jinja2 import Environment, PackageLoader
    from markupsafe import Markup

    figures: dict[str, list[dict[str, str]]] = {dataset: [] for dataset in record.results.splits}
    for picture in pictures:
        svg = Markup(to_svg(picture.figure, picture.caption))
        figures[picture.dataset].append({"svg": svg, "caption": picture.caption})
    environment = Environment(
        loader=PackageLoader("adaneg_openood", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # escaping HTML is not enough: names may turn text round, or be half a character
        finalize=lambda value: harmless_lines(value) if type(value) is str else value,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    return environment.get_template("page.html.j2").render(
        title=title,
        record=record,
        run=record.results,
        findings=_findings(record, tables, bootstrap),
        conventions={name: CONVENTIONS[name].partition(": ")[2] for name in CONVENTIONS},
        tables=[_table(table, bootstrap) for table in tables],
        certainty=None if certainty is None else _certainty(certainty),
        reference=None if bootstrap is None else reference_of(bootstrap),
        sets=[
            _set(record, name, index, figures[name]) for index, name in enumerate(record.results.splits)
        ],
        confused=_confused(record),
        resembling=_resembling(record),
        images=_images(images),
        provenance=_provenance(record),
    )


def _findings(record: RunRecord, tables: Sequence[Table], bootstrap: Bootstrap | None) -> list[str]:
    """What was compared, in one sentence per group of sets, with the interval where there is one."""
    auroc = next(table for table in tables if table.key == "AUROC")
    methods, found = record.results.methods, []
    compared = f"{', '.join(methods[:-1])} and {methods[-1]}" if len(methods) > 1 else methods[0]
    for group, column in GROUP_NAMES.items():
        row = group
        sets = [name for name, split in record.results.splits.items() if column.startswith(split)]
        if column not in auroc.mean.columns and len(sets) == 1:
            row = column = sets[0]  # one set alone has no mean
        if column not in auroc.mean.columns:
            continue
        shown = auroc.mean[column].round(2)
        highest = [str(method) for method in shown.index[shown == shown.max()]]
        best = highest[0]
        kind = record.results.splits[sets[0]]
        said = "" if len(methods) == 1 else f"Of {compared}, "
        said += f"{' and '.join(highest)} {'have' if len(highest) > 1 else 'has'} "
        said += f"{'the highest ' * (len(methods) > 1)}{'mean ' * (len(sets) > 1)}AUROC"
        said += f" on the {kind} OOD set{'s' * (len(sets) > 1)} ({', '.join(sets)}), "
        said += f"{float(auroc.mean.loc[best, column]):.2f} %"
        if bootstrap is not None:
            interval = bootstrap.intervals(best, row)["AUROC"]
            said += f" (95 % interval {interval.low:.2f} to {interval.high:.2f})"
            reference = reference_of(bootstrap)
            if reference not in highest:
                test = bootstrap.differences(best, reference, row)["AUROC"]
                said += (
                    f"; its difference to {reference} is {test.value:+.2f} points "
                    f"(95 % interval {test.low:+.2f} to {test.high:+.2f})"
                )
                if test.may_be_chance:
                    said += ", which may be chance: these images do not tell the two apart"
        found.append(f"{said}.")
    return found


def _table(table: Table, bootstrap: Bootstrap | None) -> dict[str, Any]:
    columns = list(map(str, table.mean.columns))
    sure = {column: surely_best(table, column, bootstrap) for column in columns}
    marks = {1: "best", 2: "second"}
    rows = []
    for method, *cells in table.text.itertuples():
        ranks = table.rank.loc[method]
        rows.append(
            {
                "method": method,
                "cells": [
                    {
                        "text": text,
                        "mark": marks.get(int(ranks[column]), "") + " sure" * (sure[column] == method),
                    }
                    for column, text in zip(columns, cells)
                ],
            }
        )
    return {"metric": table.metric, "direction": table.direction, "columns": columns, "rows": rows}


def _certainty(frame: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """metric -> its rows, of means alone where there are any."""
    found = {}
    for metric, rows in frame.groupby("metric", sort=False):
        means = rows[rows["column"].str.endswith("(mean)")]
        found[str(metric)] = (means if len(means) else rows).to_dict("records")
    return found


def _set(record: RunRecord, dataset: str, index: int, figures: list[dict[str, str]]) -> dict[str, Any]:
    run = record.results
    mine = [example for example in record.examples if example.dataset == dataset]
    return {
        "anchor": f"set-{index}",
        "name": dataset,
        "split": run.splits[dataset],
        "n_ood": record.first(run.methods[0], dataset).n_ood,
        "figures": figures,
        "thresholds": {
            method: _threshold(record, record.first(method, dataset)) for method in run.methods
        },
        "banks": [_bank(record, dataset, *bank) for bank in record.banks(dataset)],
        "strips": {
            title: chosen
            for place, title in _STRIPS.items()
            if (chosen := [example for example in mine if example.place == place])
        },
    }


def _threshold(record: RunRecord, stream: StreamResult) -> dict[str, Any]:
    """The threshold that keeps 95 % of the ID images of the first stream, and what it lets through."""
    value = threshold_of(stream)
    if value is None:
        return {}
    is_ood = stream.label == -1
    passed = is_ood & (stream.conf >= value)
    names = Counter(stream.pred[passed].tolist()).most_common(3)
    return {
        "value": value,
        "kept": 100 * float(np.mean(stream.conf[~is_ood] >= value)),
        "passed": int(passed.sum()),
        "share": 100 * float(passed.sum()) / stream.n_ood,
        "taken_for": ", ".join(f"{record.row_name(label)} ({n})" for label, n in names),
    }


def _bank(record: RunRecord, dataset: str, methods: list[str], stream: StreamResult) -> dict[str, Any]:
    """The fullest negative rows of a bank, and the rows whose images are shown."""
    assert stream.counts is not None and stream.ood_counts is not None
    frame = filled_negatives(record, methods[0], dataset)
    pictures: dict[int, list[Any]] = {}
    for example in record.examples if record.judge in methods else ():
        if (example.dataset, example.place) == (dataset, MEMORY):
            pictures.setdefault(example.row, []).append(example)
    classes, _ = telling_rows(stream, record.results.about.n_classes, _CLASSES_SHOWN)
    rows = [*frame["row"].head(_NEGATIVES_SHOWN), *classes]
    return {
        "methods": ", ".join(methods),
        "n_rows": len(frame),
        "n_images": int(frame["images"].sum()),
        "share": 100.0 * float(frame["of_ood"].sum()) / max(1, int(frame["images"].sum())),
        "cut": len(frame) > _NEGATIVES_SHOWN,
        "pictured": bool(pictures),
        "rows": [
            {
                "name": record.row_name(row),
                "kind": "class" if row in classes else "negative",
                "images": int(stream.counts[row]),
                "of_ood": int(stream.ood_counts[row]),
                "pictures": pictures.get(row, []),
            }
            for row in map(int, rows)
        ],
    }


def _confused(record: RunRecord) -> list[dict[str, Any]]:
    """Pairs of classes that the judging method confuses most often, in the first OOD set's stream."""
    stream = record.first(record.judge, next(iter(record.results.splits)))
    wrong = (stream.label >= 0) & (stream.label != stream.pred)
    pairs = Counter(zip(stream.label[wrong].tolist(), stream.pred[wrong].tolist()))
    return [
        {
            "label": record.row_name(label),
            "pred": record.row_name(pred),
            "images": n,
            "of": int((stream.label == label).sum()),
        }
        for (label, pred), n in pairs.most_common(_CONFUSIONS_SHOWN)
    ]


def _resembling(record: RunRecord) -> str:
    """The negative labels whose own names score highest, by the first method that scores them."""
    scores = next(iter(record.negative_scores.values()), np.zeros(0))
    rows = np.argsort(-scores, kind="stable")[:_NEGATIVES_SHOWN].tolist()
    n_id = record.results.about.n_classes
    return ", ".join(f"{record.row_name(n_id + row)} ({scores[row]:.2f})" for row in rows)


def _images(frame: pd.DataFrame) -> dict[str, Any]:
    """The first images of every part of the table, as many of each."""
    of_each = max(1, _IMAGES_SHOWN // frame["set"].nunique())
    shown = frame.groupby("set", sort=False).head(of_each)
    rows = [
        [f"{value:.4f}" if isinstance(value, float) else value for value in row]
        for row in shown.astype(object).itertuples(index=False)
    ]
    numeric = [frame[column].dtype.kind == "f" for column in frame]
    return {
        "n": len(frame),
        "of_each": of_each,
        "columns": list(zip(frame.columns, numeric)),
        "rows": rows,
    }


def _provenance(record: RunRecord) -> list[dict[str, Any]]:
    about, run = dict(record.provenance), record.results
    protocol = {
        "stream order": f"{run.order}: {ORDERS[run.order]}",
        "seeds": run.seeds,
        "batch size": run.batch_size,
        "before each stream": "the detector forgets everything",
        "run made": about["made"],
        "platform": about["platform"],
        "device": about["device"],
    }
    files = about["files"]
    parts = [
        ("Protocol", protocol, ""),
        ("Versions", about["versions"], ""),
        ("Features", {**about["features"], **run.about.data}, ""),
        ("Files", files, f"{len(files)} feature file(s) and their SHA-256"),
        ("Benchmark", record.results.about.provenance, ""),
        ("Methods", run.about.settings, ""),
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
