"""OpenOOD's own Evaluator, unmodified: the numbers are those of the direct computation."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("openood.evaluation_api", reason="OpenOOD is not installed")

from openood.evaluation_api import Evaluator
from openood_direct import adaneg, direct_metrics
from openood_tiny import TinyModel, names_of

from adaneg_openood import MCM, NegLabel
from adaneg_openood.openood import CLIPNetwork, Postprocessor

METRICS = ("FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT")
EXACT = 1e-12


def network(id_name: str, scale: float = 40.0) -> CLIPNetwork:
    return CLIPNetwork(TinyModel(scale), names_of(id_name))


def evaluator(root: Path, id_name: str, net: Any, **kwargs: Any) -> Evaluator:
    return Evaluator(net, id_name=id_name, data_root=str(root), num_workers=0, batch_size=7, **kwargs)


def assert_equal(
    table: pd.DataFrame, direct: dict[str, dict[str, float]], acc: str = "zero_shot"
) -> None:
    for name, expected in direct.items():
        for metric in METRICS:
            assert table.loc[name, metric] == pytest.approx(expected[metric], abs=EXACT, rel=0), (
                name,
                metric,
            )
        assert table.loc[name, "ACC"] == pytest.approx(expected[acc], abs=EXACT, rel=0)


@pytest.mark.parametrize("id_name", ["cifar10", "imagenet"])
@pytest.mark.parametrize("scale", [40.0, 400.0])
def test_adaneg_equals_the_direct_mixed_stream(
    benchmarks: Path, negatives_file: Path, id_name: str, scale: float
) -> None:
    net = network(id_name, scale)
    post = Postprocessor("adaneg", negatives=str(negatives_file), batch_size=16, seed=3)
    table = evaluator(benchmarks, id_name, net, postprocessor=post).eval_ood(progress=False)
    direct = direct_metrics(
        benchmarks, id_name, adaneg(scale), model=TinyModel(scale), batch_size=16, seed=3
    )
    assert_equal(table, direct)
    if scale == 400.0:
        assert all(result["ties"] > 5 for result in direct.values()), "the case is meant to hold ties"
    assert set(net.model.seen.values()) == {1}, "every image is encoded once"


def test_by_name_with_a_yaml(benchmarks: Path, negatives_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "configs" / "postprocessors"
    folder.mkdir(parents=True)
    (folder / "adaneg.yml").write_text(
        "postprocessor:\n  name: adaneg\n  APS_mode: False\n  postprocessor_args:\n"
        f"    negatives: '{negatives_file}'\n    beta: 1e-8\n    proxy: sample\n    batch_size: 16\n"
    )
    table = evaluator(
        benchmarks,
        "cifar10",
        network("cifar10"),
        postprocessor_name="adaneg",
        config_root=str(tmp_path / "configs"),
    ).eval_ood(progress=False)
    direct = direct_metrics(benchmarks, "cifar10", adaneg(proxy="sample", beta=1e-8), batch_size=16)
    assert_equal(table, direct)


@pytest.mark.parametrize("method", ["neglabel", "mcm"])
def test_methods_without_memory(benchmarks: Path, negatives_file: Path, method: str) -> None:
    net = network("cifar10")
    post = (
        Postprocessor("neglabel", negatives=str(negatives_file), groups=3)
        if method == "neglabel"
        else Postprocessor("mcm", tau=0.5)
    )
    table = evaluator(benchmarks, "cifar10", net, postprocessor=post).eval_ood(progress=False)

    def detector(text: Any, n_id: int) -> Any:
        if method == "mcm":
            return MCM(text, n_id, tau=0.5)
        return NegLabel(text, n_id, groups=3, logit_scale=40.0)

    assert_equal(table, direct_metrics(benchmarks, "cifar10", detector))
    assert set(net.model.seen.values()) == {1}


def test_sequential_protocol(benchmarks: Path, negatives_file: Path) -> None:
    post = Postprocessor("adaneg", negatives=str(negatives_file), order="id_first", batch_size=32)
    table = evaluator(benchmarks, "cifar10", network("cifar10"), postprocessor=post).eval_ood(
        progress=False
    )
    direct = direct_metrics(benchmarks, "cifar10", adaneg(), order="id_first", batch_size=32)
    assert_equal(table, direct)


@pytest.mark.parametrize("id_name", ["cifar10", "imagenet"])
def test_full_spectrum_before_and_after_the_plain_table(
    benchmarks: Path, negatives_file: Path, id_name: str
) -> None:
    """One evaluator, both tables, in both orders: OOD scores of the first call are reused by OpenOOD."""

    plain = direct_metrics(benchmarks, id_name, adaneg(), batch_size=32)
    full = direct_metrics(benchmarks, id_name, adaneg(), batch_size=32, csid=True)
    assert plain != full
    for first in (False, True):
        net = network(id_name)
        post = Postprocessor("adaneg", negatives=str(negatives_file), batch_size=32)
        run = evaluator(benchmarks, id_name, net, postprocessor=post)
        for fsood in (first, not first):
            assert_equal(run.eval_ood(fsood=fsood, progress=False), full if fsood else plain)
        assert set(net.model.seen.values()) == {1}


def test_calls_in_any_order_and_again(benchmarks: Path, negatives_file: Path) -> None:
    """OOD sets before the ID set, one of them twice: the same numbers, no image encoded again."""
    from openood.evaluators.metrics import compute_all_metrics

    net = network("cifar10")
    post = Postprocessor("adaneg", negatives=str(negatives_file), batch_size=16)
    loaders = evaluator(benchmarks, "cifar10", net, postprocessor=post).dataloader_dict
    tin, svhn = loaders["ood"]["near"]["tin"], loaders["ood"]["far"]["svhn"]
    ood = {"svhn": post.inference(net, svhn), "tin": post.inference(net, tin)}
    id_triple = post.inference(net, loaders["id"]["test"])
    ood["svhn"] = post.inference(net, svhn, progress=False)
    direct = direct_metrics(benchmarks, "cifar10", adaneg(), batch_size=16)
    for name, triple in ood.items():
        pred, conf, label = (np.concatenate([a, b]) for a, b in zip(id_triple, triple))
        fpr, auroc, aupr_in, aupr_out, acc = compute_all_metrics(conf, label, pred)
        expected = direct[name]
        found = {"FPR@95": fpr, "AUROC": auroc, "AUPR_IN": aupr_in, "AUPR_OUT": aupr_out, "ACC": acc}
        for metric, value in found.items():
            assert 100 * value == pytest.approx(expected[metric], abs=EXACT, rel=0)
    assert set(net.model.seen.values()) == {1}


@pytest.mark.parametrize("fsood", [False, True])
def test_saved_scores_give_the_same_table_or_are_refused(
    benchmarks: Path, negatives_file: Path, fsood: bool
) -> None:
    """What OpenOOD's scripts do: unpickle the scores of an earlier process, and join them anew."""
    import pickle

    def fresh(**settings: Any) -> Evaluator:
        post = Postprocessor("adaneg", negatives=str(negatives_file), batch_size=16, **settings)
        return evaluator(benchmarks, "cifar10", network("cifar10", 400.0), postprocessor=post)

    def restored(data: bytes, **settings: Any) -> Evaluator:
        run = fresh(**settings)
        scores = pickle.loads(data)
        # as OpenOOD's update does: sets that were not scored stay None
        run.scores.update({key: scores[key] for key in ("id", "csid", "ood")})
        return run

    run = fresh()
    table = run.eval_ood(fsood=fsood, progress=False)
    data = pickle.dumps(run.scores, pickle.HIGHEST_PROTOCOL)
    direct = direct_metrics(
        benchmarks, "cifar10", adaneg(400.0), model=TinyModel(400.0), batch_size=16, csid=fsood
    )
    assert all(result["ties"] > 5 for result in direct.values())
    del run
    again = restored(data)
    pd.testing.assert_frame_equal(again.eval_ood(fsood=fsood, progress=False), table, rtol=0, atol=0)
    assert_equal(table, direct)
    with pytest.raises(ValueError, match="saved scores of tin|saved scores of cifar100"):
        restored(data).eval_ood(fsood=not fsood, progress=False)
    del again
    gc.collect()
    with pytest.raises(ValueError, match="other settings or text features than this run's"):
        restored(data, gap=0.1).eval_ood(fsood=fsood, progress=False)


def test_parameter_search(benchmarks: Path, negatives_file: Path) -> None:
    config = {
        "postprocessor": {
            "name": "adaneg",
            "APS_mode": True,
            "postprocessor_args": {"negatives": str(negatives_file), "batch_size": 16},
            "postprocessor_sweep": {"gap_list": [0.0, 0.5, 0.9], "proxy_list": ["task", "sample"]},
        }
    }
    net = network("cifar10")
    post = Postprocessor("adaneg", config)
    run = evaluator(benchmarks, "cifar10", net, postprocessor=post)
    assert post.hyperparam_search_done
    gap, proxy = post.get_hyperparam()
    table = run.eval_ood(progress=False)
    direct = direct_metrics(benchmarks, "cifar10", adaneg(gap=gap, proxy=proxy), batch_size=16)
    assert_equal(table, direct)
    assert set(net.model.seen.values()) == {1}, "six combinations, and every image encoded once"


def test_search_picks_what_the_direct_search_picks(benchmarks: Path, negatives_file: Path) -> None:
    """No state leaks from one combination to the next, in whatever order they come."""
    from openood.evaluation_api.datasets import DATA_INFO
    from openood.evaluation_api.preprocessor import get_default_preprocessor
    from openood_direct import features_of, text_features

    from adaneg_openood.evaluation import ood_metrics, run_stream, stream_order

    model, info = TinyModel(), DATA_INFO["cifar10"]
    transform = get_default_preprocessor("cifar10")
    text = text_features(model, "cifar10")
    val, labels = features_of(benchmarks, info["id"]["val"], model, transform)
    ood, _ = features_of(benchmarks, info["ood"]["val"], model, transform)
    import torch

    def auroc(gamma: float) -> float:
        detector = adaneg(gamma=gamma)(text, 10)
        scores = run_stream(detector, torch.cat([ood, val]), stream_order(len(ood), len(val), 0), 256)
        label = np.concatenate([np.full(len(ood), -1), labels])
        return ood_metrics(scores.conf, label, scores.pred)["AUROC"]

    from openood.evaluators.metrics import compute_all_metrics

    net = network("cifar10")
    post = Postprocessor(
        "adaneg",
        {"postprocessor": {"postprocessor_sweep": {"gamma_list": [0.5]}}},
        negatives=str(negatives_file),
    )
    loaders = evaluator(benchmarks, "cifar10", net, postprocessor=post).dataloader_dict
    for gamma in (0.9, 0.1, 0.5, 0.9):
        post.set_hyperparam([gamma])
        parts = post.inference(net, loaders["id"]["val"]), post.inference(net, loaders["ood"]["val"])
        pred, conf, label = (np.concatenate(pair) for pair in zip(*parts))
        assert 100 * compute_all_metrics(conf, label, pred)[1] == pytest.approx(auroc(gamma), abs=EXACT)


def test_pickle_and_a_yaml_that_changed(
    benchmarks: Path, negatives_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import pickle

    from openood.evaluation_api.evaluator import get_postprocessor

    folder = tmp_path / "postprocessors"
    folder.mkdir()
    yaml = folder / "adaneg.yml"
    text = (
        "postprocessor:\n  name: adaneg\n  postprocessor_args:\n"
        f"    negatives: {negatives_file}\n    gap: 0.5\n"
    )
    yaml.write_text(text)
    net = network("cifar10")
    post = get_postprocessor(str(tmp_path), "adaneg", "cifar10")
    evaluator(benchmarks, "cifar10", net, postprocessor=post).eval_ood(progress=False)
    data = pickle.dumps(post)
    assert len(data) < 20_000, "neither images nor networks"

    again = pickle.loads(data)
    evaluator(benchmarks, "cifar10", net, postprocessor=again)
    assert again.settings == post.settings
    assert "changed" not in caplog.text

    yaml.write_text(text.replace("0.5", "0.2"))
    stale = pickle.loads(data)
    evaluator(benchmarks, "cifar10", net, postprocessor=stale)
    assert stale.settings.gap == 0.2
    assert str(yaml) in caplog.text

    yaml.unlink()
    caplog.clear()
    orphan = pickle.loads(data)
    evaluator(benchmarks, "cifar10", net, postprocessor=orphan)
    assert orphan.settings.gap == 0.5
    assert "not there to check" in caplog.text


def test_shuffled_loader_gives_the_same_table(benchmarks: Path, negatives_file: Path) -> None:
    tables = []
    for shuffle in (False, True):
        post = Postprocessor("adaneg", negatives=str(negatives_file), batch_size=16)
        run = evaluator(benchmarks, "cifar10", network("cifar10"), postprocessor=post, shuffle=shuffle)
        tables.append(run.eval_ood(progress=False))
    pd.testing.assert_frame_equal(*tables, rtol=0, atol=EXACT)
