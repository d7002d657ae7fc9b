"""Each layout of the table is read as it says; what is no name is refused, with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from layout_table import CLASS_LAYOUTS, WORD_LAYOUTS, as_markdown

from adaneg_openood.text import NegativeLabels, class_names, load_corpus
from adaneg_openood.text.layouts import read_names

DOCS = Path(__file__).parents[2] / "docs" / "file_layouts.md"


def written(tmp_path, layout):
    file = tmp_path / f"list{layout.suffix}"
    file.write_bytes(layout.example.encode())
    return file


@pytest.mark.parametrize("layout", CLASS_LAYOUTS, ids=lambda layout: layout.title)
def test_class_names(tmp_path, layout):
    found = class_names(written(tmp_path, layout))
    assert (found.names, found.wnids) == (layout.names, layout.wnids)


@pytest.mark.parametrize("layout", WORD_LAYOUTS, ids=lambda layout: layout.title)
def test_words(tmp_path, layout):
    file = written(tmp_path, layout)
    found = read_names(file, words=True)
    assert (found.names, found.wnids, found.kinds) == (layout.names, layout.wnids, layout.kinds)
    labels = NegativeLabels.load(file)
    kinds = layout.kinds or ("noun",) * len(layout.names)
    assert labels.words == tuple(name.replace("_", " ") for name in layout.names)
    assert labels.kinds == kinds


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("layout", CLASS_LAYOUTS[:20], ids=lambda layout: layout.title)
def test_byte_order_marks(tmp_path, layout, encoding):
    file = tmp_path / f"list{layout.suffix}"
    file.write_bytes(layout.example.encode(encoding))
    assert class_names(file).names == layout.names


def test_the_page_shows_the_table():
    assert as_markdown() in DOCS.read_text("utf-8"), "python tests/text/layout_table.py"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "n01440764 tench\ngoldfish\n", "line 2: has no wnid, unlike others"),
        ("a.txt", "0 tench\n2 goldfish\n", "line 1: every line has a number, and they are not 0..C-1"),
        ("a.txt", "tench,0\ngoldfish,7\n", "every line has a number"),
        ("a.txt", "tench\tfish\ngoldfish\tfish\n", "line 1: has several columns, and no header says"),
        ("a.csv", "tench,fish\ngoldfish,fish\n", "line 1: has several columns, and no header says"),
        ("a.csv", "name,genus\ntench,Tinca,x\n", "line 2: has 3 cells, the header 2"),
        ("a.csv", "label,name\n0,tench\n5,goldfish\n", "numbers of the column label are not 0..C-1"),
        ("a.csv", "genus,label\n", "is a header, and nothing follows"),
        ("a.txt", "class\ntench\ngoldfish\n", "line 1: looks like a header"),
        ("a.txt", "tench\n<b>goldfish</b>\n", "line 2: is no name; got '<b>goldfish</b>'"),
        ("a.txt", "item {\n  id: 1\n  name: 'person'\n}\n", "line 1: is no name; got 'item {'"),
        ("a.yaml", "names:\n  0: person\n  1: bicycle\n", "line 1: is no name; got 'names:'"),
        ("a.txt", "| tench |\n| goldfish |\n", "line 1: is no name"),
        ("a.txt", "tench # a fish\ngoldfish\n", "line 1: is no name"),
        ("a.txt", "0\n1\n2\n", "holds numbers alone, no name"),
        ("a.txt", "Abyssinian_100 1 1 1\nBengal_1 2 1 1\n", "every line ends in several numbers"),
        ("a.txt", "/data/tench\n/data/goldfish\n", "line 1: is no name; got '/data/tench'"),
        ("a.txt", "val/0.JPEG 0\nval/1.JPEG 0\nval/2.JPEG 1\n", "line 1: is no name"),
        ("a.txt", "tench\nred\x1b[2J\n", r"line 2: is no name; got 'red\\x1b[2J'"),
        ("a.txt", "n01440764\nn99999999\n", "no name is known for the wnid(s) n99999999"),
        ("a.txt", "n01440764 tench\nn01440764 goldfish\n", "the wnid n01440764 stands for two classes"),
        ("a.txt", "{0: 'tench',\n 1: 'gold", "line 1: is no name"),
        ("a.txt", "{0: print('x')}\n", "line 1: is no name"),
        ("a.json", '{"a": 1, "a": 2}', "key 'a' is there twice"),
        ("a.json", '[{"id": 1, "name": "a"}, {"name": "b"}]', "entry 1: must have the keys id, name"),
        ("a.json", '[["a", 1], ["b"]]', "entry 1: must hold 2 values"),
        ("a.json", '["a", null]', "entry 1: must be a name"),
        ("a.json", '{"x": "a", "y": "b"}', "several columns of text"),
        ("a.txt", "x" * 1001, "line 1: is longer than 1000 characters"),
        ("a.json", "[" * 100_000, "not JSON"),
        ("a.txt", "[" * 100_000, "line 1: is"),
    ],
)
def test_refused_with_the_line(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(ValueError) as caught:
        class_names(file)
    assert str(file) in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize(
    "names",
    [
        ("Acura RL Sedan 2012", "AM General Hummer SUV 2000"),  # Stanford Cars
        ("707-320", "A340-200"),  # FGVC Aircraft
        ("carpenter's kit", "'hood", "kite (bird of prey)", "baluster / handrail"),
        ("digit 0", "digit 1", "digit 2"),
        ("AT&T", "C++ code", "St. Bernard", "7 up", "50%"),
        ("tench, Tinca tinca", "café", "狐"),
    ],
)
def test_names_that_look_odd_are_names(tmp_path, names):
    file = tmp_path / "names.txt"
    file.write_text("\n".join(names), "utf-8")
    assert class_names(file).names == names


def test_imagenets_21k_are_known(tmp_path):
    file = tmp_path / "wnids.txt"
    file.write_text("n00007846\nn01440764\n")
    assert class_names(file).names == ("person", "tench")


def test_files_that_hold_adjectives(tmp_path, caplog):
    for name, kind in (
        ("adj.all.txt", "adj"), ("wordnet_adjs.txt", "adj"), ("Adjectives.txt", "adj"),
        ("adjectives_1k.csv", "adj"), ("noun.adj.txt", "noun"), ("adjacent.txt", "adj"),
        ("badge.txt", "noun"),
    ):  # fmt: skip
        (tmp_path / name).write_text("red\nshiny\n")
        caplog.clear()
        corpus = load_corpus(tmp_path / name)
        assert corpus.of_kind(kind) == ("red", "shiny"), name
        assert ("taken for adjectives" in caplog.text) is (kind == "adj" and name != "adj.all.txt")
    (tmp_path / "wordnet_adjs.txt").write_text("noun red\nnoun shiny\n")
    assert load_corpus(tmp_path / "wordnet_adjs.txt").nouns == ("red", "shiny")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ashtray 523\nbeach wagon 71\n", "line 1: every line has a number; put a comma"),
        ("n02747177\nn02814533\n", "holds wnids alone"),
        ("ashtray\n<i>wagon</i>\n", "line 2: is no name"),
        ("1\n2\n3\n", "holds numbers alone"),
    ],
)
def test_words_that_are_none(tmp_path, content, message):
    file = tmp_path / "words.txt"
    file.write_text(content)
    with pytest.raises(ValueError) as caught:
        load_corpus(file)
    assert str(file) in str(caught.value) and message in str(caught.value)
