"""Each layout of images, features and prompts in docs/file_layouts.md is read as the page says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from layout_table import FURTHER
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import normalize

from adaneg_openood.data import ImageSet
from adaneg_openood.data.feature_files import load_features
from adaneg_openood.text import LabelFeatures
from adaneg_openood.text.learned import load_prompts

ROWS = normalize(torch.arange(20.0).reshape(5, 4) % 7 + 1, dim=1)  # 2 ID names, 3 negatives
TEXT = {"text_features": ROWS.numpy(), "n_id": np.asarray(2)}
ID = {"features": ROWS[:3].numpy(), "labels": np.array([0, 1, 1])}


def images(tmp_path, content, labelled=True):
    for name in content.split(", "):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    return ImageSet.of(tmp_path, labelled=labelled)


def listed(tmp_path, content):
    text = content.encode().decode("unicode_escape")
    (tmp_path / "list.txt").write_bytes(("\ufeff" * ("\r" in text) + text).encode())
    found = ImageSet.of(tmp_path / "list.txt")
    return dict(zip(found.names, found.labels))


def bench(tmp_path, suffix):
    def write(name, **arrays):
        file = tmp_path / f"{name}{suffix}"
        file.parent.mkdir(exist_ok=True)
        if suffix == ".npz":
            np.savez(file, **arrays)
        else:
            save_file({key: torch.from_numpy(np.array(value)) for key, value in arrays.items()}, file)

    write("text", **TEXT)
    write("id", **ID)
    write("far/odd", features=ROWS[3:].numpy())
    return tmp_path


def npy(tmp_path):
    for key, value in {**TEXT, **{f"id_{key}": value for key, value in ID.items()}}.items():
        np.save(tmp_path / f"{key}.npy", value)
    (tmp_path / "far").mkdir()
    np.save(tmp_path / "far" / "odd.npy", ROWS[3:].numpy())
    return tmp_path


def whole(tmp_path):
    parts = {**TEXT, **{f"id_{key}": value for key, value in ID.items()}, "far/odd": ROWS[3:].numpy()}
    np.savez(tmp_path / "all.npz", **parts)
    return tmp_path / "all.npz"


def check_features(place):
    found = load_features(place)
    assert torch.equal(found.text_features, ROWS) and found.n_id == 2
    assert found.id_labels.tolist() == [0, 1, 1] and torch.equal(found.far["odd"], ROWS[3:])


def check_text(file, n_id=None, names=None, scale=None):
    found = LabelFeatures.load(file, n_id)
    assert torch.equal(found.features, ROWS) and found.n_id == 2
    assert names is None or found.names == names
    assert scale is None or found.logit_scale == scale


def saved(tmp_path, content, name="text.pt"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


def npz(tmp_path, **more):
    np.savez(tmp_path / "text.npz", **TEXT, **more)
    return tmp_path / "text.npz"


def safetensors(tmp_path):
    save_file({key: torch.from_numpy(np.array(value)) for key, value in TEXT.items()},
              tmp_path / "text.safetensors")  # fmt: skip
    return tmp_path / "text.safetensors"


def check_prompts(tmp_path, content, context, negative=None):
    found = load_prompts(saved(tmp_path, content, "prompts.pth.tar"))
    assert found.id_context.shape == context
    assert (None if found.negative_context is None else found.negative_context.shape) == negative


NAMES = ("cat", "dog", "sea", "moon", "sun")
CHECKS = {
    "path and label": lambda t, c: listed(t, c) == {"cat/1.png": 0, "a dog/2.jpg": 12, "c.png": -1},
    "path, tab, label": lambda t, c: listed(t, c) == {"cat/1.png": 0, "dog/2.jpg": 1},
    "byte order mark, Windows line ends, blank lines": lambda t, c: (
        listed(t, c) == {"cat/1.png": 0, "dog/2.jpg": 1}
    ),
    "folder of class folders": lambda t, c: images(t, c).class_names().names == ("cat", "dog"),
    "folder of numbers": lambda t, c: list(images(t, c).labels) == [0, 1],
    "folder of numbered names": lambda t, c: images(t, c).class_names().names == ("cat", "dog"),
    "folder of wnids and names": lambda t, c: (
        images(t, c).class_names().names == ("tench", "goldfish")
    ),
    "folder of wnids": lambda t, c: images(t, c).class_names().names == ("tench", "goldfish"),
    "folder without labels (OOD sets)": lambda t, c: list(images(t, c, False).labels) == [-1, -1],
    "image": lambda t, c: images(t, c, False) and list(ImageSet.of(t / c).names) == [c],
    "npz": lambda t, c: check_features(whole(t)),
    "folder of npz": lambda t, c: check_features(bench(t, ".npz")),
    "folder of npy": lambda t, c: check_features(npy(t)),
    "folder of safetensors": lambda t, c: check_features(bench(t, ".safetensors")),
    "npz with names": lambda t, c: check_text(
        npz(t, names=np.array(NAMES), logit_scale=50.0), names=NAMES, scale=50.0
    ),
    "safetensors": lambda t, c: check_text(safetensors(t)),
    "torch, a tensor": lambda t, c: check_text(saved(t, ROWS), n_id=2),
    "torch, a dictionary": lambda t, c: check_text(
        saved(t, {"text_features": ROWS, "n_id": 2, "logit_scale": 20.0}), scale=20.0
    ),
    "CoOp": lambda t, c: check_prompts(t, {"state_dict": {"ctx": torch.ones(4, 8)}}, (4, 8)),
    "CoOp, of each class": lambda t, c: check_prompts(
        t, {"state_dict": {"ctx": torch.ones(3, 4, 8)}}, (3, 4, 8)
    ),
    "prefixes": lambda t, c: [
        check_prompts(t, {"state_dict": {key: torch.ones(4, 8)}}, (4, 8)) for key in c.split(", ")
    ],
    "NegPrompt": lambda t, c: check_prompts(
        t, {"ctx_positive": torch.ones(4, 8), "ctx_negative": torch.ones(2, 4, 8)}, (4, 8), (2, 4, 8)
    ),
    "LAPT": lambda t, c: check_prompts(
        t, {"ctx": torch.ones(4, 8), "ctx_neg": torch.ones(5, 8)}, (4, 8), (5, 8)
    ),
    "whole OOD prompts": lambda t, c: check_prompts(
        t, {"ctx": torch.ones(4, 8), "ood_ctx": torch.ones(5, 5, 8)}, (4, 8), (5, 5, 8)
    ),
    "a trainer's own values": lambda t, c: check_prompts(
        t,
        {"state_dict": {"ctx": torch.ones(4, 8)}, "epoch": 3, "optimizer": {"lr": 0.1},
         "val_result": np.float64(81.2)},
        (4, 8),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "content"), [row[:2] for rows in FURTHER.values() for row in rows], ids=str
)
def test_it_is_read_as_the_page_says(tmp_path, layout, content):
    assert CHECKS[layout](tmp_path, content) is not False


@pytest.mark.parametrize(
    "line",
    ["cat/1.png", "cat/1.png,0", "0,cat/1.png", "path label", "cat/1.png cat", '{"cat/1.png": 0}'],
)
def test_other_lists_of_images_are_refused_with_their_line(tmp_path, line):
    (tmp_path / "list.txt").write_text(f"dog/2.png 1\n{line}\n")
    with pytest.raises(ValueError, match=r"list\.txt, line 2: must be 'path label'"):
        ImageSet.of(tmp_path / "list.txt")
