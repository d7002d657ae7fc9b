from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from text_fakes import write_wordnet

from adaneg_openood.text import load_corpus
from adaneg_openood.text.corpus import DEFAULT_FILES, read_word_lists
from adaneg_openood.text.wordnet import WordNet, WordNetMissing, find_wordnet


@pytest.fixture
def folder(tmp_path):
    return write_wordnet(tmp_path / "dict")


@pytest.fixture(params=["dict", "with lexnames", "corpora", "zip", "zip inside", "parent"])
def place(request, tmp_path):
    """The shapes in which people have WordNet."""
    folder = write_wordnet(tmp_path / "made" / "wordnet", lexnames=request.param == "with lexnames")
    if request.param in ("dict", "with lexnames"):
        return folder
    if request.param == "corpora":
        return Path(shutil.copytree(folder, tmp_path / "nltk" / "corpora" / "wordnet")).parents[1]
    if request.param.startswith("zip"):
        data = tmp_path / "data" / "corpora"
        data.mkdir(parents=True)
        made = shutil.make_archive(str(data / "wordnet"), "zip", folder.parent, "wordnet")
        return Path(made) if request.param == "zip" else data.parent
    return Path(shutil.copytree(folder, tmp_path / "up" / "dict")).parent


def test_words_by_lexicographer_file(place):
    wordnet = WordNet(place)
    assert wordnet.version == "3.0"
    words = wordnet.words(["noun.artifact", "noun.plant", "adj.all", "adj.ppl"], "all")
    assert words == {
        "noun.artifact": [
            "artifact", "truck", "motortruck", "fire_engine", "fire_truck", "Eiffel_Tower", "façade",
        ],
        "noun.plant": ["plant", "flora", "clover", "shamrock", "Irish_clover"],
        "adj.all": ["red", "reddish", "big", "large"],
        "adj.ppl": ["avenged"],
    }  # fmt: skip
    assert wordnet.words(["noun.plant"]) == {"noun.plant": ["plant", "clover", "shamrock"]}


def test_corpus_leaves_animals_and_food_out(folder):
    corpus = load_corpus(wordnet=folder, lemmas="all")
    assert "Eiffel Tower" in corpus.nouns and "Irish clover" in corpus.nouns
    assert not {"dog", "poodle", "ragout", "frank"} & set(corpus.nouns)
    assert corpus.adjectives == ("red", "reddish", "big", "large", "nuclear", "avenged")
    first = load_corpus(wordnet=folder)
    assert set(first.nouns) == {
        "entity", "artifact", "truck", "fire engine", "Eiffel Tower", "façade", "red", "plant",
        "clover", "shamrock",
    }  # fmt: skip
    assert first.digest != corpus.digest
    assert "WordNet 3.0" in first.source
    assert "noun.animal" not in DEFAULT_FILES and "noun.plant" in DEFAULT_FILES


def test_chosen_files(folder):
    corpus = load_corpus(wordnet=WordNet(folder), files=["noun.animal", "adj.pert"])
    assert corpus.nouns == ("animal", "dog", "poodle", "toy poodle")
    assert corpus.adjectives == ("nuclear",)
    with pytest.raises(ValueError, match=r"unknown lexicographer file\(s\) noun\.animals"):
        load_corpus(wordnet=folder, files=["noun.animals"])
    with pytest.raises(ValueError, match="only noun and adjective files"):
        load_corpus(wordnet=folder, files=["verb.motion"])
    with pytest.raises(ValueError, match="lemmas must be"):
        load_corpus(wordnet=folder, lemmas="some")


def test_related_words_by_name_and_wnid(folder):
    wordnet = WordNet(folder)
    by_name = wordnet.related(["dog"])
    assert {"poodle", "toy poodle", "domestic dog", "animal", "beast", "entity"} <= by_name
    assert "frank" in by_name  # the other sense of "dog"
    assert not {"truck", "clover"} & by_name
    senses = {line.split()[-2] for line in _index(folder) if line.startswith("dog ")}
    by_wnid = wordnet.related([f"n{senses.pop()}"])
    assert {"poodle", "toy poodle", "animal"} <= by_wnid and "frank" not in by_wnid
    assert wordnet.related(["no such word"]) == set()
    with pytest.raises(ValueError, match=r"n00000001 is not in the WordNet .* \(version 3\.0\)"):
        wordnet.related(["n00000001"])


def _index(folder):
    return (folder / "index.noun").read_text("utf-8").splitlines()


def test_absent_wordnet_gives_the_command(tmp_path, monkeypatch):
    with pytest.raises(WordNetMissing, match="python -m nltk.downloader wordnet") as caught:
        find_wordnet(tmp_path)
    assert str(tmp_path) in str(caught.value) and not str(caught.value).startswith("'")
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    monkeypatch.setattr("adaneg_openood.text.wordnet._SYSTEM", ())
    monkeypatch.setattr(nltk, "download", lambda *a, **k: pytest.fail("the network was used"))
    with pytest.raises(WordNetMissing):
        load_corpus("wordnet")
    asked = []
    monkeypatch.setattr(
        nltk,
        "download",
        lambda name, **k: asked.append(name) or bool(write_wordnet(tmp_path / "corpora" / "wordnet")),
    )
    assert len(load_corpus("wordnet", download=True)) == 14
    assert asked == ["wordnet"]
    monkeypatch.setenv("ADANEG_WORDNET", str(tmp_path / "nowhere"))
    with pytest.raises(WordNetMissing, match="nowhere"):
        WordNet()


def test_damaged_wordnet(folder):
    (folder / "index.noun").write_text("dog n 1 0 1 zero\n")
    with pytest.raises(ValueError, match="not a readable WordNet database"):
        WordNet(folder)


def test_a_cut_zip_is_damaged_and_not_absent(tmp_path, monkeypatch):
    folder = write_wordnet(tmp_path / "made" / "wordnet")
    data = tmp_path / "nltk" / "corpora"
    data.mkdir(parents=True)
    made = Path(shutil.make_archive(str(data / "wordnet"), "zip", folder.parent, "wordnet"))
    whole = made.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 1
    for content in (whole[: len(whole) // 2], whole[:-10], b"", bytes(flipped)):
        made.write_bytes(content)
        with pytest.raises(ValueError, match=r"wordnet\.zip: damaged, .*"):
            find_wordnet(made)
        with pytest.raises(ValueError, match=r"wordnet\.zip: damaged"):
            find_wordnet(tmp_path / "nltk")
    import nltk

    monkeypatch.setattr("adaneg_openood.text.wordnet._SYSTEM", ())
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk"), str(tmp_path / "other")])
    with pytest.raises(ValueError, match=r"wordnet\.zip: damaged"):
        WordNet()
    write_wordnet(tmp_path / "other" / "corpora" / "wordnet")
    assert WordNet().version == "3.0"  # the whole one is taken


def test_cut_database_files_are_told(folder):
    for name in ("data.noun", "index.noun", "data.adj", "index.adj"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) * 2 // 3])
        with pytest.raises(ValueError, match="not a readable WordNet database"):
            load_corpus(wordnet=folder)
        (folder / name).write_bytes(content)
    assert len(load_corpus(wordnet=folder)) == 14


def test_plain_word_list(tmp_path):
    file = tmp_path / "words.txt"
    file.write_bytes("\ufeff# my words\r\nfire_engine\r\n\r\nFaçade\r\ncafe\u0301\ndog\nDog\n".encode())
    corpus = read_word_lists(file)
    assert corpus.nouns == ("fire engine", "Façade", "café", "dog") and corpus.adjectives == ()


def test_released_lists_are_not_wrapped_twice(tmp_path):
    (tmp_path / "noun.plant.txt").write_text("the nice yellow clintonia\nThe nice adder's tongue.\n")
    (tmp_path / "adj.all.txt").write_text("This is a red photo.\nthis is a st. elmo's photo\n")
    corpus = load_corpus(tmp_path)
    assert corpus.nouns == ("yellow clintonia", "adder's tongue")
    assert corpus.adjectives == ("red", "st. elmo's")
    one = tmp_path / "selected.txt"
    one.write_text("the nice nice biscuit\nthis is a bold photo\nthe nice photo\nstray\n")
    corpus = load_corpus(one)
    assert corpus.nouns == ("nice biscuit", "photo", "stray")
    assert corpus.adjectives == ("bold",)
    # one line that looks like a prompt in a plain list is a word
    plain = tmp_path / "plain.txt"
    plain.write_text("dog\ncat\nthe nice guys\n")
    assert load_corpus(plain).nouns == ("dog", "cat", "the nice guys")


def test_bad_word_lists(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such word list"):
        load_corpus(tmp_path / "nosuch.txt")
    with pytest.raises(ValueError, match="no list of words"):
        load_corpus(tmp_path)
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(ValueError, match="holds no word"):
        load_corpus(tmp_path / "empty.txt")
    (tmp_path / "latin.txt").write_bytes("façade".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt: a word list must be UTF-8"):
        load_corpus(tmp_path / "latin.txt")
    with pytest.raises(ValueError, match="lexicographer files are WordNet's"):
        load_corpus(tmp_path / "latin.txt", files=["noun.plant"])


def test_the_whole_of_wordnet():
    """Counts per lexicographer file, counted line by line in Debian's wordnet-base 3.0, without nltk."""
    try:
        wordnet = WordNet(os.environ.get("ADANEG_TEST_WORDNET"))
    except WordNetMissing:
        pytest.skip("WordNet is not on this machine: apt-get install wordnet-base, or nltk's")
    if wordnet.version != "3.0":
        pytest.skip(f"the counts are WordNet 3.0's, here is {wordnet.version}")
    counts = {name: len(words) for name, words in wordnet.words(COUNTS, "all").items()}
    assert counts == COUNTS
    corpus = load_corpus(wordnet=wordnet)
    assert (len(corpus.nouns), len(corpus.adjectives)) == (58_514, 14_006)
    assert Counter(word.casefold() for word in corpus.nouns).most_common(1)[0][1] == 1
    related = wordnet.related(["n02084071"])  # dog.n.01
    assert {"poodle", "canine", "animal"} <= related and "hot dog" not in related


COUNTS = {
    "adj.all": 17761,
    "adj.pert": 4373,
    "adj.ppl": 76,
    "noun.Tops": 83,
    "noun.act": 9450,
    "noun.animal": 14323,
    "noun.artifact": 16344,
    "noun.attribute": 4803,
    "noun.body": 3570,
    "noun.cognition": 4423,
    "noun.communication": 8281,
    "noun.event": 1659,
    "noun.feeling": 771,
    "noun.food": 3584,
    "noun.group": 3949,
    "noun.location": 4842,
    "noun.motive": 78,
    "noun.object": 2302,
    "noun.person": 18926,
    "noun.phenomenon": 984,
    "noun.plant": 17799,
    "noun.possession": 1516,
    "noun.process": 1126,
    "noun.quantity": 2028,
    "noun.relation": 680,
    "noun.shape": 535,
    "noun.state": 5616,
    "noun.substance": 4635,
    "noun.time": 1684,
}
