"""The drawn benchmark, as the README runs it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("openood.evaluation_api", reason="OpenOOD is not installed")

from openood.evaluation_api import Evaluator
from openood_checkout import classic, needs_checkout
from typer.testing import CliRunner

from adaneg_openood.benchmark.definition import read_benchmark
from adaneg_openood.benchmark.opening import open_benchmark
from adaneg_openood.benchmark.run import encode_benchmark
from adaneg_openood.cli import app
from adaneg_openood.openood.compare import compare, known
from adaneg_openood.openood.postprocessors import configured
from adaneg_openood.openood.trial import trial_network, write_trial


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


def test_towers_that_were_trained_are_noticed(trial: Path) -> None:
    """By the same evaluator, and by a later one with the features that an earlier one kept."""
    net, configs = trial_network(), trial / "configs"

    def evaluator() -> Evaluator:
        post = configured("mcm", "demo", configs)
        loading = {"postprocessor": post, "num_workers": 0}
        return Evaluator(net, "demo", str(trial), str(configs), net.preprocess, **loading)

    def confidences(run: Evaluator) -> Any:
        return run.postprocessor.inference(net, run.dataloader_dict["ood"]["far"]["digits"], False)[1]

    first = evaluator()
    before = confidences(first)
    with torch.no_grad():
        for value in net.model.model.visual.parameters():
            value.mul_(0.5)
    assert abs(confidences(first) - before).max() > 0.01
    assert abs(confidences(evaluator()) - before).max() > 0.01


def test_learned_prompts_give_the_text_rows_of_eval(trial: Path, tmp_path: Path) -> None:
    """NegPrompt's checkpoint brings its negatives, so no word is mined beside them."""
    net, file = trial_network(), tmp_path / "negprompt.pt"
    width = net.model.model.token_embedding.weight.shape[1]
    vectors = torch.randn(4, 1, width, generator=torch.Generator().manual_seed(0)) / 10
    torch.save({"ctx": vectors[0], "ctx_negative": vectors[1:]}, file)
    post = configured("adaneg", "demo", tmp_path, learned_prompts=str(file))  # the shipped YAML
    post.setup(net, {}, {})
    (tmp_path / "own.yml").write_text(
        "classes: demo\nmodel: demo\ncorpus: wordnet\nlearned_prompts: negprompt.pt\n"
        "id: {demo: demo, limit: 5}\nfar: {digits: {demo: digits, limit: 5}}\n"
    )
    expected = encode_benchmark(open_benchmark(read_benchmark(tmp_path / "own.yml"))).labels
    assert post.labels.n_negatives == 3 * post.labels.n_id and post.labels.names == expected.names
    torch.testing.assert_close(post.labels.features, expected.features, rtol=0, atol=1e-6)


def test_every_postprocessor_is_served(trial: Path) -> None:
    """OpenOOD's own as well: their YAMLs, the class count, and training images."""
    names = ["msp", "mds", "rmds", "gradnorm", "she", "knn", "mcm", "adaneg"]
    found = compare(
        trial_network(), "demo", names, data_root=trial, config_root=trial / "configs", num_workers=0
    )
    assert not found.failed
    assert {path.stem for path in (trial / "configs" / "postprocessors").iterdir()} == set(known)


def test_commands_need_no_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["compare", "--benchmark", "demo", "--postprocessors", "msp,neglabel,adaneg"]
    done = CliRunner().invoke(app, [*asked, "--json", "table.json"])
    assert done.exit_code == 0, done.output
    written = json.loads(Path("table.json").read_text())
    table = written["table"]
    assert written["settings"]["adaneg"]["batch_size"] == 64 and set(written["settings"]) == {
        *("neglabel", "adaneg")
    }
    assert re.search("^adaneg: .*gamma 0.5", done.output, re.M)
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
            (("--set", "msp.nonsense=3"), "settings are given for msp, which is not of this package"),
            (("--data", "nowhere"), "--data: there is no folder nowhere"),
            (("--configs", "nowhere"), "--configs: there is no folder nowhere"),
            (("--data", "empty"), "benchmark_imglist/demo/test_"),
            ((method, "adange"), "did you mean 'adaneg'"),
            (("--classes", "nowhere.txt"), "nowhere.txt"),
            (("--set", "adaneg.gapp=1"), "did you mean 'gap'"),
        ):
            done = CliRunner().invoke(app, [*command, *more])
            assert done.exit_code == 2 and message in done.output, (command, more, done.output)


def test_settings_that_would_have_no_effect_are_refused(
    trial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("adaneg_openood.vlm.load_model", lambda *a, **k: pytest.fail("loaded"))
    asked = ["compare", "--benchmark", "demo", "--data", str(trial), "--postprocessors", "mcm,neglabel"]
    for more, message in (
        (["adaneg.gap=0.2"], "adaneg, which is not among the methods that run"),
        (["mcm.cache=one", "neglabel.cache=two"], "cache: images are encoded once for all methods"),
        (["mcm.skip_broken=true"], "skip_broken: images are encoded once for all methods"),
    ):
        given = [part for text in more for part in ("--set", text)]
        done = CliRunner().invoke(app, [*asked, *given])
        assert done.exit_code == 2 and message in done.output, (more, done.output)
    row = ["leaderboard", "--benchmark", "demo", "--data", str(trial), "--arch", " "]
    done = CliRunner().invoke(app, row)
    assert done.exit_code == 2 and "--arch is empty" in done.output


def test_compare_keeps_images_in_the_cache_that_is_named(trial: Path, tmp_path: Path) -> None:
    cache = tmp_path / "own"
    compare(
        trial_network(),
        "demo",
        ["mcm"],
        data_root=trial,
        config_root=trial / "configs",
        settings={"mcm": {"cache": str(cache)}},
        num_workers=0,
    )
    assert len(list((cache / "features").glob("*.safetensors"))) == 6


@needs_checkout
def test_classic_pipeline_runs_it(trial: Path, tmp_path: Path) -> None:
    configs = [trial / f"{name}.yml" for name in ("dataset", "ood", "run")]
    said = classic([*configs, trial / "configs" / "postprocessors" / "adaneg.yml"], tmp_path)
    assert "Completed!" in said
    assert "3 stream order(s):" in said and "± " in said
    assert "FPR@95 (ID positive)" in (trial / "results" / "demo_adaneg" / "streams.csv").read_text()
