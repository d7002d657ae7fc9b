"""Names of strangers in what commands print and write: seen, and without effect."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from fault_commands import app
from typer.testing import CliRunner

from adaneg_openood.evaluation import FeatureSet, load_features, save_features

NAME = "=1+1\x1b[2J\x9bm<img src=x>"
COMMANDS = {
    "eval": ("--csv", "eval.csv"),
    "sweep": ("--out", "sweep", "--grid", "gap=0,0.1", "--grid", "groups=2", "--no-plots"),
    "reproduce": ("four-ood", "--csv", "reproduce.csv", "--set", "groups=2", "--every-set"),
    "report": ("--out", "page.html", "--resamples", "2", "--csv", "report.csv"),
}


@pytest.fixture
def features(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = load_features(world / "bench.npz")
    (ood,) = data.far.values()
    named = FeatureSet(
        data.text_features, data.n_id, data.id_features, data.id_labels, {}, {NAME: ood[:12]}
    )
    save_features("bench.npz", named)


@pytest.mark.parametrize("command", COMMANDS)
def test_escapes_and_formulas(features, tmp_path, command):
    first = ("--features", "bench.npz") if command == "reproduce" else ("bench.npz",)
    done = CliRunner().invoke(app, [command, *first, *COMMANDS[command], "--seeds", "1"])
    assert done.exit_code == 0, done.output
    assert not {"\x1b", "\x9b"} & set(done.output.replace("\x1b[A", ""))  # tqdm's own, between bars
    tables = list(tmp_path.rglob("*.csv"))
    assert tables
    held = ""
    for file in [*tables, *tmp_path.rglob("*.md"), *tmp_path.rglob("*.tex"), *tmp_path.rglob("*.html")]:
        text = file.read_text("utf-8")
        held += text
        assert not {"\x1b", "\x9b"} & set(text), file
        assert file.suffix not in (".md", ".html") or "<img src=x>" not in text, file
        if file.suffix == ".csv":
            cells = [cell for row in csv.reader(text.splitlines()) for cell in row]
            assert not [cell for cell in cells if cell.startswith(("=", "+", "@"))], file
    assert "\\x1b[2J" in held  # it is told all the same


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"x" * 99])
def test_an_order_that_is_no_array(features, tmp_path, content):
    path = tmp_path / "order.npy"
    path.write_bytes(content)
    arguments = ["reproduce", "four-ood", "--features", "bench.npz", "--stream", f"c={path}"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2 and "order.npy is no array of numpy's" in done.output
    np.save(path, np.array(["a"]))
    assert CliRunner().invoke(app, arguments).exit_code == 2
