"""Sweeps: equal to single runs, taken up after interruption, written in long form."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from benchmark_fakes import make_sweep_data

from adaneg_openood import AdaNeg, AdaNegConfig
from adaneg_openood.detectors import default_settings, make_detector
from adaneg_openood.evaluation import Protocol, replay
from adaneg_openood.evaluation.metrics import METRICS
from adaneg_openood.evaluation.provenance import describe_data
from adaneg_openood.evaluation.streams import parse_ratio
from adaneg_openood.evaluation.sweep import grid_configs, sweep
from adaneg_openood.io.files import Journal
from adaneg_openood.io.locks import exclusive

DATA = make_sweep_data()
GRID = {  # 30 configurations
    "gamma": [0.3, 0.4, 0.5, 0.6, 0.7],
    "gap": [0, 0.1, 0.5],
    "proxy": ["task", "sample"],
}
BASE = AdaNegConfig(groups=3)
QUICK = {"base": BASE, "batch_sizes": (16,), "seeds": (0, 1)}
FILES = ("results.csv", "summary.csv", "conventions.json", "journal.jsonl", "sweep.json")


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def test_thirty_configurations_equal_single_runs(tmp_path: Path) -> None:
    result = sweep(DATA, GRID, folder=tmp_path, **QUICK)
    assert len(result.records) == 30 * 2 * 2 and result.axes == tuple(GRID)
    assert result.computed == 30 * 2 * 2
    read = pd.read_csv(tmp_path / "results.csv")
    assert len(read) == 120 and set(vars(BASE)) | set(METRICS) <= set(read.columns)
    for config in grid_configs(GRID, BASE):
        detector = AdaNeg(DATA.text_features, DATA.n_id, DATA.logit_scale, config)
        alone = replay(
            DATA, {"x": detector}, Protocol(seeds=(0, 1), batch_size=16), progress=False
        ).records
        mine = result.records
        for name, value in dataclasses.asdict(config).items():
            mine = mine[mine[name] == value]
        both = alone.merge(mine, on=["dataset", "seed"], suffixes=("", "_sweep"))
        assert len(both) == 4
        for name in (*METRICS, "id_rows_filled"):
            assert (both[name] == both[f"{name}_sweep"]).all(), (config, name)


def test_scores_and_groups_share_what_they_can() -> None:
    grid = {
        "score": ["combine", "adaptive", "neglabel", "multiply"],
        "groups": [1, 3],
        "permute": [True, False],
        "adagap": [False, True],
    }
    result = sweep(DATA, grid, batch_sizes=(16,), seeds=(2,))
    assert len(result.records) == 32 * 2
    for config in grid_configs(grid)[::7]:
        detector = AdaNeg(DATA.text_features, DATA.n_id, DATA.logit_scale, config)
        alone = replay(
            DATA, {"x": detector}, Protocol(seeds=(2,), batch_size=16), progress=False
        ).records
        mine = result.records
        for name, value in dataclasses.asdict(config).items():
            mine = mine[mine[name] == value]
        assert list(mine["AUROC"]) == list(alone["AUROC"]), config
        assert list(mine["ACC"]) == list(alone["ACC"]), config


@pytest.mark.parametrize(
    ("method", "grid"),
    [
        ("neglabel", {"groups": [1, 3]}),
        ("oodd", {"k": [1, 5], "queue": [20, 2048]}),
        ("tanl", {"alpha": [0, 1], "step": [0, 1]}),
    ],
)
def test_any_methods_settings(method: str, grid: dict, tmp_path: Path) -> None:
    result = sweep(DATA, grid, method=method, batch_sizes=(16,), seeds=(0, 1), folder=tmp_path)
    assert result.axes == tuple(grid) and set(default_settings(method)) <= set(result.records.columns)
    for config in grid_configs(grid, method=method):
        detector = make_detector(
            method, DATA.text_features, DATA.n_id, DATA.logit_scale, dataclasses.asdict(config)
        )
        alone = replay(DATA, {"x": detector}, Protocol((0, 1), 16), progress=False).records
        mine = result.records
        for name in grid:
            mine = mine[mine[name] == getattr(config, name)]
        both = alone.merge(mine, on=["dataset", "seed"], suffixes=("", "_sweep"))
        assert len(both) == 4 and (both["AUROC"] == both["AUROC_sweep"]).all()
    again = sweep(DATA, grid, method=method, batch_sizes=(16,), seeds=(0, 1), folder=tmp_path)
    assert again.computed == 0 and again.summary().equals(result.summary())
    with pytest.raises(ValueError, match=f"holds runs with method '{method}'"):
        sweep(DATA, {}, folder=tmp_path)


def test_the_text_is_read_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = 0
    original = AdaNeg.compare_text

    def counted(self, features):  # type: ignore[no-untyped-def]
        nonlocal reads
        reads += 1
        return original(self, features)

    monkeypatch.setattr(AdaNeg, "compare_text", counted)
    monkeypatch.setattr("adaneg_openood.evaluation.sweep._TOGETHER", 64)
    sweep(DATA, GRID, base=BASE, batch_sizes=(25,), seeds=(0,))
    assert reads == 2 * 4  # two sets of 100 images in batches of 25, whatever the configurations


def test_more_detectors_than_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = {"gap": [0, 0.2, 0.5], "gamma": [0.3, 0.5, 0.7]}
    whole = sweep(DATA, grid, **QUICK)
    monkeypatch.setattr("adaneg_openood.evaluation.sweep._TOGETHER", 4)
    pd.testing.assert_frame_equal(whole.records, sweep(DATA, grid, **QUICK).records)


def test_taken_up_after_a_cut_at_any_byte(tmp_path: Path) -> None:
    grid = {"gap": [0, 0.2, 0.5], "score": ["combine", "adaptive"]}
    sweep(DATA, grid, folder=tmp_path / "whole", **QUICK)
    whole = contents(tmp_path / "whole")
    journal = whole["journal.jsonl"]
    rng = np.random.default_rng(3)
    cuts = sorted({0, 1, len(journal) - 1, *rng.integers(0, len(journal), 10).tolist()})
    for number, cut in enumerate(cuts):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "sweep.json").write_bytes(whole["sweep.json"])
        (folder / "journal.jsonl").write_bytes(journal[:cut])
        result = sweep(DATA, grid, folder=folder, **QUICK)
        assert result.computed == 24 - journal[:cut].count(b"\n")
        assert contents(folder) == whole, cut


def test_a_damaged_line_is_made_again(tmp_path: Path) -> None:
    sweep(DATA, GRID, folder=tmp_path, **QUICK)
    whole = contents(tmp_path)
    damaged = bytearray(whole["journal.jsonl"])
    damaged[len(damaged) // 2] ^= 2
    (tmp_path / "journal.jsonl").write_bytes(damaged)
    result = sweep(DATA, GRID, folder=tmp_path, **QUICK)
    assert 1 <= result.computed <= 2
    assert contents(tmp_path)["results.csv"] == whole["results.csv"]


def test_a_larger_grid_uses_what_is_there(tmp_path: Path) -> None:
    first = sweep(DATA, {"gap": [0, 0.5]}, folder=tmp_path, **QUICK)
    again = sweep(DATA, {"gap": [0, 0.25, 0.5]}, folder=tmp_path, **QUICK)
    assert (first.computed, again.computed) == (8, 4)
    assert sweep(DATA, {"gap": [0.0, 0.5]}, folder=tmp_path, **QUICK).computed == 0


def test_other_data_or_versions_are_refused(tmp_path: Path) -> None:
    sweep(DATA, {}, folder=tmp_path, **QUICK)
    with pytest.raises(ValueError, match="holds runs with data"):
        sweep(make_sweep_data(seed=1), {}, folder=tmp_path, **QUICK)
    known = json.loads((tmp_path / "sweep.json").read_text())
    (tmp_path / "sweep.json").write_text(json.dumps({**known, "torch": "0.1"}))
    with pytest.raises(ValueError, match=r"holds runs with torch '0\.1'"):
        sweep(DATA, {}, folder=tmp_path, **QUICK)
    (tmp_path / "sweep.json").unlink()
    with pytest.raises(ValueError, match="no sweep.json"):
        sweep(DATA, {}, folder=tmp_path, **QUICK)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as other, exclusive(tmp_path / "journal.jsonl"):
        made = other.submit(sweep, DATA, {}, folder=tmp_path, **QUICK)
        with pytest.raises(BlockingIOError, match="is writing it"):
            made.result()


def test_protocols() -> None:
    result = sweep(
        DATA,
        {"adagap": [False, True]},
        base=BASE,
        seeds=(0, 1),
        batch_sizes=(8, 16),
        orders=("mixed", "id_first"),
        ratios=((1, 1), (1, 4), (4, 1)),
        n_images=(20, 40),
    )
    assert len(result.records) == 2 * 2 * 2 * 3 * 2 * 2 * 2
    assert set(result.axes) == {"adagap", "batch_size", "order", "ratio", "n_images"}
    counted = result.records.groupby(["ratio", "n_images"])[["n_id", "n_ood"]].agg(["min", "max"])
    assert counted.loc[("1:4", 20)].tolist() == [4, 4, 16, 16]
    assert counted.loc[("4:1", 40)].tolist() == [32, 32, 8, 8]
    [told] = result.warnings()
    assert told.startswith("160 of 192 runs hold fewer than 20 ID or OOD images")
    assert "(down to 4 ID and 4 OOD)" in told
    summary = result.summary()
    assert {"nearood", "farood", "alike", "other"} == set(summary["dataset"])
    assert len(summary) == len(result.records) // 2 * 2


def test_summary_is_mean_and_deviation_over_seeds() -> None:
    result = sweep(DATA, {"gap": [0, 0.5]}, base=BASE, batch_sizes=(16,), seeds=(0, 1, 2))
    rows = result.records[(result.records["gap"] == 0.5) & (result.records["dataset"] == "other")]
    summary = result.summary()
    row = summary[(summary["gap"] == 0.5) & (summary["dataset"] == "other")].iloc[0]
    assert row["AUROC"] == pytest.approx(rows["AUROC"].mean())
    assert row["AUROC std"] == pytest.approx(rows["AUROC"].std(ddof=1))
    best = result.best("FPR@95", "farood")
    assert list(best["FPR@95"]) == sorted(best["FPR@95"])


def test_a_seed_without_effect_runs_once(tmp_path: Path) -> None:
    result = sweep(DATA, {}, base=BASE, orders=("id_first",), batch_sizes=(16,), seeds=(0, 1, 2))
    assert result.computed == 2 and len(result.records) == 6
    assert (result.summary()["AUROC std"] == 0).all()
    stateless = sweep(DATA, {}, method="neglabel", batch_sizes=(16,), seeds=(0, 1, 2))
    assert stateless.computed == 2 and len(stateless.records) == 6
    detector = make_detector("neglabel", DATA.text_features, DATA.n_id, DATA.logit_scale)
    run = replay(DATA, {"x": detector}, Protocol((1,), 16), progress=False)
    drawn = stateless.records[stateless.records["seed"] == 1]
    np.testing.assert_array_equal(drawn[list(METRICS)], run.records[list(METRICS)])


def test_released_configurations_are_one_where_they_run_as_one() -> None:
    configs = grid_configs({"beta": [5, 5.5, 6]}, released=True)
    assert [config.beta for config in configs] == [5.0, 6.0]


@pytest.mark.parametrize(
    ("grid", "settings", "message"),
    [
        ({"gama": [0.5]}, {}, "unknown key 'gama'; did you mean 'gamma'"),
        ({"gamma": []}, {}, "gamma must have a list"),
        ({"gamma": [2.0]}, {}, r"gamma must be in \[0, 1\]"),
        ({"tau": [None]}, {"method": "mcm"}, "mcm: tau must be a number, got None"),
        ({"tau": ["0.5"]}, {"method": "mcm"}, "mcm: tau must be a number, got '0.5'"),
        ({}, {"seeds": ()}, "seeds must be distinct"),
        ({}, {"batch_sizes": (0,)}, "batch_size must be at least 1"),
        ({}, {"orders": ("other",)}, "order must be one of"),
        ({}, {"orders": ("mixed", "mixed")}, "need values, none of them twice"),
        ({}, {"n_images": (1000,)}, "alike: 1000 images at 60:40 need 600 ID"),
        ({}, {"ratios": ()}, "need values, none of them twice"),
    ],
)
def test_mistakes_are_named(grid: dict, settings: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        sweep(DATA, grid, **settings)


def test_the_best_of_sets_that_are_not_there_is_refused() -> None:
    near = dataclasses.replace(DATA, near={**DATA.near, **DATA.far}, far={})
    result = sweep(near, {"tau": [1.0, 0.5]}, method="mcm", seeds=(0,))
    assert len(result.best(row="nearood")) == 2
    with pytest.raises(ValueError, match="row must be one of .*'nearood', got 'farood'"):
        result.best()


def test_subsets() -> None:
    assert Protocol().sizes(10, 90) == (10, 90)
    assert Protocol(ratio=(1, 100)).sizes(1000, 1000) == (10, 1000)
    assert Protocol(ratio=(100, 1)).sizes(1000, 1000) == (1000, 10)
    assert Protocol(ratio=(1, 100)).sizes(5, 5) == (1, 5)
    assert Protocol(ratio=(5, 4), n_images=900).sizes(50_000, 40_000) == (500, 400)
    small, large = (Protocol(ratio=(1, 1), n_images=n).subset(50, 70, 3) for n in (20, 60))
    assert set(small.ids) <= set(large.ids) and set(small.oods) <= set(large.oods)
    assert len(small.ids) == 10 and (np.diff(small.ids) > 0).all()
    other = Protocol(ratio=(1, 1), n_images=20).subset(50, 70, 4)
    assert not np.array_equal(small.ids, other.ids)
    assert parse_ratio(" 1:10") == (1, 10)
    for bad in ("1", "1:0", "a:b", "1:2:3"):
        with pytest.raises(ValueError, match="ratio"):
            parse_ratio(bad)


def test_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.append({"a": {"x": 0.1}, "b": {"y": [1, "é"]}})
    journal.append({"c": {}})
    again = Journal(tmp_path / "j")
    assert again.records == {"a": {"x": 0.1}, "b": {"y": [1, "é"]}, "c": {}} and "c" in again


def test_a_line_cut_short_in_this_process_does_not_spoil_the_next(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.append({"a": {"x": 1}, "b": {"x": 2}})
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:-5])  # the disk was full, and there is room again
    journal.append({"b": {"x": 2}, "c": {"x": 3}})
    assert Journal(journal.path).records == {"a": {"x": 1}, "b": {"x": 2}, "c": {"x": 3}}


def test_global_generators_are_untouched() -> None:
    state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    sweep(DATA, {"gap": [0, 1]}, ratios=((1, 2),), **QUICK)
    assert np.array_equal(state, np.random.get_state()[1])
    assert torch.equal(torch_state, torch.get_rng_state())


def test_digests_of_the_data() -> None:
    assert describe_data(make_sweep_data()) == describe_data(DATA)
    moved = dataclasses.replace(DATA, near=DATA.far, far=DATA.near)
    scaled = dataclasses.replace(DATA, logit_scale=21.0)
    others = (moved, scaled, make_sweep_data(seed=2))
    assert all(describe_data(other) != describe_data(DATA) for other in others)


def test_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    from PIL import Image

    result = sweep(
        DATA,
        {"gap": [0, 0.5], "adagap": [False, True]},
        ratios=(None, (1, 1)),
        n_images=(None, 20),
        **QUICK,
    )
    files = result.plot(tmp_path, {"gap": 0.5})
    assert [file.name for file in files] == [
        f"plot_{axis}.png" for axis in ("gap", "adagap", "ratio", "n_images")
    ]
    for file in files:
        with Image.open(file) as image:
            assert image.width > 1000 and len(image.convert("RGB").getcolors(1 << 20) or []) > 50
    assert Protocol().order == "mixed"
