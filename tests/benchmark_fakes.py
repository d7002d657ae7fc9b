"""A small benchmark of image files, and the YAML that describes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adaneg_openood.demo import world
from adaneg_openood.evaluation import FeatureSet

CLASSES = ("house", "chair", "cup")
NEGATIVES = ("red", "blue", "striped", "sea", "forest", "zigzag", "polka", "mountain")
YAML = """\
name: small
data: images
classes: [house, chair, cup]
model: demo
negatives: negatives.txt
id: {folder: id}
near:
  creatures: {imglist: creatures.txt, root: "."}
far:
  scenes: {folder: scenes, limit: 12, images: 12, source: nowhere}
methods:
  NegLabel: {detector: neglabel, groups: 2}
  AdaNeg: {detector: adaneg, groups: 2, memory_length: 4}
seeds: [3, 5]
batch_size: 8
"""


def write_small_benchmark(root: Path) -> Path:
    """Draw 24 ID, 10 near and 14 far images under ``root``, and return its YAML file."""
    rng = np.random.default_rng(4)
    images = root / "images"
    known = [name for name in CLASSES if name in world.THINGS]
    assert known == list(CLASSES)
    for name in CLASSES:
        _draw(images / "id" / name, name, 8, rng)
    creatures = list(world.NEAR["creatures"])
    for number in range(10):
        _draw(images / "creatures" / str(number), creatures[number % len(creatures)], 1, rng)
    lines = [f"creatures/{number}/0.png -1" for number in range(10)]
    (images / "creatures.txt").write_text("\n".join(lines) + "\n")
    for name in ("sea", "mountain"):
        _draw(images / "scenes" / name, name, 7, rng)
    (root / "negatives.txt").write_text("\n".join(NEGATIVES) + "\n")
    file = root / "small.yml"
    file.write_text(YAML)
    return file


def make_sweep_data(n_id: int = 60, n_ood: int = 40, dim: int = 16, seed: int = 0) -> FeatureSet:
    """Features in which ID images lie near their label and OOD images near negatives."""
    generator = torch.Generator().manual_seed(seed)

    def unit(values: Tensor) -> Tensor:
        return torch.nn.functional.normalize(values, dim=1)

    text = unit(torch.randn(4 + 12, dim, generator=generator))
    labels = torch.arange(n_id) % 4

    def near(rows: Tensor) -> Tensor:
        noise = unit(torch.randn(len(rows), dim, generator=generator))
        return unit(0.45 * text[rows] + 0.9 * noise)

    return FeatureSet(
        text_features=text,
        n_id=4,
        id_features=near(labels),
        id_labels=labels,
        near={"alike": near(4 + torch.arange(n_ood) % 3)},
        far={"other": near(7 + torch.arange(n_ood) % 9)},
        logit_scale=20.0,
    )


def _draw(folder: Path, name: str, number: int, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(number):
        world.draw(name, rng).image.save(folder / f"{index}.png")
