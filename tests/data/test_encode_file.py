from __future__ import annotations

import json
import os

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_models import open_clip_model, picture

from adaneg_openood.data import (
    ImageSet,
    encode_to_file,
    read_feature_header,
)
from adaneg_openood.data.feature_files import _read
from adaneg_openood.evaluation import load_features
from adaneg_openood.vlm import OpenClip
from adaneg_openood.vlm.preprocessing import paper_preprocess

MODES = ["RGB", "RGBA", "L", "P", "CMYK", "1", "LA"]


class Counted(OpenClip):
    """Counts forward passes, and can be interrupted."""

    passes = 0
    stop_at = 10**9

    def _encode_pixels(self, pixels):
        self.passes += 1
        if self.passes > self.stop_at:
            raise KeyboardInterrupt
        return super()._encode_pixels(pixels)


def model_of(seed=0, size=32, **options):
    transform, described = paper_preprocess(size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return Counted(
        open_clip_model(seed),
        open_clip.SimpleTokenizer(context_length=77),
        transform,
        "tiny",
        preprocessing=described,
        **options,
    )


@pytest.fixture
def images(tmp_path):
    """19 images of many modes and formats in two class folders."""
    root = tmp_path / "images"
    for number in range(19):
        folder = root / ("cat", "sea lion")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        mode = MODES[number % len(MODES)]
        suffix = ".tif" if mode == "CMYK" else ".png"
        picture(mode, (33 + number, 40), number).save(folder / f"{number:02d} x{suffix}")
    return root


def expected_of(model, root, names):
    """Image by image, straight through Pillow and open_clip."""
    rows = []
    for name in names:
        with Image.open(root / name) as image:
            pixels = model.transform(image.convert("RGB"))
        with torch.no_grad():
            rows.append(model.model.encode_image(pixels[None], normalize=True)[0])
    return torch.stack(rows)


def test_folder_with_labels(images, tmp_path):
    model = model_of()
    source = ImageSet.of(images, labelled=True)
    output = tmp_path / "out" / "id.safetensors"
    assert encode_to_file(source, output, model=model, batch_size=4, workers=0) == output
    saved = load_file(output)
    header = read_feature_header(output)
    assert header["names"] == list(source.names) and header["names"][0] == "cat/00 x.png"
    assert saved["labels"].tolist() == [0] * 10 + [1] * 9
    torch.testing.assert_close(
        saved["features"], expected_of(model, images, source.names), atol=1e-6, rtol=0
    )
    assert header["model"] == "tiny" and header["weights"] == model.weights
    assert header["preprocessing"].startswith("paper: resize 37") and header["skipped"] == {}
    assert not list(tmp_path.glob("out/*.parts"))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(images, tmp_path, workers):
    one, many = tmp_path / "one" / "a.safetensors", tmp_path / "many" / "a.safetensors"
    before = torch.get_rng_state()
    encode_to_file(ImageSet.of(images), one, model=model_of(), batch_size=4, workers=0)
    encode_to_file(ImageSet.of(images), many, model=model_of(), batch_size=4, workers=workers)
    assert torch.equal(torch.get_rng_state(), before)
    assert one.read_bytes() == many.read_bytes()
    assert "labels" not in load_file(one)


def test_resumes_after_interruption(images, tmp_path):
    whole = tmp_path / "whole" / "a.safetensors"
    encode_to_file(ImageSet.of(images), whole, model=model_of(), batch_size=2, part_size=5, workers=0)
    output = tmp_path / "b" / "a.safetensors"
    broken = model_of()
    broken.stop_at = 7  # parts are of three batches, so two are done
    with pytest.raises(KeyboardInterrupt):
        encode_to_file(ImageSet.of(images), output, model=broken, batch_size=2, part_size=5, workers=0)
    assert not output.exists()
    parts = output.with_name("a.safetensors.parts")
    assert len(list(parts.glob("*.safetensors"))) == 2
    again = model_of()
    encode_to_file(ImageSet.of(images), output, model=again, batch_size=2, part_size=5, workers=0)
    assert again.passes == 11 - 6
    assert output.read_bytes() == whole.read_bytes() and not parts.exists()


def test_resuming_with_another_model_or_other_images_mixes_nothing(images, tmp_path):
    output = tmp_path / "a.safetensors"
    broken = model_of()
    broken.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        encode_to_file(ImageSet.of(images), output, model=broken, batch_size=2, part_size=2, workers=0)
    source = ImageSet.of(images, limit=7)
    again = model_of()
    again.stop_at = 0
    with pytest.raises(KeyboardInterrupt):  # three parts of the shorter list are there
        encode_to_file(source, output, model=again, batch_size=2, part_size=2, workers=0)
    encode_to_file(source, output, model=model_of(1), batch_size=2, part_size=2, workers=0)
    saved = load_file(output)["features"]
    torch.testing.assert_close(saved, expected_of(model_of(1), images, source.names))
    assert sorted(os.listdir(tmp_path)) == [output.name, "images"]


def test_finished_files_are_kept_or_refused(images, tmp_path):
    output = tmp_path / "a.safetensors"
    source = ImageSet.of(images, limit=4)
    encode_to_file(source, output, model=model_of(), workers=0)
    content = output.read_bytes()
    again, left = model_of(), output.with_name("a.safetensors.parts")
    left.mkdir()  # as a run leaves it that is killed after it wrote the file
    encode_to_file(source, output, model=again, workers=0)
    assert again.passes == 0 and output.read_bytes() == content and not left.exists()
    with pytest.raises(ValueError, match="its decode would be 'gpu'"):
        encode_to_file(source, output, model=model_of(), workers=0, decode="gpu")
    with pytest.raises(ValueError, match="is there already, with other images"):
        encode_to_file(ImageSet.of(images, limit=5), output, model=model_of(), workers=0)
    with pytest.raises(ValueError, match="its weights would be"):
        encode_to_file(source, output, model=model_of(1), workers=0)
    assert output.read_bytes() == content
    encode_to_file(source, output, model=model_of(1), workers=0, overwrite=True)
    assert read_feature_header(output)["weights"] == model_of(1).weights


def test_other_images_of_the_same_names_are_not_taken_for_these(images, tmp_path):
    output = tmp_path / "a.safetensors"
    encode_to_file(images, output, model=model_of(), workers=0)
    other = tmp_path / "other"
    for name in ImageSet.of(images).names:
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        picture("RGB", (50, 50), 7).save(other / name)
    with pytest.raises(ValueError, match="with other images .*, or they have changed since"):
        encode_to_file(other, output, model=model_of(), workers=0)
    picture("RGB", (50, 50), 7).save(images / "cat" / "00 x.png")
    with pytest.raises(ValueError, match="with other images .*, or they have changed since"):
        encode_to_file(images, output, model=model_of(), workers=0)


def test_a_file_without_its_broken_images_is_not_finished_for_those_who_want_them(images, tmp_path):
    break_images(images)
    output = tmp_path / "a.safetensors"
    encode_to_file(images, output, model=model_of(), workers=0, skip_broken=True)
    content, again = output.read_bytes(), model_of()
    encode_to_file(images, output, model=again, workers=0, skip_broken=True)
    assert again.passes == 0 and output.read_bytes() == content
    with pytest.raises(ValueError, match="3 broken image"):
        encode_to_file(images, output, model=model_of(), workers=0)


def test_other_labels_cost_no_encoding(images, tmp_path):
    output, again = tmp_path / "id.safetensors", model_of()
    break_images(images)
    settings = {"labelled": True, "workers": 0, "skip_broken": True}
    encode_to_file(images, output, model=model_of(), batch_size=4, **settings)
    before, header = load_file(output), read_feature_header(output)
    assert header["classes"] == ["cat", "sea lion"]
    encode_to_file(images, output, model=again, classes=("Sea lion", "cat"), **settings)
    after = load_file(output)
    assert again.passes == 0 and torch.equal(after["features"], before["features"])
    assert torch.equal(after["labels"], 1 - before["labels"])
    changed = {"classes": ["Sea lion", "cat"]}
    header.update(changed)
    told = read_feature_header(output)
    assert {key: told[key] for key in header if "sha256" not in key} == {
        key: value for key, value in header.items() if "sha256" not in key
    }
    # and without any
    other = tmp_path / "b.safetensors"
    output.rename(other)
    encode_to_file(images, other, model=again, workers=0, skip_broken=True)
    assert set(_read(other)) == {"features"} and "classes" not in read_feature_header(other)
    assert again.passes == 0


def test_id_images_without_labels_are_refused_before_encoding(images, tmp_path, monkeypatch):
    monkeypatch.setattr("adaneg_openood.vlm.load_model", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(ValueError, match="id.safetensors: ID images need labels"):
        encode_to_file(images, tmp_path / "id.safetensors")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: model_of(1), "its weights would be"),
        (lambda: model_of(size=16), "its preprocessing would be"),
    ],
)
def test_one_benchmark_folder_holds_one_backbone(images, tmp_path, other, message):
    source = ImageSet.of(images, limit=2)
    encode_to_file(source, tmp_path / "far" / "dtd.safetensors", model=model_of(), workers=0)
    for place in ("near/odd.safetensors", "near/ssb.safetensors", "far/sun.safetensors"):
        model = other()
        with pytest.raises(ValueError, match=message):
            encode_to_file(source, tmp_path / place, model=model, workers=0)
        assert model.passes == 0 and not (tmp_path / place).exists()
    encode_to_file(source, tmp_path / "near" / "ssb.safetensors", model=model_of(), workers=0)


def test_other_precision_is_warned_of_and_other_path_is_nothing(images, tmp_path, caplog):
    source = ImageSet.of(images, limit=2, labelled=True)
    encode_to_file(source, tmp_path / "id.safetensors", model=model_of(), workers=0)
    moved = model_of()
    moved.name = "the same weights at another path"
    encode_to_file(source, tmp_path / "near" / "a.safetensors", model=moved, workers=0)
    assert caplog.text == ""
    encode_to_file(
        source, tmp_path / "far" / "b.safetensors", model=model_of(precision="bf16"), workers=0
    )
    assert "encoded in bf16" in caplog.text and "id.safetensors" in caplog.text
    with pytest.raises(ValueError, match="its precision would be 'bf16'"):
        encode_to_file(source, tmp_path / "id.safetensors", model=model_of(precision="bf16"), workers=0)


def test_text_features_of_another_model_are_refused(images, tmp_path):
    (tmp_path / "text.json").write_text(json.dumps({"model": "tiny", "weights": "another"}))
    with pytest.raises(ValueError, match=r"its weights would be .*text\.json"):
        encode_to_file(
            ImageSet.of(images, limit=2, labelled=True),
            tmp_path / "id.safetensors",
            model=model_of(),
            workers=0,
        )


def break_images(root):
    (root / "cat" / "00 x.png").write_bytes(b"")
    (root / "cat" / "02 x.png").write_bytes(b"<html>404</html>")
    whole = (root / "cat" / "08 x.png").read_bytes()
    (root / "cat" / "08 x.png").write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_images_are_named(images, tmp_path, workers, monkeypatch):
    # as OpenOOD leaves it, once imported
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    break_images(images)
    output = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match="3 broken image") as caught:
        encode_to_file(ImageSet.of(images), output, model=model_of(), workers=workers)
    message = str(caught.value)
    for name in ("cat/00 x.png", "0 bytes", "cat/02 x.png", "cat/08 x.png"):
        assert name in message
    assert not output.exists()


def test_broken_images_can_be_left_out(images, tmp_path, caplog):
    break_images(images)
    output = tmp_path / "a.safetensors"
    source = ImageSet.of(images, labelled=True)
    encode_to_file(source, output, model=model_of(), batch_size=5, workers=0, skip_broken=True)
    header, saved = read_feature_header(output), load_file(output)
    assert len(saved["features"]) == len(saved["labels"]) == len(header["names"]) == 16
    assert set(header["skipped"]) == {"cat/00 x.png", "cat/02 x.png", "cat/08 x.png"}
    assert "cat/02 x.png" in caplog.text
    torch.testing.assert_close(saved["features"], expected_of(model_of(), images, header["names"]))


def test_everything_broken(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match="every image is broken"):
        encode_to_file(
            ImageSet.of(tmp_path / "in"), tmp_path / "a.safetensors", model=model_of(), workers=0,
            skip_broken=True,
        )  # fmt: skip


def test_imglist(images, tmp_path):
    file = tmp_path / "lists" / "test.txt"
    file.parent.mkdir()
    file.write_bytes(b"cat/00 x.png 1\r\nsea lion/01 x.png -1\r\n")
    source = ImageSet.of(file, root=images)
    assert list(source.labels) == [1, -1]
    encode_to_file(source, tmp_path / "a.safetensors", model=model_of(), workers=0)
    assert load_file(tmp_path / "a.safetensors")["labels"].tolist() == [1, -1]
    assert list(ImageSet.of(file, root=images, labelled=False).labels) == [-1, -1]
    file.write_text("nosuch.png 0\n")
    with pytest.raises(ValueError, match=r"nosuch\.png \(FileNotFoundError"):
        encode_to_file(ImageSet.of(file), tmp_path / "b.safetensors", model=model_of(), workers=0)


def test_an_output_that_cannot_be_written_does_not_wait_for_a_model(images, tmp_path, monkeypatch):
    monkeypatch.setattr("adaneg_openood.vlm.load_model", lambda *a, **k: pytest.fail("loaded"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/a\.safetensors"):
        encode_to_file(images, tmp_path / "file" / "a.safetensors")
    with pytest.raises(ValueError, match=r"must end in it"):
        encode_to_file(images, tmp_path / "a.npz")


def test_what_others_wrote_has_no_header(tmp_path):
    from safetensors.torch import save_file

    save_file({"features": torch.ones(1, 2)}, tmp_path / "a.safetensors")
    assert read_feature_header(tmp_path / "a.safetensors") == {}
    (tmp_path / "b.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"b\.safetensors: cannot be read"):
        read_feature_header(tmp_path / "b.safetensors")


def test_from_images_and_words_to_a_table(images, tmp_path, capsys):
    """mine, encode and eval chained: what they leave in a folder is what load_features reads."""
    from adaneg_openood import NegLabel
    from adaneg_openood.data import refuse_mixing
    from adaneg_openood.evaluation import Protocol, replay
    from adaneg_openood.text import ClassNames, Mining, class_names, label_features

    model = model_of()
    names, words = tmp_path / "names.txt", tmp_path / "words.txt"
    names.write_text("cat\nsea lion\n")
    words.write_text("\n".join(f"word {number}" for number in range(30)) + "\ncat\n")
    folder = tmp_path / "benchmark"
    classes = class_names(names)
    mined = Mining(corpus=words).run(model, classes)
    assert len(mined) == 30
    mined.save(tmp_path / "negatives.txt")
    label_features(model, classes, tmp_path / "negatives.txt").save(folder)
    encode_to_file(images, folder / "id.safetensors", model=model, labelled=True, workers=0)
    encode_to_file(
        images, folder / "near" / "same.safetensors", model=model, workers=0, limit=7, progress=True
    )
    assert "image" in capsys.readouterr().err
    data = load_features(folder)
    assert data.n_id == 2 and len(data.text_features) == 32 and data.logit_scale == model.logit_scale
    assert data.names[:2] == ("cat", "sea lion") and ClassNames("", data.names)
    torch.testing.assert_close(data.near["same"], data.id_features[:7])
    results = replay(
        data, {"n": NegLabel(data.text_features, 2, logit_scale=10.0)}, Protocol(seeds=(0,))
    )
    assert results.methods == ["n"] or tuple(results.methods) == ("n",)
    with pytest.raises(ValueError, match="its weights would be"):
        refuse_mixing(folder / "text.npz", model_of(1).describe())


def test_a_wrong_path_does_not_wait_for_a_model(tmp_path, monkeypatch):
    monkeypatch.setattr("adaneg_openood.vlm.load_model", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(FileNotFoundError):
        encode_to_file(tmp_path / "nosuch", tmp_path / "a.safetensors")


def test_every_flipped_bit_of_labels_names_and_features_is_noticed(images, tmp_path):
    output = tmp_path / "a.safetensors"
    encode_to_file(images, output, model=model_of(), labelled=True, workers=0)
    whole = output.read_bytes()
    start = int.from_bytes(whole[:8], "little") + 8
    labels = start + 8 * 19  # safetensors puts integers of 64 bits first
    rng = np.random.default_rng(0)
    places = [
        *range(start, labels, 4),
        *rng.integers(8, start, 60),
        *rng.integers(labels, len(whole), 20),
    ]
    for place in map(int, places):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(rng.integers(8))
        output.write_bytes(changed)
        try:
            read_feature_header(output)
            data = _read(output)
        except ValueError as error:
            assert "a.safetensors" in str(error)
        else:  # a letter of a key that is not ours, such as __metadata__'s
            assert start > place and sorted(map(len, data.values())) == [19, 19]
            output.write_bytes(whole)
            assert all(torch.equal(value, data[key]) for key, value in _read(output).items())
