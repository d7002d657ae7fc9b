"""Writing a report: the page, and beside it every table and picture as a file of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from adaneg_openood.evaluation.drawing import require_matplotlib, save_figure
from adaneg_openood.io.files import atomic_path
from adaneg_openood.io.names import harmless, harmless_table
from adaneg_openood.report.certainty import certainty_table
from adaneg_openood.report.figures import run_pictures
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
    tables, images, pictures = (
        run_tables(record.results),
        image_table(record),
        list(run_pictures(record)),
    )
    bootstrap = None if resamples is None else record.results.bootstrap(resamples)
    certainty = None if bootstrap is None else certainty_table(bootstrap)
    texts = {
        "tables.csv": _csv(to_long(tables)),
        "tables.md": to_markdown(tables),
        "tables.tex": to_latex(tables),
        "runs.csv": _csv(record.results.records),
        "images.csv": _csv(images),
        "negatives.csv": _csv(_negatives(record)),
        **({} if certainty is None else {"certainty.csv": _csv(certainty)}),
    }
    html = page(record, tables, pictures, title, bootstrap, certainty, images)
    drawn = [folder / f"{picture.name}.png" for picture in pictures]
    for picture, path in zip(pictures, drawn):
        save_figure(picture.figure, path)
    # the page last: where it is, everything is
    written = {**{folder / name: text for name, text in texts.items()}, target: html}
    for path, text in written.items():
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [target, *(folder / name for name in texts), *drawn]


def folder_of(page: Path, files: str | os.PathLike[str] | None = None) -> Path:
    """Where the other files of a page lie: ``files``, or the page's name without its ending.

    Raises:
        ValueError: a page whose name does not end in ``.html``.
    """
    if page.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{page}: the report is a page, so its name must end in .html")
    return page.with_suffix("") if files is None else Path(files)


def _csv(frame: pd.DataFrame) -> str:
    safe = harmless_table(frame).rename(columns=lambda name: harmless(name, "csv"))
    return str(safe.to_csv(index=False))


def _negatives(record: RunRecord) -> pd.DataFrame:
    """The filled negative rows of every bank."""
    import pandas as pd

    columns = ["methods", "dataset", "row", "name", "images", "of_ood"]
    parts = [
        filled_negatives(record, names[0], dataset).assign(methods=", ".join(names), dataset=dataset)
        for dataset in record.results.splits
        for names, _ in record.banks(dataset)
    ]
    return pd.concat(parts)[columns] if parts else pd.DataFrame(columns=columns)
