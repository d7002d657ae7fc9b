"""A network's text tower as a model that mining, prompts and the text cache understand."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from adaneg_openood.openood.text_tower import Towers

CLIP_SCALE = 100.0
_CACHE_VERSION = "1"  # of what a cached text feature means


class TextModel:
    """A network's text tower in the vision-language protocol, for mining, prompts and caching.

    Where the network holds a model that tells its weights apart, that is what the cache goes by; else
    what it makes of a probe text, with the ID features.
    """

    def __init__(self, towers: Towers) -> None:
        assert towers.encode_text is not None
        self._encode: Callable[[Sequence[str]], Tensor] = towers.encode_text
        self._towers = towers
        self.name = towers.name
        self.logit_scale = towers.logit_scale or CLIP_SCALE
        self.device = towers.device
        probe = self.encode_text(["a photo."])
        self.dim = int(probe.shape[1])
        self._about = {"model": self.name, "weights": _digest([probe, towers.id_features])}
        inner = getattr(towers.encode_text, "__self__", None)  # CLIPNetwork or the model itself
        inner = getattr(inner, "model", inner)
        describe = getattr(inner, "describe", None)
        if callable(describe):
            self._about = dict(describe())
        self.context_length = getattr(inner, "context_length", None)
        self.token_count = getattr(inner, "token_count", None)
        self.encode_text_raw = getattr(inner, "encode_text_raw", None)  # which CSP averages

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """(N, D) float32, unit length."""
        features = self._encode(list(texts)).float()
        return torch.nn.functional.normalize(features, dim=-1)

    def describe(self) -> dict[str, Any]:
        """What text features depend on."""
        return dict(self._about)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Not this object's part: the network encodes images."""
        raise NotImplementedError

    def preprocess(self, image: Any) -> Tensor:
        """Not this object's part."""
        raise NotImplementedError

    def to(self, device: Any) -> TextModel:
        """Stays where the network is."""
        return self


def _digest(tensors: Sequence[Tensor | None]) -> str:
    digest = hashlib.sha256(_CACHE_VERSION.encode())
    for tensor in tensors:
        if tensor is not None:
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
