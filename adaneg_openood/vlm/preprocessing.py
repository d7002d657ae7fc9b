"""Image preprocessing: the model's own, or the paper's resize and centre crop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable

import torch
from torch import Tensor
from torch.nn.functional import embedding

from adaneg_openood.io.checks import check_choice

if TYPE_CHECKING:
    from PIL.Image import Image

PREPROCESSINGS = ("model", "paper")
_PAPER_RATIO = 256 / 224  # resize to 256, crop 224


def build_preprocess(config: Any, preprocessing: str) -> tuple[Callable[[Image], Tensor], str]:
    """The transform of an open_clip ``PreprocessCfg``, and one line that describes it.

    Raises:
        ValueError: ``preprocessing`` is neither ``"model"`` nor ``"paper"``.
    """
    from open_clip.transform import image_transform_v2

    check_choice("preprocessing", preprocessing, PREPROCESSINGS)
    if preprocessing == "paper":
        return paper_preprocess(config.size, config.mean, config.std)
    described = (
        f"model: {config.resize_mode} {_size(config.size)} {config.interpolation}, "
        f"mean {_row(config.mean)} std {_row(config.std)}"
    )
    return image_transform_v2(config, is_train=False), described


def paper_preprocess(
    size: int | Sequence[int], mean: Sequence[float], std: Sequence[float]
) -> tuple[Callable[[Image], Tensor], str]:
    """Resize the shorter side to 256 (bicubic), crop 224 from the centre, normalise.

    Args:
        size: the model's input size; at other sizes than 224 the same ratio 256/224 holds.
        mean: of the model's training, three numbers.
        std: three numbers.

    Returns:
        PIL image of any mode -> (3, H, W) float32; and one line that describes it.

    Source: OpenOOD v1.5's ImageNet preprocessing with CLIP's interpolation, as AdaNeg (Zhang and
    Zhang, NeurIPS 2024) was run.
    """
    from torchvision import transforms
    from torchvision.transforms import InterpolationMode

    height, width = (size, size) if isinstance(size, int) else tuple(size)
    shorter = round(min(height, width) * _PAPER_RATIO)
    transform = transforms.Compose(
        [
            to_rgb,
            transforms.Resize(shorter, interpolation=InterpolationMode.BICUBIC),
            transforms.CenterCrop((height, width)),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    described = f"paper: resize {shorter} bicubic, crop {_size(size)}, mean {_row(mean)} std {_row(std)}"
    return transform, described


def to_rgb(image: Image) -> Image:
    """Any mode to RGB. A function, not a lambda, so that data loader workers can receive it."""
    return image.convert("RGB")


@dataclass(frozen=True)
class BytePixels:
    """A preprocessing in two halves, so that bytes travel between them and not floats.

    Attributes:
        geometry: steps from a PIL image, or from a (3, H, W) uint8 tensor, to one of the input's size.
        table: (3, 256) float32, what each byte of each channel becomes.
    """

    geometry: tuple[Callable[[Any], Any], ...]
    table: Tensor

    def to_bytes(self, image: Image) -> Tensor:
        """A PIL image -> (3, H, W) uint8."""
        from torchvision.transforms.functional import pil_to_tensor

        for step in self.geometry:
            image = step(image)
        return pil_to_tensor(image.convert("RGB"))

    def to_floats(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 on any device -> float32, the very numbers of the whole preprocessing."""
        table = self.table.to(pixels.device).reshape(-1, 1)
        first = torch.tensor([0, 256, 512], device=pixels.device, dtype=torch.int32).reshape(3, 1, 1)
        return embedding(pixels.int() + first, table).squeeze(-1)


def split_transform(transform: Any) -> BytePixels | None:
    """The two halves of a torchvision ``Compose`` that ends in ToTensor and Normalize; else None."""
    steps = list(getattr(transform, "transforms", ()))
    if [type(step).__name__.removeprefix("Maybe") for step in steps[-2:]] != ["ToTensor", "Normalize"]:
        return None
    from PIL import Image as images

    every_byte = images.frombytes("L", (256, 1), bytes(range(256))).convert("RGB")
    table = steps[-1](steps[-2](every_byte)).reshape(3, 256)
    return BytePixels(tuple(steps[:-2]), table)


def _size(size: int | Sequence[int]) -> str:
    return str(size) if isinstance(size, int) else "x".join(map(str, size))


def _row(values: Sequence[float]) -> str:
    return ",".join(f"{value:.6g}" for value in values)
