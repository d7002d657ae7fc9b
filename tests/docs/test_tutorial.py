"""The tutorial's notebook runs from an empty folder, and prints what the page shows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from tutorial import NOTEBOOK, PAGE, blocks, notebook, run, shown

NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


def test_the_notebook_is_the_page() -> None:
    assert NOTEBOOK.read_text("utf-8") == notebook(PAGE.read_text("utf-8"))


def test_every_cell_runs_and_prints_what_the_page_shows(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the report needs matplotlib")
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    printed = [run(cell["source"], tmp_path) for cell in cells if cell["cell_type"] == "code"]
    number = -1
    for block in blocks(PAGE.read_text("utf-8")):
        if block.kind != "text":
            number += 1
            continue
        seen = shown(printed[number], block.about)
        assert NUMBER.sub("#", seen).split() == NUMBER.sub("#", block.body).split()
        # other releases of torch differ in the last bits, which may move an image across a threshold
        numbers = [list(map(float, NUMBER.findall(text))) for text in (seen, block.body)]
        assert numbers[0] == pytest.approx(numbers[1], abs=1.5)
    assert number == len(printed) - 1

    summary = json.loads((tmp_path / "results.json").read_text("utf-8"))["summary"]
    assert summary["NegLabel"]["far AUROC"] > summary["MCM"]["far AUROC"] + 10
    verdicts = pd.read_csv(tmp_path / "verdicts.csv").set_index("image")
    assert len(verdicts) == 132 and verdicts.loc["sea_02.png", "verdict"] == "OOD"
    assert "<table" in (tmp_path / "report.html").read_text("utf-8")
