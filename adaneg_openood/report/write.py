"""Writing a report: the page, and beside it every table and picture as a file of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from adaneg_openood.evaluation.drawing import require_matplotlib, save_figure
from adaneg_openood.io.files import atomic_path
from adaneg_openood.io.names import harmless_table
from adaneg_openood.report.certainty import certainty_table
from adaneg_openood.report.figures import distinct_banks, run_pictures
from adaneg_openood.report.image_table import image_table
from adaneg_openood.report.page import page
from adaneg_openood.report.record import RunRecord
from adaneg_openood.report.tables import filled_negatives, run_tables, to_latex, to_long, to_markdown

if TYPE_CHECKING:
    import pandas as pd


def write_report(
    record: RunRecord,
    out: str | os.PathLike[str],
    *,
    files: str | os.PathLike[str] | None = None,
    title: str = "Out-of-distribution detection",
    resamples: int | None = 200,
) -> list[Path]:
    """Write the page, and beside it ``tables.csv``, ``.md`` and ``.tex``, ``runs.csv``, ``images.csv``,
    ``negatives.csv``, ``certainty.csv`` and PNGs.

    Args:
        record: of :func:`~adaneg_openood.report.collect`.
        out: the page; its name must end in ``.html``.
        files: folder for the other files; None takes the page's name without its ending.
        title: of the page.
        resamples: bootstrap resamples of the images, for intervals and paired tests, at least 2; None
            makes none, and nothing is shaded.

    Returns:
        Every file, the page first.

    Raises:
        ValueError: another ending.
        ImportError: matplotlib is absent; the message names the command that installs it.
    """
    require_matplotlib()
    target = Path(out)
    folder = folder_of(target, files)
    tables = run_tables(record.results)
    pictures = list(run_pictures(record))
    bootstrap = None if resamples is None else record.results.bootstrap(resamples)
    certainty = None if bootstrap is None else certainty_table(bootstrap)
    images = image_table(record)
    texts = {
        folder / "tables.csv": _csv(to_long(tables)),
        folder / "tables.md": to_markdown(tables),
        folder / "tables.tex": to_latex(tables),
        folder / "runs.csv": _csv(record.results.records),
        folder / "images.csv": _csv(images),
        folder / "negatives.csv": _negatives(record),
        **({} if certainty is None else {folder / "certainty.csv": _csv(certainty)}),
        target: page(record, tables, pictures, title, bootstrap, certainty, images),
    }
    for picture in pictures:
        save_figure(picture.figure, folder / f"{picture.name}.png")
    # the page last: where it is, everything is
    for path, text in texts.items():
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    names = [folder / f"{picture.name}.png" for picture in pictures]
    return [target, *(path for path in texts if path != target), *names]


def folder_of(page: Path, files: str | os.PathLike[str] | None = None) -> Path:
    """Where the other files of a page lie: ``files``, or the page's name without its ending.

    Raises:
        ValueError: a page whose name does not end in ``.html``.
    """
    if page.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{page}: the report is a page, so its name must end in .html")
    return page.with_suffix("") if files is None else Path(files)


def _csv(frame: pd.DataFrame) -> str:
    return str(harmless_table(frame).to_csv(index=False))


def _negatives(record: RunRecord) -> str:
    import pandas as pd

    parts = [
        filled_negatives(record, names[0], dataset).assign(methods=", ".join(names), dataset=dataset)
        for dataset in record.sets
        for names, _ in distinct_banks(record, dataset)
    ]
    columns = ["methods", "dataset", "row", "name", "images", "of_ood"]
    frame = pd.concat(parts) if parts else pd.DataFrame(columns=columns)
    return _csv(frame[columns])
