"""As the real one, it imports ``pkg_resources.packaging``, which newer setuptools lack."""

from __future__ import annotations

import math
from typing import Any

import torch
from openood_tiny import make_tiny
from pkg_resources import packaging  # type: ignore[import-untyped]
from torch import Tensor, nn
from torchvision import transforms

assert packaging.version.parse("1.0") < packaging.version.parse("2.0")

__all__ = ["available_models", "load", "tokenize"]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tiny = make_tiny()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(self.tiny.logit_scale)))

    def encode_image(self, pixels: Tensor) -> Tensor:
        return self.tiny.encode_image(pixels)

    def encode_text(self, tokens: Tensor) -> Tensor:
        texts = [bytes(row[row > 0].tolist()).decode() for row in tokens]
        return self.tiny.encode_text(texts)


def available_models() -> list[str]:
    return ["ViT-B/16", "RN50"]


def load(name: str, device: str = "cuda", **kwargs: Any) -> tuple[Model, Any]:
    if device != "cpu" and not torch.cuda.is_available():
        raise RuntimeError("no CUDA here")
    preprocess = transforms.Compose(
        [
            transforms.Resize(16),
            transforms.CenterCrop(16),
            transforms.ToTensor(),
            transforms.Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        ]
    )
    return Model(), preprocess


def tokenize(texts: Any, context_length: int = 77, truncate: bool = False) -> Tensor:
    texts = [texts] if isinstance(texts, str) else texts
    out = torch.zeros(len(texts), 120, dtype=torch.long)
    for row, text in zip(out, texts):
        data = list(text.encode())[:120]
        row[: len(data)] = torch.tensor(data)
    return out
