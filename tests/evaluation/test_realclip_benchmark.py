"""Real CLIP features through definitions and sweeps give the released implementation's numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from adaneg_openood import AdaNegConfig
from adaneg_openood.benchmark.definition import read_benchmark
from adaneg_openood.benchmark.opening import open_benchmark
from adaneg_openood.benchmark.run import run_benchmark
from adaneg_openood.evaluation import FeatureSet, save_features
from adaneg_openood.evaluation.sweep import sweep

REALCLIP = Path(__file__).parents[3] / "shared" / "realclip"
TASKS = ("cifar10_vs_fashion", "cifar10_vs_misc", "animals_vs_vehicles")
pytestmark = pytest.mark.skipif(
    not (REALCLIP / "expected.json").exists(),
    reason="real CLIP features are other people's data and lie beside the checkout, not in it",
)
METRICS = {"fpr95": "FPR@95", "auroc": "AUROC", "aupr_in": "AUPR_IN", "aupr_out": "AUPR_OUT"}
# float32 rounding can swap a pair of images whose scores are equal on paper
CLOSE = 0.01  # points
YAML = """\
features: bench.npz
methods:
  mcm_tau1: {detector: mcm, tau: 1.0}
  neglabel: {detector: neglabel}
  task: {detector: adaneg, released: true}
  task_g0: {detector: adaneg, released: true, gap: 0.0}
  sample: {detector: adaneg, released: true, proxy: sample}
  adagap: {detector: adaneg, released: true, adagap: true}
seeds: [0]
batch_size: 64
"""


@pytest.fixture(scope="module")
def real() -> dict:
    return {
        "images": np.load(REALCLIP / "images.npz"),
        "text": np.load(REALCLIP / "text.npz"),
        "arrays": np.load(REALCLIP / "expected.npz"),
        "runs": json.loads((REALCLIP / "expected.json").read_text("utf-8"))["runs"],
    }


def features_of(real: dict, task: str) -> FeatureSet:
    def unit(values: np.ndarray) -> torch.Tensor:
        return normalize(torch.from_numpy(values.astype(np.float32)), dim=1)

    images, text = real["images"], real["text"]
    cifar, label = unit(images["cifar10"]), torch.from_numpy(images["cifar10_label"]).long()
    names = unit(text["id_feature"])
    if task == "animals_vs_vehicles":
        animal = (label >= 2) & (label <= 7)
        ood, cifar, label, names = cifar[~animal], cifar[animal], label[animal] - 2, names[2:8]
    else:
        ood = unit(images[task.rpartition("_")[2]])
    mined = torch.from_numpy(real["arrays"][f"mined_index__{task}"].astype(np.int64))
    rows = torch.cat([names, unit(text["feature"])[mined]])
    return FeatureSet(rows, len(names), cifar, label, far={"ood": ood})


def follow_the_recorded_order(monkeypatch: pytest.MonkeyPatch, real: dict, task: str) -> None:
    order = real["arrays"][f"order__{task}"].astype(np.int64)

    def recorded(n_ood: int, n_id: int, seed: int, kind: str = "mixed") -> np.ndarray:
        assert n_ood + n_id == len(order)
        return order

    monkeypatch.setattr("adaneg_openood.evaluation.streams.stream_order", recorded)


@pytest.mark.parametrize("task", TASKS)
def test_definition(task: str, real: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_features(tmp_path / "bench.npz", features_of(real, task))
    (tmp_path / "real.yml").write_text(YAML)
    follow_the_recorded_order(monkeypatch, real, task)
    results, _ = run_benchmark(open_benchmark(read_benchmark(tmp_path / "real.yml")))
    compared = 0
    for run in real["runs"]:
        if run["task"] == task and run["run"] in results.methods and run.get("batch_size", 64) == 64:
            row = results.table(run["run"]).loc["ood"]
            for theirs, ours in METRICS.items():
                assert row[ours] == pytest.approx(100 * run[theirs], abs=CLOSE), (run["run"], ours)
            compared += 1
    assert compared >= 4


@pytest.mark.parametrize("task", TASKS)
def test_sweep(task: str, real: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    follow_the_recorded_order(monkeypatch, real, task)
    result = sweep(
        features_of(real, task),
        {"gap": [0.0, 0.5], "proxy": ["task", "sample"], "score": ["combine", "neglabel"]},
        released=True,
        seeds=(0,),
        batch_sizes=(64, 256),
    )
    points = {
        "neglabel": (0.5, "task", "neglabel", 64),
        "task": (0.5, "task", "combine", 64),
        "task_g0": (0.0, "task", "combine", 64),
        "sample": (0.5, "sample", "combine", 64),
        "task_batch256": (0.5, "task", "combine", 256),
    }
    found = result.records.set_index(["gap", "proxy", "score", "batch_size"])
    compared = 0
    for run in real["runs"]:
        if run["task"] == task and run["run"] in points:
            row = found.loc[points[run["run"]]]
            for theirs, ours in METRICS.items():
                assert row[ours] == pytest.approx(100 * run[theirs], abs=CLOSE), (run["run"], ours)
            if "cached" in run and run["run"] != "neglabel":
                assert row["cached"] == run["cached"]
            compared += 1
    assert compared >= 4
    assert AdaNegConfig.released().beta == 5
