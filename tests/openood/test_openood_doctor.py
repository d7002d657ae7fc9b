"""doctor and leaderboard."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("openood.evaluation_api", reason="OpenOOD is not installed")

from openood.evaluation_api.datasets import DATA_INFO
from openood_tiny import TinyModel, build_benchmark, names_of
from typer.testing import CliRunner

from adaneg_openood.benchmark.opening import to_text
from adaneg_openood.cli import app
from adaneg_openood.evaluation import Run
from adaneg_openood.openood import CLIPNetwork, Evaluator, Postprocessor
from adaneg_openood.openood.doctor import diagnose
from adaneg_openood.openood.leaderboard import leaderboard_row, write_files
from adaneg_openood.report import sources


def test_doctor_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_benchmark(tmp_path / "data", "cifar10", n_id=10, n_ood=5)
    monkeypatch.setenv("ADANEG_WORDNET", str(tmp_path / "none"))
    checks = {item.what.strip(): item for item in diagnose(tmp_path / "data")}
    assert checks["OpenOOD"].ok
    assert checks["data cifar10"].ok
    assert "data imagenet" not in checks
    assert checks["WordNet"].ok is False
    assert checks["WordNet"].mend == "python -m nltk.downloader wordnet"

    entry = DATA_INFO["cifar10"]["ood"]["near"]["tin"]
    name = (tmp_path / "data" / entry["imglist_path"]).read_text().splitlines()[0].split(" ")[0]
    (tmp_path / "data" / entry["data_dir"] / name).unlink()
    found = diagnose(tmp_path / "data", "cifar10")
    item = {item.what: item for item in found}["data cifar10"]
    assert "1 of 5 images of near tin" in item.found
    text = to_text(found)
    assert "1 of 5 images of near tin" in text and "to mend: bash scripts/download" in text
    assert len(text.splitlines()) <= 40, "one screen"
    nothing = {item.what: item for item in diagnose(tmp_path / "nowhere")}
    assert "there is no folder" in nothing["data"].found


def test_doctor_without_openood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import importlib.util

    original = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name.startswith(("openood", "clip")) else original(name, *rest),
    )
    checks = {item.what: item for item in diagnose(tmp_path)}
    assert checks["OpenOOD"].ok is False
    assert "git+https://github.com/Jingkang50/OpenOOD" in checks["OpenOOD"].mend
    assert checks["data"].ok is None
    assert sys.modules["openood"]


def results(benchmarks: Path) -> Run:
    run = Evaluator(
        CLIPNetwork(TinyModel(), names_of("cifar10")),
        "cifar10",
        str(benchmarks),
        postprocessor=Postprocessor("mcm"),
        num_workers=0,
    )
    return run.eval_streams(seeds=(0, 1), progress=False)


def test_leaderboard_row(benchmarks: Path, tmp_path: Path) -> None:
    found = results(benchmarks)
    row = leaderboard_row(found, "cifar10", method="mcm", arch="tiny", id_accuracy=91.5)
    columns = "Training Postprocessor Near-OOD_AUROC Far-OOD_AUROC ID_Accuracy Outlier_Data Arch"
    assert list(row) == [*columns.split(), "Additional_Description"]
    assert row["Near-OOD_AUROC"] == f"{found.table('mcm').loc['nearood', 'AUROC']:.2f}"
    assert row["ID_Accuracy"] == "91.50"
    said = row["Additional_Description"]
    assert "shuffled" in said and "one stream order" in said, "a seed changes nothing"
    row_path, table_path = write_files(found, tmp_path, "cifar10", method="mcm", arch="tiny")
    assert row_path.read_text().splitlines()[0] == ",".join(row)
    lines = table_path.read_text().splitlines()
    assert lines[0] == ",FPR@95,AUROC,AUPR_IN,AUPR_OUT,ACC"
    assert [line.split(",")[0] for line in lines[1:]] == [
        *("cifar100", "tin", "nearood", "mnist", "svhn", "texture", "places365", "farood")
    ]


def test_report_writes_the_row_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    asked = ["report", "demo", "--seeds", "1", "--leaderboard", "demo", "--arch", "tiny"]
    with monkeypatch.context() as patched:
        patched.setattr(sources, "collect", lambda *args, **kwargs: pytest.fail("it ran"))
        for more, message in (
            ([], "--method METHOD and --arch ARCHITECTURE go together"),
            (["--method", "AdaNeg"], r"no method 'AdaNeg'; there are MCM, NegLabel, AdaNeg \(task\)"),
            (["--method", "MCM", "--arch", " "], "arch is empty"),
            (["--method", "MCM", "--leaderboard", "cifar10"], "near-OOD lacks cifar100, tin"),
            (["--method", "MCM", "--leaderboard", "cifar"], "id_name must be one of"),
        ):
            refused = runner.invoke(app, [*asked, *more])
            assert refused.exit_code == 2 and re.search(message, refused.output), refused.output
    done = runner.invoke(app, [*asked, "--method", "AdaNeg (task)"])
    assert done.exit_code == 0, done.output
    row = (tmp_path / "report" / "demo_AdaNeg_(task)_row.csv").read_text().splitlines()[1]
    table = (tmp_path / "report" / "demo_AdaNeg_(task).csv").read_text()
    near = next(line for line in table.splitlines() if line.startswith("nearood")).split(",")[2]
    assert row.startswith(f"Zero-shot image-text model,AdaNeg (task),{near},") and ",tiny," in row


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({"csid/sketches": {}}, "csid/sketches counts as ID"),
        ({"far/digits": {"limit": 10}}, r"far/digits is not whole"),
        ({"id": {"limit": None, "skipped": 2}}, r"id is not whole"),
    ],
)
def test_a_part_of_a_benchmark_gives_no_row(benchmarks: Path, sets: dict, message: str) -> None:
    found = results(benchmarks)
    about = dataclasses.replace(found.about, provenance={"sets": sets})
    with pytest.raises(ValueError, match=message):
        leaderboard_row(dataclasses.replace(found, about=about), "cifar10", method="mcm", arch="tiny")


def test_incomplete_results_are_refused(benchmarks: Path, tmp_path: Path) -> None:
    found = results(benchmarks)
    splits = {name: split for name, split in found.splits.items() if name != "svhn"}
    part = dataclasses.replace(found, about=dataclasses.replace(found.about, splits=splits))
    with pytest.raises(ValueError, match="far-OOD lacks svhn"):
        write_files(part, tmp_path, "cifar10", method="mcm", arch="tiny")
    assert not list(tmp_path.glob("*.csv"))
    with pytest.raises(ValueError, match="near-OOD lacks ninco, ssb_hard"):
        leaderboard_row(found, "imagenet", method="mcm", arch="tiny")
    with pytest.raises(ValueError, match="no method 'adaneg'"):
        leaderboard_row(found, "cifar10", arch="tiny")
    with pytest.raises(ValueError, match="arch is empty"):
        leaderboard_row(found, "cifar10", method="mcm", arch=" ")


@pytest.mark.parametrize(
    ("model", "training"),
    [
        ("open_clip:ViT-B-16/openai", "Zero-shot CLIP"),
        ("clip:ViT-B/16", "Zero-shot CLIP"),
        ("open_clip:ViT-B-16-SigLIP/webli", "Zero-shot SigLIP"),
        ("open_clip:coca_ViT-B-32/laion2b_s13b_b90k", "Zero-shot CoCa"),
        ("demo", "Zero-shot image-text model"),
    ],
)
def test_clip_is_said_of_clip_only(benchmarks: Path, model: str, training: str) -> None:
    found = results(benchmarks)
    told = {"model": {"model": model}}
    found = dataclasses.replace(found, about=dataclasses.replace(found.about, provenance=told))
    assert leaderboard_row(found, "cifar10", method="mcm", arch="tiny")["Training"] == training


def test_the_row_tells_what_the_numbers_depend_on(benchmarks: Path, negatives_file: Path) -> None:
    run = Evaluator(
        CLIPNetwork(TinyModel(), names_of("cifar10")),
        "cifar10",
        benchmarks,
        postprocessor=Postprocessor("adaneg", negatives=str(negatives_file), batch_size=16, gap=0.25),
        num_workers=0,
    ).eval_streams(seeds=(0, 1), progress=False)
    row = leaderboard_row(run, "cifar10", arch="tiny")
    table, spread = run.table("adaneg")["AUROC"], run.spread("adaneg")["AUROC"]
    assert row["Near-OOD_AUROC"] == f"{table['nearood']:.2f} ± {spread['nearood']:.2f}"
    digest = run.about.data["negatives"]["sha256"]
    said = row["Additional_Description"]
    for part in (
        *("proxy task", "gamma 0.5", "gap 0.25", "memory_length 10", "batches of 16"),
        f"60 negative labels (sha256 of their features {digest})",
        "ID and OOD images shuffled",
        "mean ± std of 2 stream orders",
    ):
        assert part in said, (part, said)
