"""The page of a run as text, without the files beside it."""

from __future__ import annotations

from collections.abc import Iterable

from adaneg_openood.report import RunRecord
from adaneg_openood.report.certainty import certainty_table
from adaneg_openood.report.figures import Picture
from adaneg_openood.report.image_table import image_table
from adaneg_openood.report.page import page
from adaneg_openood.report.tables import run_tables


def page_text(
    record: RunRecord,
    resamples: int | None = None,
    pictures: Iterable[Picture] = (),
    title: str = "A run",
) -> str:
    """What ``write_report`` writes, by default without figures, which take time."""
    bootstrap = None if resamples is None else record.results.bootstrap(resamples)
    certainty = None if bootstrap is None else certainty_table(bootstrap)
    tables = run_tables(record.results)
    return page(record, tables, pictures, title, bootstrap, certainty, image_table(record))
