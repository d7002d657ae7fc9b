"""Parsers of users' files under random bytes: a clean result, or an error that names the file.

The examples are the same in every run; ``ADANEG_FUZZ=5000 pytest tests/faults/test_faults_fuzz.py``
tries more of them.
"""

from __future__ import annotations

import json
import os
import string
import tempfile
import zipfile
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adaneg_openood.benchmark.definition import read_benchmark
from adaneg_openood.benchmark.postprocessor import postprocessor_settings, read_postprocessor
from adaneg_openood.data import ImageSet
from adaneg_openood.data.image_files import read_imglist
from adaneg_openood.detectors import DETECTORS
from adaneg_openood.evaluation import load_features
from adaneg_openood.text import LabelFeatures, NegativeLabels, class_names
from adaneg_openood.text.corpus import read_word_lists

EXAMPLES = int(os.environ.get("ADANEG_FUZZ", "50"))
FUZZ = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip

LINES = st.lists(
    st.one_of(
        st.text(max_size=30),
        st.from_regex(r"[a-z/. ]{0,12}[ \t]-?[0-9]{1,22}", fullmatch=True),
        st.sampled_from(
            ["", "# count: 1", "adj\tred", "noun\thouse", "# x: [", "the nice x.", "\0", "\x85"]
        ),
    ),
    max_size=8,
)
TEXTS = st.one_of(
    LINES.map(lambda lines: "\n".join(lines).encode("utf-8", "replace")), st.binary(max_size=80)
)


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def clean_or_named(read, file):
    """The result, or None after an error that names the file."""
    try:
        return read(file)
    except (ValueError, OSError) as error:
        assert file.name in str(error), error
        assert type(error) in (ValueError, FileNotFoundError), repr(error)
        return None


@FUZZ
@given(content=TEXTS)
def test_imglists(folder, content):
    file = folder / "list.txt"
    file.write_bytes(content)
    found = clean_or_named(read_imglist, file)
    for path, label in found or ():
        assert path.strip() and -1 <= label < 2**63
    source = clean_or_named(ImageSet.of, file)
    assert source is None or len(source) == len(found)
    clean_or_named(lambda path: ImageSet.of(path).class_names(), file)


@FUZZ
@given(content=TEXTS, suffix=st.sampled_from([".txt", ".json"]))
def test_word_lists_and_class_names(folder, content, suffix):
    file = folder / f"words{suffix}"
    file.write_bytes(content)
    found = clean_or_named(read_word_lists, file)
    assert found is None or len(found) > 0
    names = clean_or_named(class_names, file)
    assert names is None or all(name.strip() for name in names.names)


@FUZZ
@given(content=TEXTS, header=st.booleans())
def test_lists_of_negatives(folder, content, header):
    file = folder / "negatives.txt"
    file.write_bytes((b"# adaneg-openood negative labels, version 1\n" if header else b"") + content)
    found = clean_or_named(NegativeLabels.load, file)
    assert found is None or len(found.words) == len(found.kinds)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(string.printable, max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@FUZZ
@given(value=JSON)
def test_class_names_as_json(folder, value):
    file = folder / "names.json"
    file.write_text(json.dumps(value))
    clean_or_named(class_names, file)


KEYS = st.sampled_from(
    "id near far csid negatives classes seeds batch_size order methods backbone prompt logit_scale "
    "precision features data name x-own full_spectrum text_features prompts description "
    "preprocessing".split()
)
SETS = st.fixed_dictionaries({"imglist": JSON}) | st.dictionaries(
    st.sampled_from(["imglist", "folder", "features", "root", "limit", "args", "images", "torchvision"]),
    JSON,
)
METHOD = st.dictionaries(
    st.sampled_from(["detector", "gamma", "gap", "groups", "mode", "tau", "beta", "proxy", "lam"]),
    JSON | st.sampled_from(["adaneg", "mcm", "neglabel", "released", "task"]),
)
BENCHMARKS = st.dictionaries(
    KEYS,
    st.one_of(
        JSON, SETS, METHOD, st.dictionaries(st.text(max_size=5), SETS | METHOD, max_size=2),
        st.fixed_dictionaries({"mine": st.dictionaries(st.sampled_from(["percentile", "match"]), JSON)}),
    ),
    max_size=8,
)  # fmt: skip
GOOD = {
    "id": {"imglist": "a.txt"}, "near": {"x": {"imglist": "b.txt"}}, "negatives": "w.txt",
    "classes": "imagenet",
}  # fmt: skip


@FUZZ
@given(value=BENCHMARKS, complete=st.booleans())
def test_benchmarks(folder, value, complete):
    file = folder / "bench.yml"
    file.write_text(yaml.safe_dump({**GOOD, **value} if complete else value), "utf-8")
    clean_or_named(read_benchmark, file)


@FUZZ
@given(text=st.text(max_size=60) | st.text("{}[]:,-&*!?|>'\"%@` \n\tax<<1", max_size=40))
def test_benchmarks_that_are_hardly_yaml(folder, text):
    file = folder / "bench.yml"
    file.write_bytes(text.encode("utf-8", "replace"))
    clean_or_named(read_benchmark, file)


@FUZZ
@given(method=st.sampled_from(sorted(DETECTORS)), data=st.data())
def test_postprocessor_settings(method, data):
    known = sorted(postprocessor_settings(method).model_fields)
    names = st.sampled_from(known) | st.text(max_size=5)
    for key, values in (
        ("postprocessor_args", JSON),
        ("postprocessor_sweep", JSON | st.lists(JSON, max_size=2)),
    ):
        given_values = data.draw(st.dictionaries(names, values, max_size=4))
        try:
            made = read_postprocessor(method, {key: given_values}, "my.yml")
        except ValueError as error:
            assert "my.yml" in str(error)
        else:
            assert set(made.sweep) <= set(known)


ENTRIES = st.sampled_from(["n_id.npy", "text_features.npy", "names.npy", "x", "../../x.npy"])


@FUZZ
@given(names=st.lists(ENTRIES, max_size=4), content=st.binary(max_size=200))
def test_archives_of_anything(folder, names, content):
    file = folder / "y.npz"
    with zipfile.ZipFile(file, "w") as archive:
        for name in dict.fromkeys(names):
            archive.writestr(name, content)
    assert clean_or_named(load_features, file) is None
    assert clean_or_named(LabelFeatures.load, file) is None
    assert not (folder.parent / "x.npy").exists()
