"""Negative labels through the postprocessor: mined, cached, and never mixed up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("openood.evaluation_api", reason="OpenOOD is not installed")

from openood_tiny import CIFAR, NEGATIVES, TinyModel

from adaneg_openood.openood import CLIPNetwork, Postprocessor
from adaneg_openood.text import (
    ClassNames,
    Mining,
    MiningConfig,
    NegativeLabels,
    class_names,
    load_corpus,
    mine,
)


class Weighted(TinyModel):
    """Another checkpoint of the same name."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self._weight = torch.randn(48, 16, generator=generator, dtype=torch.float64)


@pytest.fixture
def candidates(tmp_path: Path) -> Path:
    folder = tmp_path / "candidates"
    folder.mkdir()
    (folder / "noun.txt").write_text("\n".join([*NEGATIVES, "Cat", "ship"]) + "\n")
    (folder / "adj.txt").write_text("\n".join(["red", "blue", "green", "tiny"]) + "\n")
    return folder


def features(net: Any, **settings: Any) -> torch.Tensor:
    post = Postprocessor("neglabel", {"dataset": {"name": "cifar10"}, "postprocessor": {}}, **settings)
    post.setup(net, {}, {})
    return post.labels.features


def test_mined_as_the_library_mines(candidates: Path) -> None:
    found = features(CLIPNetwork(TinyModel(), CIFAR), corpus=str(candidates), n_negatives=30)
    model = TinyModel()
    config = MiningConfig(n_negatives=30, prompt="The nice {}.", adjective_prompt="This is a {} photo.")
    labels = mine(model, ClassNames("cifar10", tuple(CIFAR)), load_corpus(candidates), config)
    assert "Cat" not in labels.words
    prompts = [f"The nice {name}." for name in CIFAR]
    prompts += [f"This is a {word} photo." for word in labels.of_kind("adj")]
    prompts += [f"The nice {word}." for word in labels.of_kind("noun")]
    torch.testing.assert_close(found, model.encode_text(prompts), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("given", "groups"), [({}, 30), ({"groups": 3}, 3)])
def test_groups_are_those_that_the_recipe_was_published_with(
    given: dict[str, int], groups: int, candidates: Path
) -> None:
    mining = {"mining": "neglabel", "corpus": str(candidates), "n_negatives": 30}  # with 100 groups
    post = Postprocessor("neglabel", {"dataset": {"name": "cifar10"}}, **mining, **given)
    post.setup(CLIPNetwork(TinyModel(), CIFAR), {}, {})
    assert post.make_detector().groups == groups


def test_a_network_without_names_takes_the_data_sets_to_drop_candidates(candidates: Path) -> None:
    text = TinyModel().encode_text([f"The nice {name}." for name in CIFAR])
    named = features(CLIPNetwork(TinyModel(), CIFAR), corpus=str(candidates), n_negatives=30)
    unnamed = features(
        CLIPNetwork(TinyModel(), id_features=text), corpus=str(candidates), n_negatives=30
    )
    torch.testing.assert_close(named, unnamed, rtol=0, atol=1e-6)


def test_mining_is_given_the_classes_wnids_as_eval_gives_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """``exclude_related`` drops every noun sense of a name without them."""
    known = class_names("imagenet200")
    seen = []

    def run(self: Mining, model: Any, classes: ClassNames, **_: Any) -> NegativeLabels:
        seen.append(classes.wnids)
        return NegativeLabels(tuple(NEGATIVES), ("noun",) * len(NEGATIVES), {})

    monkeypatch.setattr(Mining, "run", run)
    for names, dataset in (
        (known, "own"),
        (known.names, "imagenet200"),
        (known.names, "own"),
        (known.names[::-1], "imagenet200"),
    ):
        post = Postprocessor("neglabel", {"dataset": {"name": dataset}, "postprocessor": {}})
        post.setup(CLIPNetwork(TinyModel(), names), {}, {})
    assert seen == [known.wnids, known.wnids, None, None]


def test_text_is_encoded_once_and_kept_on_disk(candidates: Path) -> None:
    first = CLIPNetwork(TinyModel(), CIFAR)
    settings = {"corpus": str(candidates), "n_negatives": 30}
    expected = features(first, **settings)
    second = CLIPNetwork(TinyModel(), CIFAR)
    before = second.model.texts
    assert features(second, **settings).equal(expected)
    assert second.model.texts - before <= 3, "probes that tell networks apart, and nothing else"


def test_other_weights_and_settings_never_take_what_was_kept(candidates: Path) -> None:
    settings = {"corpus": str(candidates), "n_negatives": 30}
    kept = features(CLIPNetwork(Weighted(1), CIFAR), **settings)
    other = features(CLIPNetwork(Weighted(2), CIFAR), **settings)
    assert not torch.allclose(kept, other)
    assert other.equal(features(CLIPNetwork(Weighted(2), CIFAR), **settings))
    prompt = features(CLIPNetwork(Weighted(1), CIFAR), prompt="another {}.", **settings)
    assert prompt.shape == kept.shape and not prompt.equal(kept)
    fewer = features(CLIPNetwork(Weighted(1), CIFAR), corpus=str(candidates), n_negatives=7)
    assert len(fewer) == 17


def test_damaged_cache_is_made_again(candidates: Path, tmp_path: Path) -> None:
    settings = {"corpus": str(candidates), "n_negatives": 30, "cache": str(tmp_path / "own")}
    expected = features(CLIPNetwork(TinyModel(), CIFAR), **settings)
    files = [path for path in (tmp_path / "own").rglob("*") if path.is_file()]
    assert files
    for file in files:
        file.write_bytes(b"damaged")
    assert features(CLIPNetwork(TinyModel(), CIFAR), **settings).equal(expected)


def test_both_given_is_refused(candidates: Path, negatives_file: Path) -> None:
    with pytest.raises(ValueError, match="both set"):
        features(CLIPNetwork(TinyModel(), CIFAR), corpus=str(candidates), negatives=str(negatives_file))


def test_mcm_needs_no_negatives_and_scale_comes_from_the_settings(negatives_file: Path) -> None:
    post = Postprocessor("mcm")
    post.setup(CLIPNetwork(TinyModel(), CIFAR), {}, {})
    assert len(post.labels.features) == 10
    scaled = Postprocessor("adaneg", negatives=str(negatives_file), logit_scale=55.0)
    scaled.setup(CLIPNetwork(TinyModel(), CIFAR), {}, {})
    assert scaled.labels.logit_scale == 55.0


def test_one_batch_by_itself(negatives_file: Path) -> None:
    net = CLIPNetwork(TinyModel(), CIFAR)
    post = Postprocessor("adaneg", negatives=str(negatives_file))
    post.setup(net, {}, {})
    pred, conf = post.postprocess(net, torch.rand(5, 3, 8, 8))
    assert pred.shape == conf.shape == (5,)
