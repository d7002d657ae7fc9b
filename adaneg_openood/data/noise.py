"""Noise images: the first OOD-like images that TANL knows, made and encoded without a user's help."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from adaneg_openood.vlm.base import VisionLanguageModel

_EACH = 3  # images of a kind


def noise_images(height: int = 224, width: int = 224, seed: int = 0) -> Tensor:
    """(15, 3, H, W) float32 in [0, 1]: three images of each of five kinds of noise.

    These are normal, uniform on [0, 1], Poisson of rate 5, Gamma of shape 2 and rate 1, and pixels that
    are black or white with equal chance. Normal, Poisson and Gamma noise is rescaled to [0, 1] by the
    extremes over its three images. The generator is private: the caller's random state stays as it is.

    Source: TANL (CVPR 2026), released implementation, whose noise has no seed.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (_EACH, 3, height, width)

    def uniform() -> Tensor:
        return torch.rand(shape, generator=generator)

    normal = torch.randn(shape, generator=generator)
    flat = uniform()
    poisson = torch.poisson(torch.full(shape, 5.0), generator=generator)
    gamma = -(1 - uniform()).log() - (1 - uniform()).log()  # a sum of two exponential variables
    coins = (torch.rand(_EACH, 1, height, width, generator=generator) < 0.5).float().expand(shape)
    return torch.cat([_rescaled(normal), flat, _rescaled(poisson), _rescaled(gamma), coins])


def _rescaled(values: Tensor) -> Tensor:
    low, high = values.min(), values.max()
    return (values - low) / (high - low)


def noise_features(model: VisionLanguageModel, seed: int = 0) -> Tensor:
    """(15, D) features of :func:`noise_images`, float32 of unit length on the CPU.

    The noise has the size that the model's images have. As in TANL's released implementation its pixels
    go to the image tower as they are, without the mean and standard deviation that other images are
    normalised by.
    """
    from PIL import Image

    height, width = model.preprocess(Image.new("RGB", (8, 8))).shape[-2:]
    return model.encode_image(noise_images(height, width, seed)).cpu()
