"""What can be shown of decoding on a GPU without one: the packing of bytes, and resizing in groups."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from adaneg_openood.data import ImageSet, gpu_decoding
from adaneg_openood.vlm.preprocessing import paper_preprocess, split_transform

SIZES = [(50, 40), (40, 50), (50, 40), (64, 64), (50, 40), (40, 50)]


@pytest.fixture
def halves():
    return split_transform(paper_preprocess(28, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))[0])


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for number, (width, height) in enumerate(SIZES):
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.{'png' if number == 3 else 'jpg'}")
    (tmp_path / "6.jpg").write_bytes((tmp_path / "0.jpg").read_bytes()[:600])
    return ImageSet.of(tmp_path)


def test_images_of_one_size_are_resized_together_as_they_are_alone(images, halves, monkeypatch):
    decoder = gpu_decoding._Decoder(images, halves, torch.device("cpu"))
    g = torch.Generator().manual_seed(0)
    decoded = [torch.randint(0, 256, (3, h, w), generator=g, dtype=torch.uint8) for w, h in SIZES]
    alone = [decoder._resized([one])[0] for one in decoded]
    assert all(one.shape == (3, 28, 28) for one in alone)
    for together in (1, 2 * 3 * 50 * 40, gpu_decoding._TOGETHER):
        monkeypatch.setattr(gpu_decoding, "_TOGETHER", together)
        made = decoder._resized([*decoded[:2], None, *decoded[2:]])
        assert made.pop(2) is None
        assert all(torch.equal(a, b) for a, b in zip(made, alone))


def test_one_image_that_nvjpeg_refuses_costs_the_others_nothing(images, halves, monkeypatch):
    decoder = gpu_decoding._Decoder(images, halves, torch.device("cpu"))

    def decode_jpeg(contents, mode, device):
        if any(len(content) == 13 for content in contents):
            raise RuntimeError("nvjpegDecode failed: 2")
        return [torch.full((3, 1, 1), len(content), dtype=torch.uint8) for content in contents]

    monkeypatch.setattr("torchvision.io.decode_jpeg", decode_jpeg)
    contents = [torch.zeros(10 + n, dtype=torch.uint8) for n in range(7)]
    values = [None if one is None else int(one[0, 0, 0]) for one in decoder._decoded(contents)]
    assert values == [10, 11, 12, None, 14, 15, 16]


def test_bytes_travel_packed_and_what_is_no_whole_jpeg_travels_as_pixels(images, halves):
    items = [gpu_decoding.JpegBytes(images, halves)[index] for index in range(len(images))]
    assert [content.ndim for _, content, _ in items[:6]] == [1, 1, 1, 3, 1, 1]
    assert items[6][1] is None and "truncated" in items[6][2].lower()
    about, whole = gpu_decoding.packed(items)
    for before, after in zip(items, gpu_decoding._unpacked((about, whole))):
        assert (after[0], after[2]) == (before[0], before[2])
        assert after[1] is None if before[1] is None else torch.equal(after[1], before[1])
    assert whole[: len(items[0][1])].numpy().tobytes() == (images.base / images.names[0]).read_bytes()
