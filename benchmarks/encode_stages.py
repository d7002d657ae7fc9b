"""How fast images become features on a GPU: decoding alone, the model alone, and the whole.

The model is a ViT-B/16 with random weights, as speed does not depend on them; the images are JPEGs that
are drawn here, in the sizes that ImageNet's photographs often have.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

IMAGES, BATCH = 25_600, 256
# width and height; every other image is 500 x 375
SIZES = ((375, 500), (500, 333), (333, 500), (500, 500), (400, 300), (640, 480), (500, 334), (480, 360))


def write_jpegs(folder: Path, n: int, kinds: int = 64) -> Path:
    """n JPEGs of smooth noise, whose size on disk is about a photograph's; each kind many times."""
    from PIL import Image

    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for kind in range(kinds):
        width, height = (500, 375) if kind % 2 else SIZES[kind // 2 % len(SIZES)]
        rough = Image.fromarray(rng.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8))
        smooth = np.asarray(rough.resize((width, height), Image.Resampling.BICUBIC))
        pixels = (smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
        first = folder / f"{kind:05d}.jpg"
        Image.fromarray(pixels).save(first, quality=90)
        for number in range(kind + kinds, n, kinds):
            shutil.copyfile(first, folder / f"{number:05d}.jpg")
    return folder


def vision_model(device: str) -> Any:
    """A model of the vision-language protocol around torchvision's ViT-B/16."""
    from torchvision.models import vit_b_16

    from adaneg_openood.vlm.base import TwoTowerModel
    from adaneg_openood.vlm.preprocessing import paper_preprocess

    class Model(TwoTowerModel):
        def _encode_pixels(self, pixels: Tensor) -> Tensor:
            features: Tensor = self.model(pixels)
            return features

        def _tokenize(self, texts: list[str]) -> Any:
            raise NotImplementedError

        def _encode_tokens(self, tokens: Any) -> Tensor:
            raise NotImplementedError

    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    transform, described = paper_preprocess(224, mean, std)
    tower = vit_b_16(weights=None, num_classes=512)
    # torchvision starts the head at zero
    tower.heads.head.weight.data.normal_(0, 0.02, generator=torch.Generator().manual_seed(0))
    return Model(
        tower.to(device),
        transform,
        name="ViT-B/16 of random weights",
        dim=512,
        logit_scale=100.0,
        preprocessing=described,
    )


def stages(device: str = "cuda") -> str:
    """Images per second of each stage, with as many workers as there are cores."""
    from adaneg_openood.data import FeatureStore, ImageSet, decoded_batches
    from benchmarks.cuda import table

    with tempfile.TemporaryDirectory() as place:
        images = ImageSet.of(write_jpegs(Path(place) / "images", IMAGES))
        few = ImageSet.of(write_jpegs(Path(place) / "few", 2 * BATCH))
        model = vision_model(device)
        pixels = torch.zeros(BATCH, 3, 224, 224, device=device)
        for _ in range(3):
            model.encode_image(pixels)
        rates = {
            "model alone": _rate(lambda: [model.encode_image(pixels) for _ in range(25)], 25 * BATCH)
        }
        rates["decoding alone"] = _rate(
            lambda: [None for _ in decoded_batches(model, images, BATCH)], IMAGES
        )
        for decode in ("cpu", "gpu"):
            store = FeatureStore(Path(place) / f"store-{decode}")
            store.get(few, model, batch_size=BATCH, decode=decode)  # libraries load at their first use
            rates[f"encode, --decode {decode}"] = _rate(
                lambda s=store, d=decode: s.get(images, model, batch_size=BATCH, decode=d),  # type: ignore[misc]
                IMAGES,
            )
    decoding = rates["decoding alone"]
    return table(
        ["stage", "images/s", "x decoding alone"],
        [[name, round(rate), rate / decoding] for name, rate in rates.items()],
    )


def _rate(run: Callable[[], object], n: int) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return n / (time.perf_counter() - start)


def sections() -> dict[str, Callable[[], str]]:
    """Sections of :mod:`benchmarks.cuda`."""
    return {"encode": stages}
