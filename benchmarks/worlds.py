"""Synthetic streams with the geometry of CLIP features.

Images and texts live in two cones (the modality gap). A concept moves an image in a direction that
agrees with the one it moves its text in only in part (``alignment``). Images of a concept differ by
style, a few directions that all concepts share, and by noise. Near-OOD concepts come from the same
superclasses as the ID classes, far-OOD concepts from others; some OOD names are among the negatives.
With the defaults, image-image cosines are about 0.80 within a class and 0.68 between classes,
image-text cosines about 0.23 and 0.13.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

_DIM = 256
_SUPERCLASSES = 8
_STYLES = 30
LOGIT_SCALE = 100.0


@dataclass(frozen=True)
class World:
    """A synthetic task; the same settings give the same features."""

    seed: int
    kind: str = "near"
    n_classes: int = 20
    n_negatives: int = 300
    n_id: int = 400
    n_ood: int = 400
    alignment: float = 0.6
    gap: float = 0.2
    noise: float = 1.0
    ood_classes: int = 12
    known: float = 0.5

    def features(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Text (C + M, D), ID images (N, D), their labels (N,) and OOD images (n, D)."""
        generator = torch.Generator().manual_seed(self.seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        def concepts(n: int, superclasses: Tensor) -> Tensor:
            own = superclasses[torch.randint(len(superclasses), (n,), generator=generator)]
            return normalize(
                math.sqrt(1 - 0.75**2) * own + 0.75 * normalize(random(n, _DIM), dim=1), dim=1
            )

        image_cone, other = normalize(random(2, _DIM), dim=1)
        other = normalize(other - (other @ image_cone) * image_cone, dim=0)
        text_cone = self.gap * image_cone + math.sqrt(1 - self.gap**2) * other
        of_id = normalize(random(_SUPERCLASSES, _DIM), dim=1)
        of_others = normalize(random(3 * _SUPERCLASSES, _DIM), dim=1)
        classes = concepts(self.n_classes, of_id)
        pool = int(self.n_negatives / 0.9)
        negatives = torch.cat([concepts(pool // 4, of_id), concepts(pool - pool // 4, of_others)])
        ood = concepts(self.ood_classes, of_id if self.kind == "near" else of_others)
        n_known = int(self.known * self.ood_classes)
        negatives[:n_known] = ood[:n_known]
        # negatives are mined: the nearest to an ID class go
        nearest = (negatives @ classes.T).amax(dim=1)
        negatives = negatives[nearest.argsort()[: self.n_negatives]]
        text = normalize(text_cone + 0.5 * torch.cat([classes, negatives]), dim=1)

        turn, _ = torch.linalg.qr(random(_DIM, _DIM))
        styles = normalize(random(_STYLES, _DIM), dim=1)

        def images(of: Tensor) -> Tensor:
            seen = self.alignment * of + math.sqrt(1 - self.alignment**2) * (of @ turn)
            style = random(len(of), _STYLES) @ styles / math.sqrt(_STYLES)
            noise = random(len(of), _DIM) / math.sqrt(_DIM)
            shift = 0.42 * normalize(seen, dim=1) + 0.4 * self.noise * (style + noise)
            return normalize(image_cone + shift, dim=1)

        labels = torch.randint(self.n_classes, (self.n_id,), generator=generator)
        ood_labels = torch.randint(self.ood_classes, (self.n_ood,), generator=generator)
        return text, images(classes[labels]), labels, images(ood[ood_labels])


def selection_worlds() -> list[World]:
    """The streams that settings are chosen on: a grid of five mixes, and 60 drawn at random."""
    worlds = []
    mixes = ((400, 400), (1500, 60), (60, 1500), (40, 20), (3000, 3000))
    for i, (kind, alignment) in enumerate((k, a) for k in ("near", "far") for a in (0.45, 0.6, 0.8)):
        for j, (n_id, n_ood) in enumerate(mixes):
            worlds.append(
                World(
                    seed=100 + 10 * i + j,
                    kind=kind,
                    alignment=alignment,
                    n_id=n_id,
                    n_ood=n_ood,
                    gap=(0.1, 0.2, 0.35)[(i + j) % 3],
                    noise=(1.0, 1.5, 0.8)[(2 * i + j) % 3],
                    n_classes=(20, 10, 50)[(i + 2 * j) % 3],
                    n_negatives=(270, 900, 270)[j % 3],
                )
            )
    return worlds + drawn_worlds(60, seed=777, first=5000)


def report_worlds() -> list[World]:
    """Streams that nothing was chosen on."""
    return drawn_worlds(30, seed=2025, first=20_000)


def drawn_worlds(n: int, seed: int, first: int) -> list[World]:
    """Worlds drawn at random: 50 to 50,000 images, mixes from 1:100 to 100:1, half of them near-OOD.

    Args:
        n: how many.
        seed: of the draw.
        first: the first world's own seed.
    """
    rng = np.random.default_rng(seed)
    worlds = []
    for number in range(n):
        length = 50 * 1000 ** rng.random()
        share = 1 / (1 + 100 ** rng.uniform(-1, 1))
        n_id = max(10, round(length * share))
        world = World(
            seed=first + number,
            kind=("near", "far")[number % 2],
            n_classes=int(rng.integers(4, 101)),
            n_negatives=int(100 * 20 ** rng.random()),
            n_id=n_id,
            n_ood=max(10, round(length) - n_id),
            alignment=round(rng.uniform(0.4, 0.85), 2),
            gap=round(rng.uniform(0.05, 0.4), 2),
            noise=round(rng.uniform(0.7, 1.6), 2),
            ood_classes=int(rng.integers(3, 40)),
            known=round(rng.uniform(0.1, 0.9), 2),
        )
        worlds.append(replace(world, n_negatives=max(world.n_negatives, world.ood_classes)))
    return worlds
