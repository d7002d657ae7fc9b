"""Damaged, foreign and hostile files: refused with their name, and nothing in them is ever run."""

from __future__ import annotations

import ast
import io
import json
import logging
import pickle
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from fault_tools import TinyModel, detection, labels, snapshot, write_images
from PIL import Image
from safetensors.torch import save_file

import adaneg_openood
from adaneg_openood import AdaNegConfig
from adaneg_openood.benchmark.definition import read_benchmark
from adaneg_openood.data import ImageSet, encode_to_file, read_feature_header
from adaneg_openood.evaluation import load_features, save_features
from adaneg_openood.evaluation.sweep import sweep
from adaneg_openood.predictor import Predictor
from adaneg_openood.text import LabelFeatures, NegativeLabels, class_names, load_corpus
from adaneg_openood.text.learned import load_prompts
from adaneg_openood.text.wordnet import WordNet, WordNetMissing

RAN = []


class Bomb:
    """Unpickling it runs code."""

    def __reduce__(self):
        return RAN.append, ("code ran",)


@pytest.fixture(autouse=True)
def nothing_runs():
    RAN.clear()
    yield
    assert RAN == []


def encode(root, **options):
    options = {"batch_size": 4, "part_size": 4, "workers": 0, **options}
    return encode_to_file(
        ImageSet.of(root / "images"), root / "x.safetensors", model=TinyModel(), **options
    )


# -- feature files ------------------------------------------------------------------------------------


def safetensors_bytes(header, data=b"\0" * 64):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


TENSOR = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
HEADERS = {
    "length of 2^62": struct.pack("<Q", 1 << 62) + b"{}",
    "no JSON": safetensors_bytes(b"\xff" * 40),
    "nested": safetensors_bytes(b'{"a":' + b"[" * 100_000),
    "offsets outside": safetensors_bytes({"features": {**TENSOR, "data_offsets": [0, 1 << 40]}}),
    "negative shape": safetensors_bytes({"features": {**TENSOR, "shape": [-2, 2]}}),
    "overflowing shape": safetensors_bytes({"features": {**TENSOR, "shape": [1 << 62, 1 << 62]}}),
    "overlapping": safetensors_bytes({"features": TENSOR, "labels": TENSOR}),
    "unknown dtype": safetensors_bytes({"features": {**TENSOR, "dtype": "PY"}}),
    "empty": b"",
    "a pickle": pickle.dumps(Bomb()),
}


@pytest.mark.parametrize("name", HEADERS)
def test_hostile_safetensors(tmp_path, name):
    write_images(tmp_path / "images", 2)
    (tmp_path / "far").mkdir()
    file = tmp_path / "far" / "x.safetensors"
    file.write_bytes(HEADERS[name])
    for read in (read_feature_header, LabelFeatures.load, load_prompts):
        with pytest.raises(ValueError, match="x.safetensors"):
            read(file)
    with pytest.raises(ValueError, match="x.safetensors"):
        load_features(tmp_path)
    with pytest.raises(ValueError, match="x.safetensors"):
        encode(tmp_path)  # it would lie beside it


@pytest.mark.parametrize("metadata", ["[" * 100_000, "{", "[1]", "null"])
def test_hostile_metadata(tmp_path, metadata):
    file = tmp_path / "x.safetensors"
    save_file({"features": torch.ones(1, 2)}, file, {"adaneg": metadata})
    with pytest.raises(ValueError, match="x.safetensors: damaged header"):
        read_feature_header(file)


def test_every_cut_and_every_flipped_byte_of_a_feature_file_is_noticed(tmp_path):
    write_images(tmp_path / "images", 6)
    file = encode(tmp_path)
    (tmp_path / "far").mkdir()
    file = file.rename(tmp_path / "far" / "x.safetensors")
    text = torch.nn.functional.normalize(torch.randn(9, TinyModel.dim), dim=-1)
    np.savez(tmp_path / "text.npz", text_features=text.numpy(), n_id=4)
    np.savez(tmp_path / "id.npz", features=text.numpy(), labels=np.zeros(9, dtype=np.int64))
    load_features(tmp_path)
    whole = file.read_bytes()
    features_start = len(whole) - 6 * TinyModel.dim * 4
    for place in np.linspace(features_start, len(whole) - 1, 40, dtype=int):
        flipped = bytearray(whole)
        flipped[place] ^= 1
        file.write_bytes(flipped)
        with pytest.raises(ValueError, match="x.safetensors: damaged"):
            load_features(tmp_path)
    for length in np.linspace(0, len(whole) - 1, 30, dtype=int):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="x.safetensors"):
            load_features(tmp_path)


def test_damaged_parts_are_encoded_again(tmp_path, caplog):
    write_images(tmp_path / "images")
    whole = encode(tmp_path).read_bytes()
    (tmp_path / "x.safetensors").unlink()

    class Interrupted(TinyModel):
        left = 2

        def encode_image(self, pixels):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().encode_image(pixels)

    def interrupt():
        source = ImageSet.of(tmp_path / "images")
        with pytest.raises(KeyboardInterrupt):
            encode_to_file(
                source,
                tmp_path / "x.safetensors",
                model=Interrupted(),
                batch_size=4,
                part_size=4,
                workers=0,
            )
        return tmp_path / "x.safetensors.parts"

    first, second = sorted(interrupt().glob("*.safetensors"))
    flipped = bytearray(first.read_bytes())
    flipped[-30] ^= 16
    first.write_bytes(flipped)
    second.write_bytes(second.read_bytes()[:-5])
    encode(tmp_path)
    assert (tmp_path / "x.safetensors").read_bytes() == whole
    assert caplog.text.count("it is encoded again") == 2
    # a part in another's place
    (tmp_path / "x.safetensors").unlink()
    caplog.clear()
    first, second = sorted(interrupt().glob("*.safetensors"))
    second.write_bytes(first.read_bytes())
    encode(tmp_path)
    assert (tmp_path / "x.safetensors").read_bytes() == whole
    assert "it is of other images than its name says" in caplog.text


def npz_with(tmp_path, **arrays):
    file = tmp_path / "x.npz"
    np.savez(file, **arrays)
    return file


def test_object_arrays_are_refused(tmp_path):
    objects = np.array([Bomb(), None], dtype=object)
    for read in (load_features, LabelFeatures.load):
        for key in ("text_features", "names"):
            with pytest.raises(ValueError, match=r"x\.npz"):
                read(npz_with(tmp_path, **{"text_features": np.ones((2, 2)), "n_id": 1, key: objects}))
        (tmp_path / "y.npz").write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(ValueError, match=r"y\.npz"):
            read(tmp_path / "y.npz")


def test_pickled_checkpoints_are_refused(tmp_path):
    for name, content in (("bare.pt", Bomb()), ("inside.pt", {"ctx": torch.ones(2, 2), "x": Bomb()})):
        torch.save(content, tmp_path / name)
        for read in (load_prompts, LabelFeatures.load):
            with pytest.raises(ValueError, match=name):
                read(tmp_path / name)


def bomb_zip(file, names, size=200_000_000):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in names:
            with archive.open(name, "w") as entry:
                for _ in range(size // 10_000_000):
                    entry.write(b"\0" * 10_000_000)
    return file


def test_zip_bombs_are_not_opened(tmp_path):
    bomb = bomb_zip(tmp_path / "wordnet.zip", ["data.noun"])
    assert bomb.stat().st_size < 2_000_000
    with pytest.raises(ValueError, match=r"wordnet\.zip: its entry 'data\.noun' would unpack from"):
        WordNet(bomb)
    features = bomb.rename(tmp_path / "x.npz")
    for read in (load_features, LabelFeatures.load):
        with pytest.raises(ValueError, match=r"x\.npz.* zip bomb"):
            read(features)
    # words are never unpacked: a zip file is no word list
    with pytest.raises(ValueError, match=r"x\.npz: a word list must be UTF-8"):
        load_corpus(features)
    small = tmp_path / "small.zip"
    with zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("readme", "x" * 1_000_000)  # shrinks a thousandfold, and is harmless
    with pytest.raises(WordNetMissing):
        WordNet(small)


def test_npy_headers_that_promise_too_much(tmp_path):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 1 << 10)}
    )
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("text_features.npy", stream.getvalue())
    for read in (load_features, LabelFeatures.load):
        with pytest.raises(ValueError, match=r"x\.npz"):
            read(tmp_path / "x.npz")


# -- YAML ---------------------------------------------------------------------------------------------

GOOD = "id: {imglist: a.txt}\nnear: {x: {imglist: b.txt}}\nnegatives: words.txt\nclasses: imagenet\n"
YAML = {
    "python tag": GOOD + "name: !!python/object/apply:os.system ['touch hacked']\n",
    "python name": GOOD + "name: !!python/name:os.system\n",
    "python module": "!!python/module:antigravity\n",
    "unknown tag": GOOD + "name: !Secret {a: 1}\n",
    "not UTF-8": GOOD.encode() + b"name: \xff\xfe\n",
    "control characters": GOOD + "name: \x00\n",
    "list as a key": GOOD + "? [a, b]\n: 1\n",
    "mapping as a key": GOOD + "? {a: b}\n: 1\n",
    "no such date": GOOD + "name: 2020-13-45\n",
    "number as a name": GOOD + "7: 1\n",
    "endless number": GOOD + "batch_size: " + "9" * 5000 + "\n",
    "a thousand brackets": "[" * 5000,
    "alias to itself": GOOD + "name: &a [*a]\n",
    "merge of nothing": GOOD + "<<: 7\n",
    "bytes": GOOD + "name: !!binary aGVsbG8=\n",
    "not a mapping": "just text",
    "empty": "",
}


@pytest.mark.parametrize("name", YAML)
def test_hostile_yaml(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "bench.yml"
    content = YAML[name]
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"bench\.yml"):
        read_benchmark(file)
    assert not (tmp_path / "hacked").exists()


def test_a_billion_laughs_cost_nothing(tmp_path):
    lines = ["x-a0: &a0 [ha, ha]"]
    lines += [f"x-a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40)]
    (tmp_path / "bench.yml").write_text("\n".join([*lines, GOOD + "name: *a39\n"]))
    begun = time.monotonic()
    with pytest.raises(ValueError, match=r"bench\.yml: name must be text"):
        read_benchmark(tmp_path / "bench.yml")
    assert time.monotonic() - begun < 60  # 9^39 steps otherwise


# -- lists --------------------------------------------------------------------------------------------


def test_imglists_stay_inside_their_root(tmp_path):
    write_images(tmp_path / "data" / "images", 2)
    write_images(tmp_path / "secret", 1)
    file = tmp_path / "data" / "list.txt"
    absolute = tmp_path / "secret" / "00.png"
    for path in ("../../etc/passwd", "../secret/00.png", "images/../../secret/00.png", str(absolute),
                 "/etc/passwd", ".."):  # fmt: skip
        file.write_text(f"images/00.png 0\n{path} 1\n")
        with pytest.raises(ValueError, match=r"list\.txt: the path .* leads out of the root"):
            ImageSet.of(file)
    # inside it any spelling is fine, and a root that holds everything allows everything
    inside = tmp_path / "data" / "images" / "01.png"
    file.write_text(f"images/../images/00.png 0\n./images/01.png 1\n{inside} 1\nimages/..x.png 0\n")
    assert len(ImageSet.of(file)) == 4
    file.write_text(f"{absolute} 3\n")
    source = ImageSet.of(file, root="/")
    assert source.open(0).size == (24, 20)
    assert len(ImageSet.of(file, root=tmp_path)) == 1


def test_a_text_file_in_the_place_of_an_image_is_a_broken_image(tmp_path):
    (tmp_path / "list.txt").write_text("passwd 0\n\0.png 0\n")
    (tmp_path / "passwd").write_text("root:x:0:0")
    with pytest.raises(ValueError, match="2 broken image") as caught:
        encode_to_file(
            ImageSet.of(tmp_path / "list.txt"), tmp_path / "a.safetensors", model=TinyModel(), workers=0
        )
    assert "root:x" not in str(caught.value)
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize("label", ["-2", "1.5", "1e3", "0x1", "1_0", "٣", "9" * 30, "9" * 5000, "nan"])
def test_labels_outside_the_range(tmp_path, label):
    (tmp_path / "list.txt").write_text(f"a.png 0\nb.png {label}\n")
    with pytest.raises(ValueError, match=r"list\.txt, line 2: must be 'path label'"):
        ImageSet.of(tmp_path / "list.txt")


def test_labels_beyond_the_classes_name_their_file(tmp_path):
    _, data = detection()
    save_features(tmp_path / "all.npz", data)
    with np.load(tmp_path / "all.npz") as loaded:
        arrays = dict(loaded)
    for bad in (6, -1, 2**40):
        arrays["id_labels"] = arrays["id_labels"].copy()
        arrays["id_labels"][3] = bad
        np.savez(tmp_path / "bad.npz", **arrays)
        with pytest.raises(ValueError, match=r"bad\.npz \[id_labels\]: labels outside \[0, 6\).*: 3"):
            load_features(tmp_path / "bad.npz")


def test_a_label_of_a_billion_does_not_hang(tmp_path):
    (tmp_path / "names.json").write_text('{"0": "cat", "1000000000000": "dog"}')
    with pytest.raises(ValueError, match=r"names\.json, entry 0: the numbers are not 0..C-1 or 1..C"):
        class_names(tmp_path / "names.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"deep\.json: not JSON"):
        class_names(tmp_path / "deep.json")


def test_damaged_lists_of_negatives(tmp_path):
    file = tmp_path / "negatives.txt"
    NegativeLabels(("red", "house"), ("adj", "noun"), {"model": "x"}).save(file)
    good = file.read_text()
    for bad, match in (
        (good.replace('"x"', "[" * 100_000), "line 3"),
        (good.replace("adj\tred", "verb\tred"), "line 4"),
        (good.replace("count: 2", "count: " + "9" * 5000), "line 2"),
        (good.replace("adj\tred\nnoun\thouse", "noun\thouse\nadj\tred"), "adjectives must come before"),
        (good[: good.index("noun\t")], "says it holds 2 words"),
    ):
        file.write_text(bad)
        with pytest.raises(ValueError, match=rf"negatives\.txt.*{match}"):
            NegativeLabels.load(file)
    file.write_bytes(good.encode() + b"noun\t\xff\n")
    with pytest.raises(ValueError, match=r"negatives\.txt: .*UTF-8"):
        NegativeLabels.load(file)


# -- runs ---------------------------------------------------------------------------------------------


def test_every_damage_to_a_run_is_noticed(tmp_path):
    predictor = Predictor(TinyModel(), labels(), "adaneg", {"groups": 2})
    predictor.detector.score(labels(4).features)
    predictor.save(tmp_path)
    whole = snapshot(tmp_path)
    (state,) = tmp_path.glob("state-*")
    for place in np.linspace(0, len(whole[state.name]) - 1, 25, dtype=int):
        flipped = bytearray(whole[state.name])
        flipped[place] ^= 4
        state.write_bytes(flipped)
        with pytest.raises(ValueError, match="damaged"):
            Predictor.load(tmp_path, TinyModel())
    state.write_bytes(whole[state.name])
    about = json.loads(whole["predictor.json"])
    changes = [{key: None} for key in about]
    changes += [{"n_id": 10**9}, {"names": "x"}, {"settings": {"gama": 1}}, {"threshold": 7}]
    changes += [{"state": {"file": "../../../etc/passwd", "sha256": ""}}, {"version": "x"}]
    for change in changes:
        if change == {"threshold": None}:
            continue  # as it is
        (tmp_path / "predictor.json").write_text(json.dumps({**about, **change}))
        with pytest.raises(ValueError, match=str(tmp_path.name)):
            Predictor.load(tmp_path, TinyModel())
    for text in ("[" * 100_000, "7", "", "\0"):
        (tmp_path / "predictor.json").write_text(text)
        with pytest.raises(ValueError, match="damaged"):
            Predictor.load(tmp_path, TinyModel())


def test_images_of_too_many_pixels_are_broken_images(tmp_path, monkeypatch):
    write_images(tmp_path / "images", 2)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"2 broken image.*00\.png \(DecompressionBombError"):
        encode(tmp_path)


def test_nothing_in_the_package_unpickles():
    """SECURITY.md's claim, read from the source."""
    found = []
    for file in Path(adaneg_openood.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            call = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if call.endswith(("pickle.load", "pickle.loads", "yaml.unsafe_load", "yaml.full_load")):
                found.append((file.name, node.lineno))
            if call == "torch.load" and given.get("weights_only") != "True":
                found.append((file.name, node.lineno))
            if call == "np.load" and given.get("allow_pickle") != "False":
                found.append((file.name, node.lineno))
            if call == "yaml.load" and "Loader" not in [ast.unparse(arg) for arg in node.args]:
                found.append((file.name, node.lineno))
    assert found == []


def test_damaged_sweep_folders(tmp_path):
    _, data = detection()
    for content in (b"[" * 100_000, b"7", b"\xff", b""):
        (tmp_path / "sweep").mkdir(exist_ok=True)
        (tmp_path / "sweep" / "sweep.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"sweep\.json"):
            sweep(data, {"gamma": [0.5]}, base=AdaNegConfig(groups=2), folder=tmp_path / "sweep")


def test_logs_are_quiet_about_good_files(tmp_path, caplog):
    write_images(tmp_path / "images", 3)
    with caplog.at_level(logging.WARNING):
        encode(tmp_path)
        encode(tmp_path)
    assert caplog.text == ""
