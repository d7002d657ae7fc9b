"""``eval``, ``benchmarks``, ``cache`` and ``sweep`` as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from benchmark_fakes import YAML, make_sweep_data, write_small_benchmark
from typer.testing import CliRunner

from adaneg_openood.cli import app
from adaneg_openood.demo import world
from adaneg_openood.evaluation import load_features, save_features


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    write_small_benchmark(folder)
    save_features(folder / "bench.npz", make_sweep_data())
    return folder


@pytest.fixture(autouse=True)
def own_cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADANEG_CACHE", str(root / "cache"))


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_eval_of_a_definition(root: Path) -> None:
    out = root / "out.json"
    text = run(
        *("eval", root / "small.yml", "--workers", 0, "--json", out, "--csv", root / "out.csv"),
        *("--save-features", root / "saved.npz", "--intervals", "--resamples", 100),
    )
    assert "\nNegLabel: order mixed, batch size 8, seeds 3, 5" in text
    assert "\nAdaNeg: order mixed" in text and "Bootstrap intervals (95 %, 100 resamples" in text
    assert "Differences to NegLabel" in text
    written = json.loads(out.read_text("utf-8"))
    assert written["protocol"]["seeds"] == [3, 5] and written["bootstrap"]["resamples"] == 100
    about = written["provenance"]
    assert about["model"]["model"] == "demo" and len(about["model"]["weights"]) == 16
    assert about["sets"]["far/scenes"]["images"] == 12 and about["benchmark"] == "small"
    assert about["methods"]["AdaNeg"]["memory_length"] == 4
    assert len(pd.read_csv(root / "out.csv")) == 2 * 2 * 2
    assert len(load_features(root / "saved.npz").far["scenes"]) == 12
    text = run("eval", root / "small.yml", "--workers", 0, "--seed", 1, "--seeds", 1, "--batch-size", 4)
    assert "order mixed, batch size 4, seeds 1;" in text and "Bootstrap" not in text


def test_eval_of_features(root: Path) -> None:
    text = run("eval", root / "bench.npz", "--seeds", 1, "--order", "id_first")
    for method in ("MCM", "NegLabel", "AdaNeg (task)", "AdaNeg (sample)"):
        assert f"\n{method}: order id_first, batch size 256, seeds 0;" in text


def test_eval_check(root: Path) -> None:
    items = root / "items.json"
    assert "Nothing is missing." in run("eval", root / "small.yml", "--check", "--json", items)
    assert {"what": "id", "ok": True} in [
        {key: item[key] for key in ("what", "ok")} for item in json.loads(items.read_text())
    ]
    (root / "doubt.yml").write_text(YAML.replace("negatives.txt", "doubt.txt"))
    (root / "doubt.txt").write_text((root / "negatives.txt").read_text() + world.ID_NAMES[0] + "\n")
    assert "1 negative label(s) are names of ID classes" in run("eval", root / "doubt.yml", "--check")
    assert "--check writes no scores" in run("eval", root / "small.yml", "--check", "--csv", "x", code=2)
    assert "Nothing is missing." in run("eval", root / "bench.npz", "--check")
    text = run("eval", "imagenet200", "--data", root, "--check", code=1)
    assert "-- near/ssb_hard" in text and "49000 images" in text
    (root / "broken.yml").write_text(YAML.replace("creatures.txt", "gone.txt"))
    text = run("eval", root / "broken.yml", code=2)
    assert "error:" in text and "gone.txt" in text and "Traceback" not in text
    assert "did you mean 'cifar10'" in run("eval", "cifar1", code=2)


def test_a_data_folder_called_like_a_benchmark_does_not_hide_it(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cifar10").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "near/cifar100" in run("eval", "cifar10", "--check", code=1)


def test_the_folder_of_a_page_is_not_taken_for_the_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "report.json").write_text("{}")  # as report demo --out demo.html leaves one
    said = run("report", "demo", "--out", "demo.html", "--images", "id=demo", code=2)
    assert "the demo world brings its own images" in said


def test_benchmarks_lists_and_prints() -> None:
    text = run("benchmarks")
    assert "imagenet-four-ood" in text and "the embedded demo" in text
    printed = run("benchmarks", "template")
    assert printed.startswith("# A benchmark of your own") and "full_spectrum" in printed
    assert "did you mean 'demo'" in run("benchmarks", "demoo", code=2)
    assert json.loads(run("benchmarks", "schema"))["additionalProperties"] is False


def test_the_printed_template_runs_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "my.yml").write_text(run("benchmarks", "template"), "utf-8")
    assert "Nothing is missing." in run("eval", tmp_path / "my.yml", "--check")


def test_cache_commands(root: Path) -> None:
    run("eval", root / "small.yml", "--workers", 0, "--seeds", 1)
    text = run("cache", "ls", "--json", root / "ls.json")
    assert "24 images of" in text and "3 entries" in text
    assert "all entries are whole" in run("cache", "verify")
    entries = json.loads((root / "ls.json").read_text())
    file = Path(entries[0]["files"][0])
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 8
    file.write_bytes(damaged)
    text = run("cache", "verify", code=1)
    assert "checksum" in text and "1 of 3 entries cannot be used" in text
    assert "say what goes" in run("cache", "prune", code=2)
    assert "1 entries would go" in run("cache", "prune", "--damaged", "--dry-run")
    assert "1 entries removed" in run("cache", "prune", "--damaged")
    assert "2 entries removed" in run("cache", "prune", "--older-than", 0)
    assert "0 entries" in run("cache", "ls")


def test_sweep(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    arguments = (
        *("sweep", root / "small.yml", "--out", tmp_path, "--workers", 0, "--method", "AdaNeg"),
        *("--grid", "gap=0,0.5", "--grid", "proxy=task,sample", "--grid", "ratio=1:1,2:1"),
        *("--grid", "n_images=12,15", "--grid", "order=mixed,id_first", "--grid", "batch_size=4,8"),
        *("--seeds", 2),
    )
    text = run(*arguments)
    n = 4 * 2 * 2 * 2 * 2 * 2 * 2
    assert f"4 configurations, {n} runs, {n} now" in text and "Best AUROC on farood" in text
    frame = pd.read_csv(tmp_path / "results.csv")
    assert len(frame) == n and set(frame["ratio"]) == {"1:1", "2:1"}
    assert set(frame["groups"]) == {2} and set(frame["seed"]) == {0, 1}
    assert (tmp_path / "plot_gap.png").is_file() and (tmp_path / "plot_ratio.png").is_file()
    assert f"{n} runs, 0 now" in run(*arguments, "--no-plots")


def test_sweep_takes_the_published_number_of_groups(root: Path, tmp_path: Path) -> None:
    mined = YAML.replace("negatives: negatives.txt", "corpus: demo\nmining: neglabel\nn_negatives: 40")
    (root / "mined.yml").write_text(mined)
    command = ("sweep", root / "mined.yml", "--workers", 0, "--method", "neglabel", "--no-plots")
    run(*command, "--out", tmp_path / "own", "--grid", "permute=true")
    assert set(pd.read_csv(tmp_path / "own" / "results.csv")["groups"]) == {40}  # of 100, as many as fit
    run(*command, "--out", tmp_path / "given", "--grid", "groups=2,4")
    assert set(pd.read_csv(tmp_path / "given" / "results.csv")["groups"]) == {2, 4}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--grid", "gama=1"), "did you mean 'gamma'"),
        (("--grid", "gamma"), "takes SETTING=VALUE"),
        (("--grid", "gamma="), "takes SETTING=VALUE"),
        (("--grid", "gap=0", "--grid", "gap=1"), "there twice"),
        (("--grid", "memory_length=1.5"), "must be an integer"),
        (("--grid", "n_images=many"), "takes whole numbers"),
        (("--grid", "ratio=3"), "a ratio is ID:OOD"),
        (("--grid", "order=none"), "order must be one of 'mixed', 'id_first'"),
        (("--order", "none"), "must be one of 'mixed', 'id_first'"),
        (("--seeds", "1,1"), "distinct whole"),
        (("--method", "NegLable"), "did you mean 'NegLabel'"),
        (("--grid", "n_images=9999"), "9999 images"),
    ],
)
def test_sweep_mistakes(root: Path, tmp_path: Path, options: tuple, message: str) -> None:
    text = run("sweep", root / "bench.npz", "--out", tmp_path / "s", *options, code=2)
    assert message in text and "Traceback" not in text
    assert not (tmp_path / "s" / "results.csv").exists()
