from __future__ import annotations

import pytest
from text_fakes import HashModel

from adaneg_openood.text import ClassNames, Corpus, MiningConfig, NegativeLabels, mine


def classes(*names):
    return ClassNames("test", names)


def test_saved_list_is_readable_and_comes_back(tmp_path):
    corpus = Corpus(("café", "fire engine"), ("red",), "my words")
    mined = mine(HashModel(), classes("dog"), corpus, MiningConfig(prompt="simple"))
    file = tmp_path / "deep" / "negatives.txt"
    mined.save(file)
    lines = file.read_text("utf-8").splitlines()
    assert lines[0].startswith("# adaneg-openood negative labels")
    assert "adj\tred" in lines and any(line == "noun\tcafé" for line in lines)
    assert '# corpus: "my words"' in lines
    loaded = NegativeLabels.load(file)
    assert loaded == mined
    about = loaded.provenance
    assert about["model"]["model"] == "fake:hash" and about["options"]["prompt"] == "simple"
    assert about["candidates"] == {"adj": 1, "noun": 2} and about["corpus_sha256"] == corpus.digest
    mined.save(tmp_path / "again.txt")
    assert (tmp_path / "again.txt").read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("adj\tred", "adj red"), r"line \d+: must be 'adj' or 'noun', a tab"),
        (lambda text: text.replace("adj\tred", "verb\tred"), "must be 'adj' or 'noun'"),
        (lambda text: text.replace("noun\tcafé\n", ""), "says it holds 3 words but has 2.* '# count'"),
        (lambda text: text.replace('"my words"', "my words"), r"line \d+"),
        (lambda text: text.replace("adj\tred\n", "") + "adj\tred\n", "adjectives must come before"),
    ],
)
def test_damaged_lists(tmp_path, change, message):
    corpus = Corpus(("café", "fire engine"), ("red",), "my words")
    file = tmp_path / "n.txt"
    mine(HashModel(), classes("dog"), corpus).save(file)
    file.write_text(change(file.read_text("utf-8")), "utf-8")
    with pytest.raises(ValueError, match=message):
        NegativeLabels.load(file)


def test_an_edited_list_is_taken_without_its_count(tmp_path):
    file = tmp_path / "n.txt"
    mine(HashModel(), classes("dog"), Corpus(("café", "fire engine"), ("red",), "my words")).save(file)
    text = file.read_text("utf-8").replace("noun\tcafé\n", "").replace("# count: 3\n", "")
    file.write_text(text, "utf-8")
    assert NegativeLabels.load(file).words == ("red", "fire engine")


def test_a_released_selection_is_taken_as_it_is(tmp_path):
    file = tmp_path / "selected_neg_labels_in1k_10k.txt"
    file.write_text("the nice yellow clintonia\nthis is a bold photo\nthe nice chagall\n")
    labels = NegativeLabels.load(file)
    assert labels.words == ("bold", "yellow clintonia", "chagall")
    assert labels.kinds == ("adj", "noun", "noun")
    with pytest.raises(FileNotFoundError):
        NegativeLabels.load(tmp_path / "nosuch.txt")
