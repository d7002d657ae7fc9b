from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from text_fakes import HashModel, encode_names, mined, write_wordnet
from torch.nn.functional import normalize

from adaneg_openood.text import (
    ClassNames,
    Corpus,
    MiningConfig,
    NegativeLabels,
    NegativeMiner,
    TextCache,
    label_features,
    load_corpus,
    mine,
)
from adaneg_openood.text.mining import filter_candidates
from adaneg_openood.text.recipes import split_counts
from adaneg_openood.text.wordnet import WordNet
from adaneg_openood.text.words import keys

REALCLIP = Path(__file__).parents[3] / "shared" / "realclip"


def classes(*names, wnids=None):
    return ClassNames("test", names, wnids)


@pytest.mark.skipif(not REALCLIP.is_dir(), reason="../shared/realclip is not there")
@pytest.mark.parametrize("task", ["cifar10_vs_fashion", "cifar10_vs_misc", "animals_vs_vehicles"])
@pytest.mark.parametrize("parts", [1, 7])
def test_real_clip_features_give_the_released_negatives(task, parts):
    text, expected = np.load(REALCLIP / "text.npz"), np.load(REALCLIP / "expected.npz")
    features = normalize(torch.from_numpy(text["feature"]).float(), dim=-1)
    ids = normalize(torch.from_numpy(text["id_feature"]), dim=-1)
    names = list(text["id_word"])
    if task == "animals_vs_vehicles":
        ids, names = ids[2:8], names[2:8]
    pool = np.flatnonzero((text["source"] < 3) & ~np.isin(text["word"], text["id_word"]))
    chosen = mined(features[torch.from_numpy(pool)].chunk(parts), ids, 1000)
    assert pool[chosen.numpy()].tolist() == expected[f"mined_index__{task}"].tolist()


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=40),
    st.integers(1, 50),
    st.integers(1, 13),
    st.floats(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_a_stream_gives_what_a_stable_sort_of_everything_gives(levels, kept, part, percentile):
    """Many ties, any part size: the order is that of the corpus."""
    ids = torch.eye(4)[:3]
    candidates = torch.zeros(len(levels), 4)
    candidates[:, 0] = torch.tensor(levels) / 4
    candidates[:, 1] = 0.3
    cosines = (candidates @ ids.T).sort(dim=1).values[:, min(int(percentile * 3), 2)]
    expected = sorted(range(len(levels)), key=lambda row: (cosines[row].item(), row))[:kept]
    miner = NegativeMiner(ids, kept, percentile)
    for chunk in candidates.split(part):
        miner.update(chunk)
    assert miner.indices.tolist() == expected
    assert torch.equal(miner.values, cosines[expected])


def test_memory_is_bounded():
    """The kept rows are all that stays of a stream."""
    miner = NegativeMiner(torch.eye(8), 10)
    for _ in range(50):
        miner.update(torch.rand(100, 8))
    assert len(miner.indices) == len(miner.values) == 10 and miner.n_seen == 5000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_negatives": 0}, "n_negatives"),
        ({"percentile": 1.5}, "percentile"),
        ({"adjective_share": -0.1}, "adjective_share"),
        ({"match": "loose"}, "match must be one of 'exact', 'caseless', 'plural'"),
        ({"prompt": "no place"}, "prompt"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        MiningConfig(**options)


def test_bad_features():
    with pytest.raises(ValueError, match="one width"):
        mined(torch.zeros(2, 3), torch.zeros(2, 4), 1)
    with pytest.raises(ValueError, match="with C > 0"):
        mined(torch.zeros(2, 3), torch.zeros(0, 3), 1)
    with pytest.raises(ValueError, match="n_negatives"):
        mined(torch.zeros(2, 3), torch.zeros(1, 3), 0)


CORPUS = Corpus(
    ("Dog", "dogs", "fire engine", "cat", "red", "big cat", "foxes"), ("red", "big", "Cat"), "test"
)


@pytest.mark.parametrize(
    ("match", "nouns", "adjectives"),
    [
        # as released: only the same spelling goes
        ("exact", "Dog dogs fire_engine cat red big_cat foxes", "big Cat"),
        ("caseless", "dogs cat red big_cat foxes", "big"),
        ("plural", "cat red big_cat", "big"),
    ],
)
def test_id_names_and_adjectives_that_are_nouns_go(match, nouns, adjectives):
    ids = classes("dog", "Fire_Engines" if match == "plural" else "FIRE_ENGINE", "fox")
    left = filter_candidates(CORPUS, ids, match)
    assert left.nouns == tuple(word.replace("_", " ") for word in nouns.split())
    assert left.adjectives == tuple(adjectives.split())


def test_every_synonym_of_a_class_goes():
    ids = classes("tench, Tinca tinca", "maillot; tank suit", "baluster / handrail")
    corpus = Corpus(("tench", "tank suit", "Handrail", "handrail cap", "ashtray"), (), "test")
    assert filter_candidates(corpus, ids).nouns == ("handrail cap", "ashtray")
    whole = ("tench", "tank suit", "Handrail", "handrail cap", "ashtray")
    assert filter_candidates(corpus, ids, "exact").nouns == whole  # as released


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("dogs", "dog", True), ("foxes", "fox", True), ("ponies", "pony", True),
        ("knives", "knife", True), ("wolves", "wolf", True), ("churches", "church", True),
        ("firemen", "fireman", True), ("birds of prey", "bird of prey", True),
        ("tomatoes", "tomato", True), ("sunglasses", "sunglass", True), ("class", "clas", False),
        ("dog", "doge", False), ("cat", "category", False), ("bus", "bu", False),
        ("STRASSE", "Straße", True), ("Ⅳ", "IV", True),
    ],
)  # fmt: skip
def test_plurals(one, other, same):
    assert bool(keys(one, "plural") & keys(other, "plural")) is same


def test_nothing_left():
    with pytest.raises(ValueError, match="every candidate is an ID name"):
        filter_candidates(Corpus(("dog",), (), "test"), classes("Dog"))


@pytest.mark.parametrize(
    ("n_adjectives", "n_nouns", "options", "expected"),
    [
        (11_000, 56_000, {}, (1641, 8359)),  # int(10000 * 11000 / 67000) = 1641
        (3, 7, {"n_negatives": "all"}, (3, 7)),
        (3, 7, {"n_negatives": 100}, (3, 7)),
        (30, 70, {"n_negatives": 10, "adjective_share": 0.5}, (5, 5)),
        (2, 98, {"n_negatives": 10, "adjective_share": 0.5}, (2, 8)),
        (98, 2, {"n_negatives": 10, "adjective_share": 0.5}, (8, 2)),
        (50, 50, {"n_negatives": 10, "adjective_share": 0.0}, (0, 10)),
        (0, 5, {"n_negatives": 3}, (0, 3)),
        (0, 5, {"n_negatives": 3, "adjective_share": 1.0}, (0, 3)),
    ],
)
def test_shares(n_adjectives, n_nouns, options, expected):
    assert split_counts(n_adjectives, n_nouns, MiningConfig(**options)) == expected


def test_mine_follows_the_definition():
    """Against a plain computation: sort all cosines, take index int(0.95 C), keep the lowest."""
    nouns = tuple(f"noun {number}" for number in range(40))
    adjectives = tuple(f"adj {number}" for number in range(10))
    ids = classes(*(f"id {number}" for number in range(30)))
    model = HashModel()
    mined = mine(model, ids, Corpus(nouns, adjectives, "test"), MiningConfig(n_negatives=15))
    id_rows = model.encode_text([f"The nice {name}." for name in ids.names])
    expected = []
    for words, template, count in ((adjectives, "This is a {} photo.", 3), (nouns, "The nice {}.", 12)):
        rows = model.encode_text([template.replace("{}", word) for word in words])
        values = [sorted(row.tolist())[int(0.95 * 30)] for row in rows @ id_rows.T]
        order = sorted(range(len(words)), key=lambda row: values[row])
        expected += [words[row] for row in order[:count]]
    assert mined.words == tuple(expected)
    assert mined.kinds == ("adj",) * 3 + ("noun",) * 12


def test_scoring_rows_are_id_adjectives_nouns():
    model = HashModel()
    mined = NegativeLabels(("red", "truck"), ("adj", "noun"))
    rows = label_features(model, classes("dog", "dog"), mined, prompt="simple").features
    expected = ["a photo of a dog."] * 2 + ["This is a red photo.", "a photo of a truck."]
    assert torch.equal(rows, model.encode_text(expected))


def test_exclude_related(tmp_path):
    folder = write_wordnet(tmp_path / "dict")
    wordnet = WordNet(folder)
    corpus = load_corpus(wordnet=wordnet, files=["noun.animal", "noun.artifact", "adj.all"])
    kept = {
        flag: set(
            mine(
                HashModel(), classes("dog"), corpus,
                MiningConfig(n_negatives="all", exclude_related=flag), wordnet=wordnet,
            ).words
        )
        for flag in (True, False)
    }  # fmt: skip
    assert kept[False] - kept[True] == {"animal", "poodle", "toy poodle"}
    synonyms = mine(
        HashModel(), classes("frank, dog, hound"), corpus,
        MiningConfig(n_negatives="all", exclude_related=True), wordnet=wordnet,
    )  # fmt: skip
    assert not {"animal", "poodle", "toy poodle"} & set(synonyms.words)
    assert "dog" not in kept[False] and "truck" in kept[True]
    offset = next(
        line.split()[-1]
        for line in (folder / "index.noun").read_text("utf-8").splitlines()
        if line.startswith("truck ")
    )
    exact = mine(
        HashModel(), classes("lorry", wnids=(f"n{offset}",)), corpus,
        MiningConfig(n_negatives="all", exclude_related=True), wordnet=wordnet,
    )  # fmt: skip
    assert not {"truck", "fire engine", "artifact"} & set(exact.words)
    assert {"poodle", "Eiffel Tower"} <= set(exact.words)


def test_cache_saves_the_second_run(tmp_path):
    corpus = Corpus(("a", "b"), ("c",), "test")
    cache = TextCache(tmp_path)
    first = mine(HashModel(), classes("dog"), corpus, cache=cache)
    model = HashModel()
    assert mine(model, classes("dog"), corpus, cache=cache) == first and model.calls == []
    encode_names(model, ["new"], cache=cache)
    assert model.calls == ["The nice new."]


def test_two_hash_seeds_give_identical_files(tmp_path):
    folder = write_wordnet(tmp_path / "dict")
    code = (
        "import sys; sys.path.insert(0, sys.argv[3]);"
        "from text_fakes import HashModel; from adaneg_openood.text import *;"
        "ids = ClassNames('t', ('dog', 'truck'));"
        "c = MiningConfig(n_negatives=9, match='plural', exclude_related=True);"
        "corpus = load_corpus(wordnet=sys.argv[1], lemmas='all');"
        "from adaneg_openood.text.wordnet import WordNet;"
        "mine(HashModel(dim=2), ids, corpus, c, wordnet=WordNet(sys.argv[1])).save(sys.argv[2])"
    )
    contents = set()
    for seed in ("1", "2"):
        output = tmp_path / f"{seed}.txt"
        subprocess.run(
            [sys.executable, "-c", code, str(folder), str(output), str(Path(__file__).parent)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
        )
        contents.add(output.read_bytes())
    assert len(contents) == 1 and contents.pop().count(b"\nnoun\t") > 3
