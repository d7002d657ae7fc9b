"""Every method by its name through OpenOOD, equal to the direct computation; and by every way in."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

pytest.importorskip("openood.evaluation_api", reason="OpenOOD is not installed")

from openood.evaluation_api import Evaluator
from openood_checkout import classic, needs_checkout
from openood_direct import direct_metrics
from openood_tiny import TinyModel, names_of
from typer.testing import CliRunner

from adaneg_openood.cli import app
from adaneg_openood.data.noise import noise_features
from adaneg_openood.detectors import DETECTORS, make_detector
from adaneg_openood.openood import CLIPNetwork
from adaneg_openood.openood.trial import trial_network, write_trial

METRICS = ("FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT")


@pytest.mark.parametrize("method", DETECTORS)
def test_by_name_as_directly(
    benchmarks: Path, negatives_file: Path, tmp_path: Path, method: str
) -> None:
    info = DETECTORS[method].info
    given = {"negatives": str(negatives_file)} if info.needs_negatives else {}
    given |= {"batch_size": 16} if info.keeps_state else {}
    folder = tmp_path / "postprocessors"
    folder.mkdir()
    section = {"postprocessor": {"name": method, "postprocessor_args": given}}
    (folder / f"{method}.yml").write_text(json.dumps(section))  # JSON is YAML
    net = CLIPNetwork(TinyModel(), names_of("cifar10"))
    table = Evaluator(
        net,
        id_name="cifar10",
        data_root=str(benchmarks),
        config_root=str(tmp_path),
        preprocessor=net.preprocess,
        postprocessor_name=method,
        num_workers=0,
    ).eval_ood(progress=False)
    # TANL's noise images are made and encoded without being asked for
    inputs = {"noise_features": noise_features(TinyModel())} if method == "tanl" else {}
    direct = direct_metrics(
        benchmarks,
        "cifar10",
        lambda text, n: make_detector(
            method, text if info.needs_negatives else text[:n], n, 40.0, **inputs
        ),
        transform=TinyModel().preprocess,
        batch_size=16,
    )
    for name, expected in direct.items():
        for metric in METRICS:
            assert table.loc[name, metric] == pytest.approx(expected[metric], abs=1e-12, rel=0)


@needs_checkout
def test_four_ways_give_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The evaluator, compare, leaderboard and the classic pipeline, from the same YAML."""
    monkeypatch.chdir(tmp_path)
    files = write_trial(tmp_path / "trial")
    yaml = tmp_path / "trial" / "configs" / "postprocessors" / "adaneg.yml"
    yaml.write_text(yaml.read_text().replace("gap: 0.5", "gap: 0.1"))
    net = trial_network()
    table = Evaluator(
        net,
        id_name="demo",
        data_root=str(tmp_path / "trial"),
        config_root=str(tmp_path / "trial" / "configs"),
        preprocessor=net.preprocess,
        postprocessor_name="adaneg",
        num_workers=0,
    ).eval_ood(progress=False)
    near, far = (f"{table.loc[row, 'AUROC']:.2f}" for row in ("nearood", "farood"))

    both = ["--benchmark", "demo", "--data", "trial", "--workers", "0"]
    done = CliRunner().invoke(app, ["compare", *both, "--postprocessors", "adaneg", "--json", "c.json"])
    assert done.exit_code == 0, done.output
    compared = json.loads(Path("c.json").read_text())["table"]["adaneg"]
    assert (f"{compared['near AUROC']:.2f}", f"{compared['far AUROC']:.2f}") == (near, far)

    done = CliRunner().invoke(app, ["leaderboard", *both, "--arch", "tiny", "--seeds", "1"])
    assert done.exit_code == 0, done.output
    row = Path("leaderboard/demo_adaneg_row.csv").read_text().splitlines()[1]
    assert f",{near},{far}," in row and "gap 0.1" in row and "batches of 64" in row

    classic(files, tmp_path, "--evaluator.n_streams", "0")
    with (tmp_path / "trial" / "results" / "demo_adaneg" / "ood.csv").open() as file:
        rows = {row["dataset"]: row["AUROC"] for row in csv.DictReader(file)}
    assert (rows["nearood"], rows["farood"]) == (near, far)
