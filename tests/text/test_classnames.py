from __future__ import annotations

import hashlib
import json

import pytest

from adaneg_openood.text import ClassNames, class_names
from adaneg_openood.text.classnames import read_class_names

# SHA-256 of the class folders in label order, joined by newlines, read off OpenOOD's own imglists
# test_imagenet200.txt and test_cifar100.txt
IMAGENET200 = "e19a59d84e3746fafd34d2ccf6ae604a44e9a0500a596f343c878a89e30ce624"
CIFAR100 = "4a53f81a8af29bb6aa646bfe2c455db1b061edfde82a39c0cfc313ef536c681b"


def test_imagenet():
    classes = class_names("imagenet")
    assert len(classes) == 1000 and len(set(classes.wnids)) == 1000
    assert classes.wnids == tuple(sorted(classes.wnids))  # the order of OpenOOD's imglists
    row = dict(zip(classes.wnids, classes.names))
    assert row["n01443537"] == "goldfish" and row["n02085620"] == "Chihuahua"
    # OpenAI's names differ from torchvision's where WordNet's mislead
    assert row["n02012849"] == "crane bird" and row["n03126707"] == "construction crane"


def test_duplicate_names_keep_their_rows():
    names = class_names("imagenet").names
    assert [names.count(twice) for twice in ("missile", "sunglasses")] == [2, 2]
    assert len(names) == 1000 and len(set(names)) == 998


def test_imagenet200_is_in_openoods_order():
    classes = class_names("ImageNet-200")
    assert len(classes) == 200
    assert hashlib.sha256("\n".join(classes.wnids).encode()).hexdigest() == IMAGENET200
    assert classes.names[:4] == ("goldfish", "great white shark", "hammerhead shark", "stingray")
    whole = class_names("imagenet")
    known = dict(zip(whole.wnids, whole.names))
    assert all(known[wnid] == name for wnid, name in zip(classes.wnids, classes.names))


def test_cifar_and_bimcv():
    assert class_names("cifar10").names == (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    )  # fmt: skip
    names = class_names("cifar100").names
    assert "aquarium fish" in names and len(names) == 100
    folders = "\n".join(name.replace(" ", "_") for name in names) + "\n"
    assert hashlib.sha256(folders.encode()).hexdigest() == CIFAR100
    assert len(class_names("bimcv")) == 2


def test_a_file_of_names(tmp_path):
    file = tmp_path / "names.txt"
    file.write_bytes("\ufefffire_engine\r\nHund\r\nfaçade\r\n\r\n".encode())
    assert class_names(file) == ClassNames(str(file), ("fire engine", "Hund", "façade"))
    file.write_text("n01443537\tgoldfish, Carassius auratus\nn02085620\tChihuahua\n")
    classes = read_class_names(file)
    assert classes.wnids == ("n01443537", "n02085620")
    assert classes.names == ("goldfish, Carassius auratus", "Chihuahua")
    file = tmp_path / "names.json"
    file.write_text(json.dumps({"1": "b", "0": "a"}))
    assert class_names(file).names == ("a", "b")
    file.write_text(json.dumps(["x", "x"]))
    assert class_names(file).names == ("x", "x")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "dog\n\ncat\n", r"line\(s\) 2 are empty"),
        ("a.txt", "\n", "holds no class name"),
        ("a.json", '{"0": "a", "2": "b"}', "numbers are not 0..C-1 or 1..C"),
        ("a.json", '{"dog": "a"}', "several columns of text"),
        ("a.json", '["a", 3]', "must be a list of names"),
        ("a.json", '["a",', "not JSON"),
        ("a.json", '["a", " "]', r"empty class name for label\(s\) 1"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        class_names(tmp_path / name)


def test_unknown_benchmark():
    with pytest.raises(ValueError, match="'cifar20' is neither a file of class names nor one of"):
        class_names("cifar20")
