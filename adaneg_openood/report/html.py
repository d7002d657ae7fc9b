"""One self-contained page: nothing in it points outside."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adaneg_openood.evaluation.metrics import CONVENTIONS
from adaneg_openood.evaluation.streams import ORDERS
from adaneg_openood.report.drawing import to_svg
from adaneg_openood.report.figures import distinct_banks
from adaneg_openood.report.style import STYLE
from adaneg_openood.report.tables import Table, filled_negatives

if TYPE_CHECKING:
    import pandas as pd

    from adaneg_openood.report.figures import Picture
    from adaneg_openood.report.record import Example, RunRecord

_NEGATIVES_SHOWN = 20
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
    certainty: pd.DataFrame | None = None,
) -> str:
    """The report as HTML text.

    Args:
        record: the run.
        tables: of :func:`~adaneg_openood.report.tables.run_tables`.
        pictures: of :func:`~adaneg_openood.report.figures.run_pictures`.
        title: of the page.
        certainty: of :func:`~adaneg_openood.report.certainty.certainty_table`, or None.
    """
    by_set: dict[str, list[str]] = {dataset: [] for dataset in record.sets}
    for picture in pictures:
        by_set[picture.dataset].append(_figure(picture))
    anchors = {dataset: f"set-{index}" for index, dataset in enumerate(record.sets)}
    links = [("#tables", "Tables"), *((f"#{anchor}", name) for name, anchor in anchors.items())]
    body = [
        "<header>",
        f"<h1>{_text(title)}</h1>",
        f'<p class="soft">{_text(_subtitle(record))}</p>',
        "<nav>" + "".join(f'<a href="{to}">{_text(name)}</a>' for to, name in links),
        '<a href="#provenance">Provenance</a></nav>',
        "</header>",
        f"<ul>{''.join(f'<li>{_text(said)}</li>' for said in _findings(tables))}</ul>",
        '<h2 id="tables">Tables</h2>',
        '<p class="soft">Best in bold, second best underlined; values that print alike share a rank. '
        + ("Mean ± standard deviation over stream orders. " if len(record.seeds) > 1 else "")
        + "FPR95 exists in two conventions that are never comparable with each other: "
        + f"OOD positive is the {_text(_convention('FPR@95'))}; "
        + f"ID positive is the {_text(_convention('FPR@95 (ID positive)'))}.</p>",
        *(_table(table) for table in tables),
        *([] if certainty is None else _certainty(certainty)),
    ]
    for dataset, split in record.sets.items():
        n_ood = record.n_ood(dataset)
        body += [
            f'<h2 id="{anchors[dataset]}">{_text(dataset)} '
            f'<span class="soft">({split}-OOD, {n_ood:,} images)</span></h2>',
            *by_set[dataset],
            *(_negatives(record, names, dataset) for names, _ in distinct_banks(record, dataset)),
            *_strips(record, dataset),
        ]
    body += ['<h2 id="provenance">Provenance</h2>', *_provenance(record)]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def _subtitle(record: RunRecord) -> str:
    seeds = ", ".join(map(str, record.seeds))
    order = "mixed streams" if record.order == "mixed" else "ID images first"
    return (
        f"{record.n_classes} ID classes, {len(record.id_labels):,} ID images, {len(record.sets)} "
        f"OOD sets; {order}, seeds {seeds}, batch size {record.batch_size}"
    )


def _findings(tables: Sequence[Table]) -> list[str]:
    """Which method's group means are best, a line a metric."""
    found = []
    for table in tables[:3]:
        said = []
        for column in map(str, table.mean.columns):
            if column.endswith("(mean)"):
                values = {str(name): float(v) for name, v in table.mean[column].items()}
                best = (max if table.higher_is_better else min)(values, key=lambda name: values[name])
                said.append(f"{column.split()[0]}-OOD {best}, {values[best]:.2f} %")
        found.append(f"Best {table.metric}: " + "; ".join(said))
    return found


def _convention(metric: str) -> str:
    return CONVENTIONS[metric].partition(": ")[2]


def _table(table: Table) -> str:
    head = "".join(f"<th>{_text(str(column))}</th>" for column in table.mean.columns)
    rows = []
    marks = {1: ' class="best"', 2: ' class="second"'}
    for method in map(str, table.mean.index):
        cells = [
            f"<td{marks.get(table.place(method, column), '')}>{_text(table.cell(method, column))}</td>"
            for column in map(str, table.mean.columns)
        ]
        rows.append(f'<tr><td class="text">{_text(method)}</td>{"".join(cells)}</tr>')
    direction = "higher is better" if table.higher_is_better else "lower is better"
    return (
        f'<div class="scroll"><table><caption><strong>{_text(table.metric)}</strong>, %, {direction}'
        f'</caption><thead><tr><th class="text">method</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _certainty(frame: pd.DataFrame) -> list[str]:
    reference = str(frame["reference"].iloc[0])
    parts = [
        "<h3>How sure</h3>",
        '<p class="soft">95 % bootstrap intervals over the test images (ID and OOD drawn apart, '
        f"scores as they are), and the difference to {_text(reference)} on the same draws with the "
        "p-value of a paired test. How much the stream order matters is the ± of the tables above.</p>",
    ]
    for metric, rows in frame.groupby("metric", sort=False):
        means = rows[rows["column"].str.endswith("(mean)")]
        body = []
        for row in (means if len(means) else rows).to_dict("records"):
            interval = f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
            test = "<td></td><td></td>"
            if row["method"] != reference:
                ends = f"[{row['difference_low']:+.2f}, {row['difference_high']:+.2f}]"
                test = f"<td>{row['difference']:+.2f} {ends}</td><td>{row['p_value']:.3f}</td>"
            names = "".join(f'<td class="text">{_text(row[key])}</td>' for key in ("column", "method"))
            body.append(f"<tr>{names}<td>{interval}</td>{test}</tr>")
        parts.append(
            f'<div class="scroll"><table><caption><strong>{_text(str(metric))}</strong>, %</caption>'
            '<thead><tr><th class="text">sets</th><th class="text">method</th><th>interval</th>'
            f"<th>difference to {_text(reference)}</th><th>p</th></tr></thead>"
            f"<tbody>{''.join(body)}</tbody></table></div>"
        )
    return parts


def _figure(picture: Picture) -> str:
    caption = _text(picture.caption)
    return (
        f"<figure>{to_svg(picture.figure, picture.caption)}<figcaption>{caption}</figcaption></figure>"
    )


def _negatives(record: RunRecord, methods: Sequence[str], dataset: str) -> str:
    """The fullest negative rows of a bank; methods whose banks are alike share it."""
    frame = filled_negatives(record, methods[0], dataset)
    head = f"<h3>Negatives that were filled: {_text(', '.join(methods))}</h3>"
    if frame.empty:
        return f'{head}<p class="soft">No negative row holds an image.</p>'
    rows = "".join(
        f'<tr><td class="text">{_text(str(row.name_))}</td><td>{row.row}</td><td>{row.images}</td>'
        f"<td>{row.of_ood}</td></tr>"
        for row in frame.rename(columns={"name": "name_"}).head(_NEGATIVES_SHOWN).itertuples()
    )
    more = f" The fullest {_NEGATIVES_SHOWN} are listed." if len(frame) > _NEGATIVES_SHOWN else ""
    right = 100.0 * frame["of_ood"].sum() / frame["images"].sum()
    return (
        f'{head}<p class="soft">Negative rows in use: {len(frame):,}; images in them: '
        f"{frame['images'].sum():,}, of which {right:.1f} % are OOD images.{more}</p>"
        '<div class="scroll"><table><thead><tr><th class="text">negative</th><th>text row</th>'
        f"<th>images</th><th>of them OOD</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _strips(record: RunRecord, dataset: str) -> list[str]:
    parts = []
    for (side, end), title in _STRIPS.items():
        chosen = [e for e in record.examples if (e.dataset, e.side, e.end) == (dataset, side, end)]
        if chosen:
            strip = "".join(map(_example, chosen))
            parts.append(f'<h3>{title}</h3><div class="strip">{strip}</div>')
    if parts:
        said = f"Examples by the confidence of {record.example_method}, seed {record.seeds[0]}."
        parts.insert(0, f'<p class="soft">{_text(said)}</p>')
    return parts


def _example(example: Example) -> str:
    picture = base64.b64encode(example.picture).decode("ascii")
    return (
        f'<div title="{_text(example.file)}"><img alt="{_text(example.file)}" '
        f'src="data:image/png;base64,{picture}">{example.conf:.4f}<br>{_text(example.text)}</div>'
    )


def _provenance(record: RunRecord) -> list[str]:
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
        "<h3>Protocol</h3>",
        _pairs(protocol),
        "<h3>Versions</h3>",
        _pairs(about.pop("versions", {})),
    ]
    parts += ["<h3>Features</h3>", _pairs({**features, **about})]
    if files:
        summary = f"<summary>{len(files)} feature file(s) and their SHA-256</summary>"
        parts.append(f"<details>{summary}{_pairs(files)}</details>")
    if benchmark:
        parts += ["<h3>Benchmark</h3>", _pairs(benchmark)]
    parts.append("<h3>Methods</h3>")
    parts.append(_pairs(methods))
    return parts


def _pairs(values: Mapping[str, Any]) -> str:
    start, middle, end = '<tr><td class="text">', '</td><td class="text"><code>', "</code></td></tr>"
    rows = "".join(
        f"{start}{_text(str(key))}{middle}{_text(_flat(value))}{end}" for key, value in values.items()
    )
    return f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>'


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {_flat(part)}" for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_flat, value))
    return str(value)


def _text(text: str) -> str:
    return html.escape(text, quote=True)
