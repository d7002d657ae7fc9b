"""This package's Evaluator: several streams, raw scores, resume, OpenOOD's methods without CUDA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openood.evaluation_api", reason="OpenOOD is not installed")

from openood.evaluation_api.datasets import DATA_INFO
from openood_direct import adaneg, direct_metrics
from openood_tiny import TinyModel, build_benchmark, names_of
from PIL import Image

from adaneg_openood import NegLabel
from adaneg_openood.evaluation import Run
from adaneg_openood.io.digests import tensor_digest
from adaneg_openood.openood import CLIPNetwork, Evaluator, Postprocessor
from adaneg_openood.openood.network import ModelTransform
from adaneg_openood.vlm import load_model

METRICS = ("FPR@95", "FPR@95 (ID positive)", "AUROC", "AUPR_IN", "AUPR_OUT", "ACC")


def make(root: Path, post: Any, net: CLIPNetwork | None = None, **kwargs: Any) -> Evaluator:
    net = CLIPNetwork(TinyModel(), names_of("cifar10")) if net is None else net
    return Evaluator(
        net, "cifar10", str(root), postprocessor=post, batch_size=9, num_workers=0, **kwargs
    )


def test_streams_equal_direct_ones_and_are_resumed(
    benchmarks: Path, negatives_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    post = Postprocessor("adaneg", negatives=str(negatives_file), batch_size=16)
    run = make(benchmarks, post)
    assert run.preprocessor is not None
    results = run.eval_streams(seeds=(0, 4), save_dir=tmp_path / "scores", progress=False)
    for seed in (0, 4):
        direct = direct_metrics(
            benchmarks, "cifar10", adaneg(), transform=TinyModel().preprocess, batch_size=16, seed=seed
        )
        rows = results.records[results.records["seed"] == seed].set_index("dataset")
        for name, expected in direct.items():
            for metric in METRICS:
                assert rows.loc[name, metric] == pytest.approx(expected[metric], abs=1e-12, rel=0)
    assert results.spread("adaneg").loc["farood", "AUROC"] > 0
    # the evaluator's own table is the stream of the configured seed
    table = run.eval_ood(progress=False)
    rows = results.records[results.records["seed"] == 0].set_index("dataset")
    assert table.loc["tin", "AUROC"] == pytest.approx(rows.loc["tin", "AUROC"], abs=1e-12)
    assert set(run.net.model.seen.values()) == {1}
    assert run.eval_acc() == pytest.approx(direct["tin"]["zero_shot"])

    saved = Run.load(tmp_path / "scores")
    np.testing.assert_array_equal(saved.records[list(METRICS)], results.records[list(METRICS)])
    one = saved.stream("adaneg", "tin", 4)
    assert one.conf.shape == one.pred.shape == one.label.shape == (100,) and one.label[0] == -1
    damaged = tmp_path / "scores" / "adaneg" / "far" / "svhn" / "seed0.npz"
    assert damaged.is_file()
    damaged.write_bytes(b"damaged")
    calls: list[int] = []
    original = post.make_detector

    def counting() -> Any:
        detector = original()
        score = detector.score
        detector.score = lambda *args, **kwargs: calls.append(1) or score(*args, **kwargs)
        return detector

    monkeypatch.setattr(post, "make_detector", counting)
    again = run.eval_streams(seeds=(0, 4), save_dir=tmp_path / "scores", progress=False)
    assert len(calls) == 7, "100 images of the damaged stream, in batches of 16"
    np.testing.assert_array_equal(again.records[list(METRICS)], results.records[list(METRICS)])


def test_methods_without_memory_run_one_stream(
    benchmarks: Path, negatives_file: Path, tmp_path: Path
) -> None:
    run = make(benchmarks, Postprocessor("neglabel", negatives=str(negatives_file)))
    results = run.eval_streams(seeds=(0, 1, 2), fsood=True, save_dir=tmp_path, progress=False)
    assert len(list(tmp_path.glob("neglabel/*/*/*.npz"))) == 6
    assert (results.spread("neglabel") == 0).all().all()
    direct = direct_metrics(
        benchmarks,
        "cifar10",
        lambda text, n: NegLabel(text, n, logit_scale=40.0),
        transform=TinyModel().preprocess,
        csid=True,
    )
    assert results.table("neglabel").loc["mnist", "AUROC"] == pytest.approx(
        direct["mnist"]["AUROC"], abs=1e-12
    )


class Described(TinyModel):
    """Tells its weights, so that its features may be kept on disk."""

    def describe(self) -> dict[str, Any]:
        return {"model": self.name, "dim": self.dim, "weights": tensor_digest(self._weight)}


def test_encoded_images_are_kept_and_changes_noticed(
    tmp_path: Path, negatives_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_benchmark(tmp_path / "data", "cifar10", n_id=20, n_ood=10)

    def evaluated(model: TinyModel, kept: str = "cache") -> tuple[Any, int]:
        post = Postprocessor("adaneg", negatives=str(negatives_file), cache=str(tmp_path / kept))
        # a bare model will do
        run = Evaluator(model, "cifar10", tmp_path / "data", postprocessor=post, num_workers=0)
        table = run.eval_ood(progress=False)
        return table, len(model.seen)

    first, n_images = evaluated(Described())
    again, nothing = evaluated(Described())
    assert n_images > 0 and nothing == 0
    np.testing.assert_array_equal(first, again)
    other = Described()
    other._weight = other._weight.flip(0)
    assert evaluated(other)[1] == n_images, "other weights of the same name"
    entry = DATA_INFO["cifar10"]["ood"]["near"]["tin"]
    name = (tmp_path / "data" / entry["imglist_path"]).read_text().split()[0]
    Image.new("RGB", (8, 8), "red").save(tmp_path / "data" / entry["data_dir"] / name)
    replaced, n_encoded = evaluated(Described())
    assert 0 < n_encoded <= 10, "an image of tin was replaced"
    np.testing.assert_array_equal(first.loc["svhn"], replaced.loc["svhn"])


def test_models_own_preprocessing_on_imagenet(benchmarks: Path, negatives_file: Path) -> None:
    """OpenOOD takes a Compose that ends in a normalisation there."""
    net = CLIPNetwork(TinyModel(), names_of("imagenet"))
    post = Postprocessor("adaneg", negatives=str(negatives_file), batch_size=16)
    run = Evaluator(net, "imagenet", str(benchmarks), postprocessor=post, num_workers=0)
    table = run.eval_ood(progress=False)
    direct = direct_metrics(
        benchmarks, "imagenet", adaneg(), transform=TinyModel().preprocess, batch_size=16
    )
    for name, expected in direct.items():
        assert table.loc[name, "AUPR_IN"] == pytest.approx(expected["AUPR_IN"], abs=1e-12, rel=0)


def test_openood_is_told_the_models_own_normalization() -> None:
    """And its workers are sent the transform, not the model."""
    model = load_model("demo")  # its mean is not CLIP's
    step, last = ModelTransform(model).transforms
    assert last.mean == (0.5, 0.5, 0.5) and last.std == (0.25, 0.25, 0.25)
    assert step is model.transform


@pytest.mark.parametrize("name", ["msp", "mls", "ebo"])
def test_openoods_own_methods_run_without_cuda(benchmarks: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "postprocessors"
    folder.mkdir()
    (folder / f"{name}.yml").write_text(
        f"postprocessor:\n  name: {name}\n  APS_mode: False\n  postprocessor_args:\n    temperature: 1\n"
    )
    net = CLIPNetwork(TinyModel(), names_of("cifar10"))
    run = Evaluator(
        net, "cifar10", str(benchmarks), str(tmp_path), postprocessor_name=name, num_workers=0
    )
    table = run.eval_ood(progress=False)
    assert table.loc["farood", "AUROC"] > 50
    with pytest.raises(TypeError, match="streams are for"):
        run.eval_streams()


def test_network_contract() -> None:
    import torch

    net = CLIPNetwork(TinyModel(), names_of("cifar10"))
    pixels = torch.rand(3, 3, 8, 8)
    logits, feature = net(pixels, return_feature=True)
    assert logits.shape == (3, 10) and feature.shape == (3, 16)
    torch.testing.assert_close(logits, 40.0 * feature @ net.id_features.T)
    assert net(pixels).equal(logits)
    _, (only,) = net(pixels, return_feature_list=True)
    assert only.shape == (3, 16, 1, 1)
    weight, bias = net.get_fc()
    np.testing.assert_allclose(feature.numpy() @ weight.T + bias, logits.numpy(), rtol=1e-5, atol=1e-5)
    assert net.get_fc_layer() is net.fc
    high = net.forward_threshold(pixels, 1e9)
    assert high.equal(logits)
    assert not net.forward_threshold(pixels, 0.0).equal(logits)
    assert net.intermediate_forward(pixels).shape == (3, 16)
    with pytest.raises(NotImplementedError, match="no ResNet stages"):
        net.intermediate_forward(pixels, layer_index=3)
    assert not any(parameter.requires_grad for parameter in net.parameters())
