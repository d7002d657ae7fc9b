"""The embedded image-text model: open_clip's CLIP, made small enough to ship."""

from __future__ import annotations

import re
from importlib.resources import as_file, files
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchvision.transforms import v2

from adaneg_openood.demo.world import ADJECTIVES, NOUNS, SIZE
from adaneg_openood.io.checks import check_choice
from adaneg_openood.vlm.base import PRECISIONS
from adaneg_openood.vlm.open_clip import OpenClip

if TYPE_CHECKING:
    from open_clip.model import CLIP

TEMPLATES = ("The nice {}.", "a photo of a {}.", "a drawing of a {}.", "{}")
ADJECTIVE_TEMPLATE = "This is a {} photo."
DIM = 64
_CONTEXT = 8
_WEIGHTS = "weights.safetensors"


class WordTokenizer:
    """Whole words of a fixed vocabulary; all others are one unknown word.

    The end mark has the largest id, where open_clip's text tower reads its output.
    """

    context_length = _CONTEXT

    def __init__(self) -> None:
        words = {
            word
            for name in (*NOUNS, *ADJECTIVES, *TEMPLATES, ADJECTIVE_TEMPLATE)
            for word in _words(name)
        }
        # 0 pads, 1 is the unknown word
        self._ids = {word: number for number, word in enumerate(sorted(words), start=2)}
        self.vocab_size = len(self._ids) + 3

    def encode(self, text: str) -> list[int]:
        """Word ids without the end mark."""
        return [self._ids.get(word, 1) for word in _words(text)]

    def __call__(self, texts: list[str]) -> Tensor:
        """N texts -> (N, 8) int64."""
        tokens = torch.zeros(len(texts), _CONTEXT, dtype=torch.long)
        for row, text in zip(tokens, texts):
            ids = [*self.encode(text)[: _CONTEXT - 1], self.vocab_size - 1]
            row[: len(ids)] = torch.tensor(ids)
        return tokens


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def build_clip(vocab_size: int) -> CLIP:
    """The architecture with random weights: a ResNet and a text transformer of one layer."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    return CLIP(
        DIM,
        CLIPVisionCfg(layers=(1, 1, 1, 1), width=16, head_width=32, image_size=SIZE),
        CLIPTextCfg(context_length=_CONTEXT, vocab_size=vocab_size, width=DIM, heads=4, layers=1),
    )


def preprocess() -> v2.Transform:
    """PIL image -> (3, 64, 64) float32."""
    return v2.Compose(
        [
            v2.RGB(),
            v2.ToImage(),
            v2.Resize(SIZE, antialias=True),
            v2.CenterCrop(SIZE),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.25] * 3),
        ]
    )


def load(
    name: str, *, device: str = "cpu", precision: str = "auto", preprocessing: str = "model"
) -> OpenClip:
    """What ``load_model("demo")`` calls.

    Raises:
        ValueError: another preprocessing, or an unknown precision.
    """
    if preprocessing != "model":
        raise ValueError(f"the demo's model has its own preprocessing only, got {preprocessing!r}")
    check_choice("precision", precision, PRECISIONS)
    model = load_demo_model()
    model.precision = precision
    return model.to(device)


def load_demo_model() -> OpenClip:
    """The trained model, from the weights in this package."""
    from safetensors.torch import load_file

    tokenizer = WordTokenizer()
    with torch.random.fork_rng(devices=[]):  # its initial weights are drawn, only to be replaced
        model = build_clip(tokenizer.vocab_size)
    with as_file(files(__package__) / _WEIGHTS) as path:
        state = load_file(path)
    model.load_state_dict(
        {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    )
    return OpenClip(model, tokenizer, preprocess(), "demo", preprocessing=f"resize and crop {SIZE}")
