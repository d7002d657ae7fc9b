"""Every target of ``reproduce`` on the demo world, and on real CLIP features where they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import normalize
from typer.testing import CliRunner

from adaneg_openood.cli import app
from adaneg_openood.detectors import AdaNeg, AdaNegConfig
from adaneg_openood.evaluation import FeatureSet, Protocol, replay, save_features
from adaneg_openood.evaluation.sweep import sweep
from adaneg_openood.reproduce import TARGETS, Reproduction, load_published, reproduce
from adaneg_openood.reproduce.published import (
    COLUMNS,
    FIGURES,
    PROTOCOLS,
    PublishedProtocol,
    beside_published,
    select_protocol,
    set_name,
)
from adaneg_openood.reproduce.targets import Row, totals

SHARED = Path(__file__).parents[3] / "shared"
FPR_OOD, FPR_ID = "FPR@95", "FPR@95 (ID positive)"
REALCLIP = SHARED / "realclip"
needs_realclip = pytest.mark.skipif(
    not REALCLIP.is_dir(), reason="real CLIP features (../shared/realclip) are absent"
)


@pytest.fixture(scope="module")
def small(small: FeatureSet, demo: FeatureSet) -> FeatureSet:
    """With a second far set, so that groups of sets have means."""
    return replace(small, far={**small.far, "digits": demo.far["digits"][::3]})


# the published figures


def test_published_figures_have_sources_and_one_convention_a_column() -> None:
    published = load_published()
    assert len(published) > 50
    assert (published["source"].str.strip() != "").all()
    for column in ("method", "protocol", "dataset", "backbone"):
        assert (published[column] != "").all(), column
    values = published[list(FIGURES)]
    assert values.notna().any(axis=1).all(), "a row without a figure"
    assert ((values >= 0) & (values <= 100) | values.isna()).all(axis=None)
    # a figure of unknown convention stands in no column of a known one
    unstated = published["fpr95_unstated"].notna()
    known = published[["fpr95_ood_positive", "fpr95_id_positive"]].notna().any(axis=1)
    assert not (unstated & known).any()


def test_published_figures_that_must_not_be_mixed_up() -> None:
    published = load_published().set_index(["protocol", "dataset", "source", "method"]).sort_index()
    means = published.loc[("four_ood", "mean", "published"), ["fpr95_ood_positive", "fpr95_id_positive"]]
    np.testing.assert_equal(means.loc["AdaNeg"].to_numpy(), [18.92, np.nan])
    np.testing.assert_equal(means.loc["NegLabel"].to_numpy(), [np.nan, 25.40])


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is absent")
def test_published_figures_equal_the_reference() -> None:
    theirs = pd.read_csv(SHARED / "reference" / "results.csv")
    ours = load_published()
    assert len(theirs) == len(ours)
    np.testing.assert_array_equal(ours[list(FIGURES)], theirs[list(FIGURES)])
    assert list(ours["method"]) == list(theirs["method"])


# which images a stream uses


def test_names_of_sets_have_one_spelling() -> None:
    names = {"OpenImage-O": "openimageo", "SSB_hard": "ssbhard", "DTD": "textures"}
    assert {name: set_name(name) for name in names} == names


def test_stream_lengths_follow_the_sweeps_rule() -> None:
    assert totals(300, 150) == [90, 180, 337] and totals(50_000, 40_000)[-1] == 90_000


def test_uneven_streams_hold_what_the_sweep_would_take(small: FeatureSet) -> None:
    records = reproduce("samples", small, seeds=(0,), batch_size=32).records
    sizes = {(row.setting, row.n_id, row.n_ood) for row in records.itertuples()}
    assert sizes == {("n = 90", 50, 40), ("n = 112", 62, 50)}
    # the images of a seed are the sweep's, so the numbers are
    base = AdaNegConfig(**TARGETS["ratio"].config)
    uneven = reproduce("ratio", small, seeds=(3,), batch_size=32).records
    swept = sweep(small, {}, base=base, seeds=(3,), batch_sizes=(32,), ratios=((10, 1),)).records
    rows = uneven[(uneven["method"] == "AdaNeg") & (uneven["setting"] == "ID:OOD 10:1")]
    assert list(rows["AUROC"]) == list(swept["AUROC"]) and list(rows["n_ood"]) == [10] * 3


# every target on the demo world


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_runs_on_the_demo_world(target: str, small: FeatureSet, tmp_path: Path) -> None:
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    result = reproduce(target, small, seeds=(0, 1), batch_size=32)
    assert torch.equal(state[0], torch.get_rng_state())
    np.testing.assert_array_equal(state[1], np.random.get_state()[1])

    records = result.records
    assert set(records["dataset"]) == {"tools", "textures", "digits"}
    assert records["seed"].nunique() == 2 and (records["n_id"] > 0).all()
    text = result.to_text()
    if result.detects:
        assert FPR_OOD in text and FPR_ID in text and "n_ood" in text
        assert records[[FPR_OOD, FPR_ID, "AUROC"]].notna().all(axis=None)
        table = result.table()
        assert {"near", "far", "mean"} & set(table.index.get_level_values("dataset"))
        # the world of the demo is not ImageNet: nothing is held against it
        if len(result.comparison):
            assert not result.comparison["difference_taken"].any()
            assert result.comparison["AUROC difference"].isna().all()
        assert any("no difference" in note for note in result.notes)
    result.to_json(tmp_path / "result.json")
    saved = json.loads((tmp_path / "result.json").read_text("utf-8"))
    assert len(saved["records"]) == len(records)
    result.to_csv(tmp_path / "result.csv")
    assert len(pd.read_csv(tmp_path / "result.csv")) == len(records)


def test_group_rows_are_means_of_their_sets(small: FeatureSet) -> None:
    table = reproduce("four-ood", small, seeds=(0, 1), batch_size=32).table()
    adaneg = table.xs("AdaNeg", level="method").droplevel(["features", "setting"])
    for metric in (FPR_OOD, FPR_ID, "AUROC"):
        assert adaneg.loc["far", metric] == pytest.approx(
            adaneg.loc[["textures", "digits"], metric].mean()
        )
    assert adaneg.loc["mean", "n_ood"] == 150


def test_scores_that_are_combined_agree_with_their_parts(small: FeatureSet) -> None:
    both = reproduce("scores", small, seeds=(0,), batch_size=32).table()["AUROC"].droplevel([0, 2])
    gap = reproduce("gap", small, seeds=(0,), batch_size=32).table()["AUROC"].droplevel(0)
    assert both["S_ta + lambda S_nl", "mean"] == gap["AdaNeg", "g = 0.5", "mean"]
    assert both["S_sa + lambda S_nl", "mean"] == gap["AdaNeg (sample)", "g = 0.5", "mean"]
    assert both["S_nl", "mean"] == gap["NegLabel", "", "mean"]


def test_detectors_side_by_side_score_as_each_alone(small: FeatureSet) -> None:
    """Shared readings change nothing: the same numbers as from evaluate, bit by bit."""
    gaps = reproduce("gap", small, seeds=(0, 1), batch_size=32).records
    alone = {
        f"{proxy} {gap}": AdaNeg(
            small.text_features, small.n_id, small.logit_scale, AdaNegConfig(gap=gap, proxy=proxy)
        )
        for proxy in ("task", "sample")
        for gap in (0.0, 0.1)
    }
    expected = replay(small, alone, Protocol(seeds=(0, 1), batch_size=32), progress=False).records
    for name in alone:
        proxy, gap = name.split()
        method = "AdaNeg" if proxy == "task" else "AdaNeg (sample)"
        ours = gaps[(gaps["method"] == method) & (gaps["setting"] == f"g = {float(gap):g}")]
        theirs = expected[expected["method"] == name]
        for metric in (FPR_OOD, FPR_ID, "AUROC"):
            assert list(ours[metric]) == list(theirs[metric]), (name, metric)


def test_adaptive_proxies_lie_nearer_to_far_ood_images(small: FeatureSet) -> None:
    records = reproduce("isor", small, seeds=(0,), batch_size=32).records
    ratio = records.pivot(index="dataset", columns="negatives", values="ratio").loc["textures"]
    assert ratio["task-adaptive"] < ratio["static"] < 1


def test_the_plane_holds_every_kind_of_point(small: FeatureSet) -> None:
    result = reproduce(
        "tsne", replace(small, near={}, far={"textures": small.far["textures"]}), seeds=(0,)
    )
    assert result.points is not None
    kinds = result.points.groupby("kind").size()
    assert set(kinds.index) == {"ID image", "OOD image", "static negative", "adaptive proxy"}
    named = result.points[result.points["kind"] == "adaptive proxy"]
    assert (named["name"] != "").all() and np.isfinite(result.points[["x", "y"]]).all(axis=None)


def test_several_backbones_get_their_own_rows(small: FeatureSet) -> None:
    mixed = replace(small, text_features=small.text_features + 0.05)
    result = reproduce("backbones", {"ViT-B/16": small, "RN50": mixed}, seeds=(0,), batch_size=32)
    assert list(result.records["features"].unique()) == ["ViT-B/16", "RN50"]
    assert "RN50" in result.to_text()


# the published figures beside ours


@pytest.fixture
def like_published(small: FeatureSet, monkeypatch: pytest.MonkeyPatch) -> FeatureSet:
    """Features that bear the names of the four-OOD protocol, which is made as small as they are."""
    like = PublishedProtocol(small.n_id, far=PROTOCOLS["four_ood"].far, id_images=(100,))
    monkeypatch.setitem(PROTOCOLS, "four_ood", like)
    names = ("iNaturalist", "SUN", "Places365", "DTD")
    sets = dict(zip(names, small.far["textures"].split(13)))
    return replace(small, near={"SSB_hard": small.near["tools"]}, far=sets)


def test_differences_are_taken_where_the_settings_are_the_same(like_published: FeatureSet) -> None:
    protocol, cut, apart = select_protocol(("openood_imagenet", "four_ood"), like_published)
    assert (protocol, apart) == ("four_ood", [])
    assert list(cut.far) == ["inaturalist", "sun", "places", "textures"] and not cut.near

    result = reproduce("four-ood", like_published, seeds=(0,))
    rows = result.comparison[result.comparison["method"] == "AdaNeg (first come)"]
    others = result.comparison[~result.comparison["method"].isin(["TANL"])]
    assert others["difference_taken"].all()
    # published with more than features hold, and said so
    assert [note.partition(":")[0] for note in result.notes] == ["TANL"]
    tanl = result.comparison[result.comparison["method"] == "TANL"].iloc[0]
    assert not tanl["difference_taken"] and tanl["FPR95 OOD+ published"] == 9.81
    assert np.isnan(tanl["FPR95 OOD+ difference"]) and np.isnan(tanl["FPR95 ID+ published"])
    oodd = result.comparison[result.comparison["method"] == "OODD"].iloc[0]
    assert oodd["FPR95 unstated published"] == 18.79
    assert np.isnan(oodd["FPR95 OOD+ published"]) and np.isnan(oodd["FPR95 ID+ published"])
    paper = rows[(rows["dataset"] == "mean") & (rows["source"] == "AdaNeg: published")].iloc[0]
    ours = result.table().loc[("", "AdaNeg (first come)", "", "mean")]
    assert paper["FPR95 OOD+ ours"] == ours[FPR_OOD]
    assert paper["FPR95 OOD+ difference"] == pytest.approx(ours[FPR_OOD] - 18.92)
    assert paper["n_id"] == 100 and "Beside the published figures" in result.to_text()


@pytest.mark.parametrize("changed", [{"batch_size": 32}, {"settings": {"gap": 0.2}}])
def test_changed_settings_take_no_difference(like_published: FeatureSet, changed: dict) -> None:
    result = reproduce("backbones", {"ViT-B/16": like_published}, seeds=(0,), **changed)
    assert not result.comparison["difference_taken"].any()
    assert any("published with" in note for note in result.notes)


def test_a_difference_is_ours_minus_published_convention_by_convention(small: FeatureSet) -> None:
    key = pd.MultiIndex.from_tuples(
        [("", "AdaNeg", "", "mean")], names=["features", "method", "setting", "dataset"]
    )
    ours = {FPR_OOD: 18.0, FPR_ID: 13.0, "AUROC": 97.0, "ACC": 65.0, "n_id": 50_000, "n_ood": 4}
    row = Row("AdaNeg", figures=(("AdaNeg entropy", ""), ("AdaNeg", "published")))
    table = pd.DataFrame([ours], index=key)
    found = beside_published(table, "", [row], "four_ood", True, "ViT-B/16")
    frame = pd.DataFrame(found, columns=list(COLUMNS))
    mean = frame[frame["dataset"] == "mean"].set_index("source")
    entropy = mean.loc["AdaNeg entropy: independent run; 3 orders"]
    assert entropy["FPR95 OOD+ difference"] == pytest.approx(18.0 - 17.56)
    assert entropy["FPR95 ID+ difference"] == pytest.approx(13.0 - 12.96)
    paper = mean.loc["AdaNeg: published"]
    assert paper["FPR95 OOD+ difference"] == pytest.approx(18.0 - 18.92)
    assert np.isnan(paper["FPR95 ID+ difference"]) and paper["n_id"] == 50_000


# errors and the command line


def test_errors_say_what_is_allowed(small: FeatureSet) -> None:
    with pytest.raises(ValueError, match="four-ood"):
        reproduce("five-ood", small)
    with pytest.raises(ValueError, match="one feature set"):
        reproduce("gamma", {"a": small, "b": small})
    with pytest.raises(ValueError, match="memory_length"):
        reproduce("gamma", small, settings={"memory": 3})
    with pytest.raises(ValueError, match="unknown set nope"):
        reproduce("gamma", small, streams={"nope": np.arange(3)})
    with pytest.raises(ValueError, match="distinct"):
        reproduce("gamma", small, seeds=(1, 1))


def test_the_command_writes_what_it_prints(small: FeatureSet, tmp_path: Path) -> None:
    save_features(tmp_path / "b16.npz", small)
    runner = CliRunner()
    listed = runner.invoke(app, ["reproduce", "list"])
    assert listed.exit_code == 0 and all(name in listed.output for name in TARGETS)
    arguments = ["reproduce", "gap", "--features", str(tmp_path / "b16.npz"), "--seeds", "1"]
    files = ["--json", str(tmp_path / "gap.json"), "--csv", str(tmp_path / "gap.csv")]
    done = runner.invoke(app, [*arguments, *files, "--set", "groups=3", "--batch-size", "16"])
    assert done.exit_code == 0, done.output
    assert "g = 0.01" in done.output and FPR_ID in done.output
    saved = json.loads((tmp_path / "gap.json").read_text("utf-8"))
    assert saved["protocol"]["settings"]["groups"] == 3 and saved["protocol"]["batch_size"] == 16
    wrong = runner.invoke(app, ["reproduce", "gab"])
    assert wrong.exit_code == 2 and "no target 'gab'" in wrong.output


# real CLIP features: equal to the released post-processors


TASKS = ("cifar10_vs_fashion", "cifar10_vs_misc", "animals_vs_vehicles")


def real_task(task: str) -> tuple[FeatureSet, str, np.ndarray]:
    """A task as features, its OOD set's name, and its order over concat(OOD, ID)."""
    images = {k: v.astype(np.float32) for k, v in np.load(REALCLIP / "images.npz").items()}
    text, expected = np.load(REALCLIP / "text.npz"), np.load(REALCLIP / "expected.npz")
    labels = images["cifar10_label"].astype(np.int64)
    id_text = torch.from_numpy(text["id_feature"]).float()
    if task == "animals_vs_vehicles":
        animal = (labels >= 2) & (labels <= 7)
        name, ood = "vehicles", images["cifar10"][~animal]
        ids, labels, id_text = images["cifar10"][animal], labels[animal] - 2, id_text[2:8]
    else:
        name = task.rpartition("_")[2]
        ood, ids = images[name], images["cifar10"]
    words = normalize(torch.from_numpy(text["feature"]).float(), dim=1)
    mined = words[expected[f"mined_index__{task}"].astype(np.int64)]
    data = FeatureSet(
        text_features=torch.cat([normalize(id_text, dim=1), mined]),
        n_id=len(id_text),
        id_features=torch.from_numpy(ids),
        id_labels=torch.from_numpy(labels),
        far={name: torch.from_numpy(ood)},
    )
    return data, name, expected[f"order__{task}"]


def expected_runs(task: str) -> dict[str, dict]:
    runs = json.loads((REALCLIP / "expected.json").read_text("utf-8"))["runs"]
    return {run["run"]: run for run in runs if run["task"] == task}


def assert_equals(
    result: Reproduction, method: str, run: dict, setting: str = "", acc: bool = True
) -> None:
    records = result.records
    row = records[(records["method"] == method) & (records["setting"] == setting)]
    assert len(row) == 1, (method, setting)
    pairs = {FPR_OOD: "fpr95", "AUROC": "auroc", "AUPR_IN": "aupr_in", "AUPR_OUT": "aupr_out"}
    for ours, theirs in {**pairs, **({"ACC": "acc"} if acc else {})}.items():
        assert float(row[ours].iloc[0]) / 100 == pytest.approx(run[theirs], abs=1e-6), (method, ours)


@needs_realclip
@pytest.mark.parametrize("task", TASKS)
def test_real_clip_figures_equal_the_released_ones(task: str) -> None:
    data, name, order = real_task(task)
    runs = expected_runs(task)

    def run(target: str, **settings: object) -> Reproduction:
        # the released code truncates beta
        common = {"seeds": (0,), "batch_size": 64, "streams": {name: order}, "double": True}
        return reproduce(target, data, settings={"beta": 5.0, **settings}, **common)  # type: ignore[arg-type]

    scores = run("scores")
    assert_equals(scores, "S_nl", runs["neglabel"], acc=False)
    assert_equals(scores, "S_ta + lambda S_nl", runs["task"])
    assert_equals(scores, "S_sa + lambda S_nl", runs["sample"])
    gaps = run("gap")
    assert_equals(gaps, "AdaNeg", runs["task_g0"], "g = 0")
    assert_equals(gaps, "AdaNeg", runs["task"], "g = 0.5")
    for target, setting in (("gamma", "gamma = 0.5"), ("memory", "L = 10")):
        varied = run(target)
        assert_equals(varied, "NegLabel", runs["neglabel"], acc=False)
        assert_equals(varied, "AdaNeg", runs["task"], setting)
        assert_equals(varied, "AdaNeg (sample)", runs["sample"], setting)
    cifar = run("cifar10", groups=5)
    assert_equals(cifar, "MCM", runs["mcm_tau1"])
    # NegLabel predicts the zero-shot class; the released post-processor, AdaNeg's class
    assert_equals(cifar, "NegLabel", runs["neglabel"], acc=False)
    assert_equals(cifar, "AdaNeg", runs["task"])
    assert_equals(cifar, "AdaNeg (sample)", runs["sample"])
    # the released AdaGap predicts otherwise, on purpose not followed: confidences only
    assert_equals(cifar, "AdaNeg + AdaGap (as released)", runs["adagap"], acc=False)
    for target in ("four-ood", "backbones", "prompts"):
        assert_equals(run(target), "AdaNeg", runs["task"])


@needs_realclip
def test_real_clip_the_other_targets_run() -> None:
    data, _, _ = real_task("cifar10_vs_misc")
    for target in ("ratio", "samples", "isor", "tsne", "bimcv", "cifar100", "openood-imagenet"):
        result = reproduce(target, data, seeds=(0,), batch_size=64)
        assert len(result.records), target
