"""What features depend on: a transform whose settings nothing tells has no key."""

from __future__ import annotations

import pytest
from openood_tiny import TinyModel
from torch import nn
from torchvision import transforms
from torchvision.transforms import v2

from adaneg_openood.openood.network_model import NetworkModel


class Network(TinyModel):
    def describe(self) -> dict[str, str]:
        return {"weights": "w"}


class Crop(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, image: object) -> object:
        return image


class WiderCompose(transforms.Compose):
    margin = 3


class Told:
    def __init__(self, size: int) -> None:
        self.size = size

    def __repr__(self) -> str:
        return f"Told({self.size})"


@pytest.mark.parametrize(
    ("transform", "told"),
    [
        (transforms.Compose([Crop(1), transforms.ToTensor()]), None),
        (nn.Sequential(transforms.CenterCrop(3)), None),
        (WiderCompose([transforms.ToTensor()]), None),
        (transforms.Lambda(abs), None),
        (v2.Lambda(abs), None),
        (object(), None),
        (
            transforms.Compose([transforms.CenterCrop(3), Told(7)]),
            ("CenterCrop(size=(3, 3))", "Told(7)"),
        ),
        (v2.Compose([v2.CenterCrop(3)]), ("CenterCrop(size=(3, 3))",)),
    ],
)
def test_a_transform_is_told_by_its_settings_or_not_at_all(transform, told) -> None:
    about = NetworkModel(Network()).seen_through(transform).describe()
    if told is None:
        assert "weights" not in about
    else:
        assert "weights" in about and all(part in about["preprocessing"] for part in told)
