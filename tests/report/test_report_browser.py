"""The page in a real browser: what it loads, what is cut off on a phone, what paper shows."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("fcntl", reason="the browser is driven through pipes, which Windows has not")
from chromium import Browser, installed
from page_text import page_text

from adaneg_openood.evaluation import FeatureSet
from adaneg_openood.report import collect

pytestmark = pytest.mark.skipif(
    installed() is None, reason="no Chromium: apt-get install chromium, or Google Chrome"
)
A4 = 695  # CSS pixels that a page of 210 mm with 13 mm of margin either side has


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def wide(small: FeatureSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of nine sets with long names, so that every table is as wide as they come."""
    part = small.far["textures"][:8]
    sets = {f"set {number} with a rather long name": part for number in range(7)}
    far = {"<img src=x>\u202etxt": part, "$x_$": part, **sets}
    record = collect(replace(small, near={}, far=far), seeds=(0, 1), batch_size=64)
    out = tmp_path_factory.mktemp("wide") / "wide.html"
    out.write_text(page_text(record, resamples=10), encoding="utf-8")
    return out


class _Parsed(HTMLParser):
    """Texts of the column headers and of the headings."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: dict[str, list[str]] = {"th": [], "h2": [], "h3": []}
        self._inside = ""
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("h2", "h3") or (tag == "th" and ("scope", "col") in attrs):
            self._inside = tag
            self.found[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.found[self._inside][-1] += data


def methods_seen(browser: Browser, *names: str) -> list[dict]:
    return [event["params"] for event in browser.events if event.get("method") in names]


def test_nothing_is_asked_of_the_network_and_nothing_is_complained_of(
    browser: Browser, page: Path, wide: Path
) -> None:
    for file in (page, wide):
        for width in (1280, 390):
            browser.open(file, width)
            browser.value("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")
            sent = methods_seen(browser, "Network.requestWillBeSent")
            asked = [event["request"]["url"] for event in sent]
            assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
            said = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
            assert methods_seen(browser, *said) == []
    broken = "Array.from(document.images).filter(i => !i.complete || !i.naturalWidth).length"
    browser.open(page, 1280)
    assert browser.value(broken) == 0 and browser.value("document.images.length") > 64


# everything that is cut off at the right side of its box, and whether a hint is seen beside it
CUT_OFF = """
Array.from(document.querySelectorAll("main *")).filter(
  e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX !== "visible" && e.clientWidth
).map(e => ({box: e.className, hint: e.parentNode.querySelector(".hint")?.getClientRects().length > 0}))
"""


def test_a_phone_shows_everything_or_says_that_there_is_more(
    browser: Browser, page: Path, wide: Path
) -> None:
    for file in (page, wide):
        browser.open(file, 390)
        assert browser.value("document.documentElement.scrollWidth") == 390
        cut = browser.value(CUT_OFF)
        assert cut and all(part == {"box": "scroll", "hint": True} for part in cut)
    browser.open(page, 1280)
    assert browser.value("document.querySelectorAll('.hint').length") > len(browser.value(CUT_OFF))
    hints = "Array.from(document.querySelectorAll('.hint'))"
    shown = browser.value(f"{hints}.filter(e => e.getClientRects().length).length")
    assert shown == len(browser.value(CUT_OFF))


# texts of cells and headers that reach beyond the paper's right edge, or hold more than they show
OFF_PAPER = """
Array.from(document.querySelectorAll("th, td, figcaption, p, svg")).filter(
  e => e.getBoundingClientRect().right > innerWidth + 1 || e.scrollWidth > e.clientWidth + 1
).map(e => e.textContent.slice(0, 40))
"""


def test_paper_holds_every_column_of_every_table(browser: Browser, page: Path, wide: Path) -> None:
    for file in (page, wide):
        browser.open(file, A4)
        browser("Emulation.setEmulatedMedia", media="print")
        try:
            assert browser.value(OFF_PAPER) == []
        finally:
            browser("Emulation.setEmulatedMedia", media="")


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="no pdftotext (poppler-utils)")
def test_the_printed_pdf_is_whole_and_headings_stay_with_what_they_head(
    browser: Browser, page: Path, wide: Path, tmp_path: Path
) -> None:
    for file in (page, wide):
        browser.open(file, 1280)
        printed = tmp_path / f"{file.stem}.pdf"
        printed.write_bytes(browser.pdf())
        text = subprocess.run(
            ["pdftotext", "-raw", str(printed), "-"], capture_output=True, check=True, encoding="utf-8"
        ).stdout
        joined, parsed = re.sub(r"\s", "", text), _Parsed(file)
        heads = {re.sub(r"[\s\u2195]", "", head) for head in parsed.found["th"]}
        assert len(heads) > 10 and [head for head in heads if head not in joined] == []
        headings = {re.sub(r"\s", "", part) for tag in ("h2", "h3") for part in parsed.found[tag]}
        for number, sheet in enumerate(text.split("\f")):
            lines = [line for line in sheet.splitlines() if line.strip()]
            assert not lines or re.sub(r"\s", "", lines[-1]) not in headings, f"page {number + 1}"


def test_a_click_on_a_heading_sorts(browser: Browser, page: Path) -> None:
    browser.open(page, 1280)
    heads = "Array.from(document.querySelectorAll('.sortable th'))"
    at = browser.value(f"{heads}.findIndex(head => head.textContent === 'NegLabel')")
    rows = "Array.from(document.querySelectorAll('.sortable tbody tr'))"
    column = f"{rows}.map(row => row.cells[{at}].textContent)"
    unsorted = [float(text) for text in browser.value(column)]
    head = f"{heads}[{at}]"
    for direction in (1, -1):
        browser.value(f"{head}.firstChild.click()")
        found = [float(text) for text in browser.value(column)]
        assert found == sorted(unsorted)[::direction] != unsorted
        order = {1: "ascending", -1: "descending"}[direction]
        assert browser.value(f"{head}.getAttribute('aria-sort')") == order


def test_names_are_shown_and_do_nothing(browser: Browser, wide: Path) -> None:
    browser.open(wide, 1280)
    assert browser.value("document.images.length") == 0
    heads = browser.value("Array.from(document.querySelectorAll('h2')).map(h => h.textContent)")
    assert any(head.startswith("<img src=x>\\u202etxt") for head in heads)
