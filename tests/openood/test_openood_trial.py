"""The drawn benchmark, as the README runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("openood.evaluation_api", reason="OpenOOD is not installed")

from openood.evaluation_api import Evaluator
from openood_checkout import checkout, needs_checkout
from typer.testing import CliRunner

from adaneg_openood.cli import app
from adaneg_openood.openood.compare import available, compare
from adaneg_openood.openood.trial import main, trial_network, write_trial


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trial")
    write_trial(folder)
    return folder


def test_openoods_evaluator_knows_it(trial: Path) -> None:
    tables = {}
    for method in ("adaneg", "mcm"):
        net = trial_network()
        run = Evaluator(
            net,
            id_name="demo",
            data_root=str(trial),
            config_root=str(trial / "configs"),
            preprocessor=net.preprocess,
            postprocessor_name=method,
            num_workers=0,
        )
        tables[method] = run.eval_ood(progress=False)
    assert list(tables["mcm"].index) == [
        *("creatures", "tools", "nearood", "textures", "scenes", "digits", "farood")
    ]
    assert tables["adaneg"].loc["farood", "AUROC"] > tables["mcm"].loc["farood", "AUROC"]
    assert tables["adaneg"].loc["farood", "AUROC"] > 90


def test_every_postprocessor_is_served(trial: Path) -> None:
    """OpenOOD's own as well: their YAMLs, the class count, and training images."""
    names = ["msp", "mds", "rmds", "gradnorm", "she", "knn", "mcm", "adaneg"]
    found = compare(
        trial_network(), "demo", names, data_root=trial, config_root=trial / "configs", num_workers=0
    )
    assert not found.failed
    assert {path.stem for path in (trial / "configs" / "postprocessors").iterdir()} == set(available())


def test_commands_need_no_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["compare", "--benchmark", "demo", "--postprocessors", "msp,neglabel,adaneg"]
    done = CliRunner().invoke(app, [*asked, "--json", "table.json"])
    assert done.exit_code == 0, done.output
    table = json.loads(Path("table.json").read_text())["table"]
    assert set(table) == {"msp", "neglabel", "adaneg"}
    assert table["adaneg"]["far AUROC"] == pytest.approx(95.99, abs=0.02)
    assert not Path("configs").exists() and not Path("data").exists()


def test_names_and_folders_are_checked_before_a_model_is_loaded(
    trial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("adaneg_openood.vlm.load_model", lambda *a, **k: pytest.fail("loaded"))
    (tmp_path / "empty").mkdir()
    common = ("--benchmark", "demo", "--data", str(trial))
    for command, method in (
        (("compare", *common), "--postprocessors"),
        (("leaderboard", *common, "--arch", "tiny"), "--method"),
    ):
        for more, message in (
            (("--data", "nowhere"), "--data: there is no folder nowhere"),
            (("--configs", "nowhere"), "--configs: there is no folder nowhere"),
            (("--data", "empty"), "benchmark_imglist/demo/test_"),
            ((method, "adange"), "did you mean 'adaneg'"),
            (("--classes", "nowhere.txt"), "nowhere.txt"),
            (("--set", "adaneg.gapp=1"), "did you mean 'gap'"),
        ):
            done = CliRunner().invoke(app, [*command, *more])
            assert done.exit_code == 2 and message in done.output, (command, more, done.output)


@needs_checkout
def test_classic_pipeline_runs_it(trial: Path, tmp_path: Path) -> None:
    script = str(checkout() / "main.py")  # type: ignore[operator]
    configs = [str(trial / f"{name}.yml") for name in ("dataset", "ood", "run")]
    configs.append(str(trial / "configs" / "postprocessors" / "adaneg.yml"))
    done = subprocess.run(
        [sys.executable, "-m", "adaneg_openood", script, "--config", *configs, "--num_gpus", "0"],
        cwd=tmp_path,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
        text=True,
        capture_output=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Completed!" in done.stdout
    assert "3 stream order(s):" in done.stdout and "± " in done.stdout
    assert "FPR@95 (ID positive)" in (trial / "results" / "demo_adaneg" / "streams.csv").read_text()


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="usage"):
        main([])
