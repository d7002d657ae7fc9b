"""``encode`` as it is typed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from adaneg_openood.cli import app
from adaneg_openood.data.feature_files import load_features, read_feature_header, read_rows
from adaneg_openood.text import LabelFeatures

FOLDERS = ("anchor", "cup", "house")


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


def encode(*arguments: object, code: int = 0) -> str:
    return run("encode", *arguments, "--model", "demo", "--workers", 0, code=code)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two images per class folder, and the classes in another order than the folders'."""
    monkeypatch.setenv("ADANEG_CACHE", str(tmp_path / "cache"))
    for place, folder in enumerate(FOLDERS):
        (tmp_path / "images" / folder).mkdir(parents=True)
        for number in range(2):
            colour = (80 * place, 100 * number, 9)
            Image.new("RGB", (32, 32), colour).save(tmp_path / "images" / folder / f"{number}.png")
    (tmp_path / "names.txt").write_text("house\ncup\nanchor\n")
    (tmp_path / "negatives.txt").write_text("sea\nmoon\n")
    return tmp_path


def text_options(root: Path, classes: str = "names.txt") -> tuple[object, ...]:
    return ("--classes", root / classes, "--negatives", root / "negatives.txt")


def test_labels_are_those_of_the_classes_and_not_the_places_of_folders(root: Path) -> None:
    bench = root / "bench"
    encode(
        *(root / "images", "--labelled", "--out", bench / "id.safetensors"),
        *(*text_options(root), "--folder", bench),
    )
    encode(root / "images" / "cup", "--out", bench / "far" / "x.safetensors")
    data = load_features(bench)
    assert data.names is not None and data.names[:3] == ("house", "cup", "anchor")
    assert data.id_labels.tolist() == [2, 2, 1, 1, 0, 0]
    assert read_feature_header(bench / "id.safetensors")["classes"] == ["house", "cup", "anchor"]


def test_some_folders_of_known_classes_keep_their_labels(root: Path) -> None:
    images = root / "wnids"
    for wnid in ("n01443537", "n02007558"):
        (images / wnid).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(images / wnid / "0.png")
    encode(
        *(images, "--labelled", "--out", root / "b" / "id.safetensors", "--classes", "imagenet"),
        *("--negatives", root / "negatives.txt", "--folder", root / "b"),
    )
    labels = read_rows(root / "b" / "id.safetensors")[1]
    assert labels is not None and labels.tolist() == [1, 130]


def test_labels_in_another_order_than_the_text_rows_are_refused(root: Path) -> None:
    bench = root / "bench"
    encode(root / "images", "--labelled", "--out", bench / "id.safetensors")
    encode(root / "images" / "cup", "--out", bench / "far" / "x.safetensors")
    run("encode", *text_options(root), "--folder", bench, "--model", "demo")
    with pytest.raises(ValueError, match="label 0 is 'anchor' there, but 'house' in .*text.npz"):
        load_features(bench)


def test_what_was_there_is_not_called_written(root: Path) -> None:
    out = root / "x.safetensors"
    assert encode(root / "images", "--out", out).rstrip().endswith(f"{out}: written")
    assert (
        encode(root / "images", "--out", out).strip()
        == f"{out}: is there already, made of the same images"
    )
    assert encode(root / "images", "--out", out, "--overwrite").rstrip().endswith(f"{out}: written")
    assert "ID images need labels" in encode(root / "images", "--out", root / "id.safetensors", code=2)


def test_text_features_are_not_written_over_others(root: Path) -> None:
    command = ("encode", "--folder", root / "bench", "--model", "demo")
    file = root / "bench" / "text.npz"
    run(*command, *text_options(root))
    before = LabelFeatures.load(file)
    run(*command, *text_options(root))
    assert torch.equal(LabelFeatures.load(file).features, before.features)
    (root / "other.txt").write_text("cup\nhouse\nanchor\n")
    told = run(*command, *text_options(root, "other.txt"), code=2)
    assert "with other text features (of 5 labels)" in " ".join(told.split())
    assert LabelFeatures.load(file).names == before.names
    run(*command, *text_options(root, "other.txt"), "--overwrite")
    assert LabelFeatures.load(file).names[:3] == ("cup", "house", "anchor")
