"""NegLabel's and CSP's own mining: the released code's outputs, and what a list says of its recipe."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from text_fakes import HashModel
from torch.nn.functional import normalize

from adaneg_openood.text import (
    ClassNames,
    Corpus,
    LabelFeatures,
    MiningConfig,
    NegativeLabels,
    NegativeMiner,
    label_features,
    load_corpus,
    mine,
)
from adaneg_openood.text.mining import candidates_of
from adaneg_openood.text.prompts import NameEncoder, fill
from adaneg_openood.text.recipes import RECIPES

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "frontier"
CASES = [
    case
    for case in json.loads((GOLDEN / "cases.json").read_text("utf-8"))
    if case["method"] in ("csp", "neglabel_mine")
]


class GoldenTower(HashModel):
    """The golden data's stand-in text tower: a table from the prompt's hash to its raw embedding."""

    def __init__(self):
        super().__init__(dim=16)
        table = np.load(GOLDEN / "csp_text.npz")
        self.table = dict(zip(table["key"].tolist(), torch.from_numpy(table["raw"])))

    def encode_text_raw(self, texts):
        keys = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts]
        return torch.stack([self.table[key] for key in keys])

    def encode_text(self, texts):
        return normalize(self.encode_text_raw(texts), dim=-1)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    told = json.loads((GOLDEN / "csp_words.json").read_text("utf-8"))
    for name, lines in told["files"].items():
        (folder / name).write_text("\n".join(lines) + "\n")
    return ClassNames("golden", tuple(told["id_names"])), load_corpus(folder)


def config_of(case):
    args = case["args"]
    return MiningConfig(
        recipe=case["method"].removesuffix("_mine"),
        share=args["share"],
        percentile=args["percentile"],
        seed=args["seed"] or 0,
        exclude=args["exclude"],
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_golden_mining(case, words, tmp_path):
    classes, corpus = words
    expected = np.load(GOLDEN / f"{case['name']}.npz")
    model, config = GoldenTower(), config_of(case)
    left, prompts = candidates_of(corpus, classes, config), config.prompts()
    assert (len(left.nouns), len(left.adjectives)) == (case["nouns"], case["adjectives"])
    texts = [fill(template, name) for template in prompts.id for name in classes.names]
    texts += [fill(template, word) for word in left.nouns for template in prompts.noun]
    texts += [fill(template, word) for word in left.adjectives for template in prompts.adj]
    assert len(texts) == case["n_prompts"]
    assert hashlib.sha256("\n".join(texts).encode()).hexdigest() == case["prompts_sha256"]

    mined = mine(model, classes, corpus, config)
    mined.save(tmp_path / "list.txt")
    mined = NegativeLabels.load(tmp_path / "list.txt")
    rows = label_features(model, classes, mined)
    np.testing.assert_allclose(rows.features[: rows.n_id], expected["id_features"], atol=1e-6)
    recipe = RECIPES[config.recipe]
    found = rows.features[rows.n_id :].numpy()
    for kind, key in (("noun", "noun"), ("adj", "adj")):
        candidates, chosen = left.of_kind(kind), expected[f"{key}_chosen"].tolist()
        with NameEncoder(model) as encoder:
            features = encoder.rows(candidates, getattr(prompts, kind), prompts.raw)
        miner = NegativeMiner(
            rows.features[: rows.n_id], None, config.percentile,
            interpolated=True, near_copy=recipe.near_copy,
        )  # fmt: skip
        miner.update(features)
        values = expected[f"{key}_value"]
        np.testing.assert_allclose(miner.values, values[miner.indices], atol=1e-6)
        picked = [candidates.index(word) for word in mined.of_kind(kind)]
        if case["name"] == "csp_all":  # several values equal 1, so the released order is arbitrary
            picked, chosen = sorted(picked), sorted(chosen)
        assert picked == chosen
    wanted = expected["negative_features"]
    if case["name"] == "csp_all":
        found, wanted = (part[np.lexsort(part.round(5).T)] for part in (found, wanted))
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert mined.groups == 100 and rows.groups == min(100, len(mined))
    assert rows.names[rows.n_id :] == mined.words and mined.kinds[0] == "noun"


def test_csp_leaves_its_files_out_and_says_which_are_missing(words):
    classes, corpus = words
    by_default = candidates_of(corpus, classes, MiningConfig(recipe="csp"))
    case = next(case for case in CASES if case["name"] == "csp")
    assert (len(by_default.nouns), len(by_default.adjectives)) == (case["nouns"], case["adjectives"])
    plain = Corpus(("house",), ("red",), "my words")
    with pytest.raises(ValueError, match="my words: no file adj.pert, noun.group, .* it has adj, noun"):
        candidates_of(plain, classes, MiningConfig(recipe="csp"))
    assert candidates_of(plain, classes, MiningConfig(recipe="csp", exclude=())).nouns == ("house",)


def test_phrases_depend_on_their_seed_alone(words):
    classes, corpus = words
    torch.manual_seed(1)
    drawn = [
        candidates_of(corpus, classes, MiningConfig(recipe="csp", seed=seed)).adjectives
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert {phrase.split()[-1] for phrase in drawn[0]} <= set(RECIPES["csp"].superclasses)


def test_a_lists_own_prompts_make_its_rows(caplog):
    classes, model = ClassNames("test", ("dog", "cat")), HashModel()
    corpus = Corpus(tuple(f"thing {n}" for n in range(10)), ("red", "big"), "words")
    mined = mine(model, classes, corpus, MiningConfig(recipe="neglabel", share=0.5))
    made = label_features(model, classes, mined)
    assert mined.kinds == ("noun",) * 5 + ("adj",)
    texts = [f"the nice {name}" for name in (*classes.names, *mined.of_kind("noun"))]
    texts += [f"This is a {word} photo" for word in mined.of_kind("adj")]
    assert torch.equal(made.features, model.encode_text(texts))
    assert made.groups == 6 and made.provenance["prompt"]["id"] == ["the nice {}"]
    assert caplog.text == ""
    other = label_features(model, classes, mined, prompt="simple")
    assert torch.equal(other.features[0], model.encode_text(["a photo of a dog."])[0])
    assert torch.equal(other.features[-1], made.features[-1])
    assert "mined as neglabel has it, with prompts of their own" in caplog.text
    vlm = mine(model, classes, corpus, MiningConfig(n_negatives=6))
    assert vlm.groups == 5 and vlm.kinds[0] == "adj" and vlm.prompts is None
    assert label_features(model, classes, vlm).groups == 5


def test_unit_rows_are_averaged_where_there_are_no_raw_ones(caplog):
    made = mine(
        HashModel(), ClassNames("t", ("dog",)), Corpus(("a", "b"), (), "words"),
        MiningConfig(recipe="csp", share=1.0, exclude=()),
    )  # fmt: skip
    assert len(made) == 2 and "gives unit text features alone" in caplog.text


def test_a_cache_tells_raw_averages_from_unit_ones(tmp_path):
    from adaneg_openood.text import TextCache

    class Raw(HashModel):
        def encode_text_raw(self, texts):
            return self.encode_text(texts) * torch.tensor([[len(text)] for text in texts])

    prompts = ["{}", "a photo of {}"]
    with NameEncoder(Raw(), cache=TextCache(tmp_path)) as encoder:
        rows = [encoder.rows(["dog"], prompts, raw) for raw in (True, False, True)]
    assert torch.equal(rows[0], rows[2]) and not torch.allclose(rows[0], rows[1])


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            '# mining: "cps"',
            "mining must be one of 'openood-vlm', 'neglabel', 'csp', got 'cps'; did you mean 'csp'?",
        ),
        ("# groups: 0", "groups must be a whole number from 1, got 0"),
        ('# groups: "5"', "groups must be a whole number from 1"),
        ('# prompts: {"id": ["x"]}', "prompts must hold id, noun, adj, and average"),
        (
            '# prompts: {"id": ["x"], "noun": ["{}"], "adj": ["{}"], "average": "raw"}',
            "a template must hold {} exactly once, got 'x'",
        ),
    ],
)
def test_a_damaged_header_is_told_when_it_is_read(tmp_path, header, message):
    file = tmp_path / "n.txt"
    NegativeLabels(("house",), ("noun",)).save(file)
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:2], header, *lines[2:]]) + "\n")
    with pytest.raises(ValueError) as caught:
        NegativeLabels.load(file)
    assert str(caught.value).startswith(f"{file}: ") and message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "negmine"}, "mining must be one of 'openood-vlm', 'neglabel', 'csp'"),
        ({"share": 0.5, "n_negatives": 5}, "n_negatives and share are both given"),
        ({"share": 0.0}, "share must be above 0"),
        ({"share": 1.5}, r"share must be in \[0, 1\]"),
        ({"n_negatives": "some"}, "n_negatives must be at least 1, or 'all'"),
        ({"recipe": "csp", "adjective_share": 0.2}, "adjective_share goes with n_negatives"),
        ({"exclude": "noun.person"}, "exclude must be a list"),
    ],
)
def test_settings_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        MiningConfig(**options)


def test_a_number_may_replace_a_recipes_share(words):
    classes, corpus = words
    config = MiningConfig(recipe="neglabel", n_negatives=20)
    case = next(case for case in CASES if case["name"] == "neglabel_mine")
    mined = mine(GoldenTower(), classes, corpus, config)
    assert len(mined) == 20
    assert len(mined.of_kind("adj")) == 20 * case["adjectives"] // (case["adjectives"] + case["nouns"])
    assert isinstance(label_features(GoldenTower(), classes, mined), LabelFeatures)
