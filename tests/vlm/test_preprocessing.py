"""Preprocessing in two halves: bytes from the workers, the same floats as in one go."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from tiny_models import picture
from torchvision import transforms

from adaneg_openood.vlm.preprocessing import paper_preprocess, split_transform

WHOLE = {
    "paper": paper_preprocess(32, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.2757))[
        0
    ],
    "shortest": image_transform_v2(PreprocessCfg(size=32), is_train=False),
    "squash": image_transform_v2(
        PreprocessCfg(size=32, resize_mode="squash", mean=(0,), std=(1,)), False
    ),
    "longest": image_transform_v2(PreprocessCfg(size=(32, 24), resize_mode="longest"), is_train=False),
}


@pytest.mark.parametrize("name", WHOLE)
def test_both_halves_give_the_very_floats_of_the_whole(name):
    whole = WHOLE[name]
    halves = split_transform(whole)
    every_byte = Image.fromarray(np.arange(3 * 256, dtype=np.uint8).reshape(16, 16, 3))
    images = [picture(mode, (50 + seed, 40), seed) for seed, mode in enumerate(("RGB", "L", "RGBA"))]
    for image in (*images, every_byte.resize((32, 32), Image.Resampling.NEAREST)):
        pixels = halves.to_bytes(image.convert("RGB"))
        assert pixels.dtype == torch.uint8
        assert torch.equal(halves.to_floats(pixels[None])[0], whole(image.convert("RGB")))


def test_the_table_is_the_transforms_own_for_every_byte():
    whole = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((0.1, 0.2, 0.3), (0.7, 0.6, 1 / 3))]
    )
    halves = split_transform(whole)
    image = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2))
    assert torch.equal(halves.to_floats(halves.to_bytes(image)[None])[0], whole(image))


@pytest.mark.parametrize(
    "other",
    [
        np.asarray,
        transforms.Compose([transforms.ToTensor()]),
        transforms.Compose([transforms.ToTensor(), transforms.RandomErasing()]),
        transforms.Compose([transforms.Normalize(0.5, 0.5), transforms.ToTensor()]),
    ],
)
def test_other_transforms_are_left_whole(other):
    assert split_transform(other) is None
