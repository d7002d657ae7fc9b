"""Random models of a few thousand weights, in each library's own classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image

VISION = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
CONFIG = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
NAMES = ["The nice dog.", "a photo of a fire engine.", "This is a red photo."]


def open_clip_model(seed: int = 0, **changed: object) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = json.loads(json.dumps({**CONFIG, **changed}))
        kind = (
            open_clip.model.CustomTextCLIP if config.pop("custom_text", False) else open_clip.model.CLIP
        )
        return kind(**config).eval()


def write_config(folder: Path, name: str = "tiny-clip", **changed: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({**CONFIG, **changed}))


def picture(mode: str = "RGB", size: tuple[int, int] = (50, 40), seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)
