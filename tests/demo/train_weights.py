"""How the embedded weights were made: ``python tests/demo/train_weights.py weights.safetensors``.

CLIP's own objective on drawn images and their captions. Every batch shows each word's thing once, so no
two images of a batch share a caption. Only the loss and the zero-shot accuracy on a validation seed are
looked at; no OOD score is.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
import typer
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from adaneg_openood.demo.model import (
    ADJECTIVE_TEMPLATE,
    TEMPLATES,
    WordTokenizer,
    build_clip,
    preprocess,
)
from adaneg_openood.demo.world import ID_NAMES, NOUNS, draw

logger = logging.getLogger(__name__)

_TRAIN_SEED, _VALIDATION_SEED = 1001, 1002  # the benchmark has its own
_ADJECTIVE_SHARE = 0.2
_VALIDATION_PER_CLASS = 25


def train(path: Path, per_noun: int, epochs: int, seed: int) -> float:
    """Train and save; returns the zero-shot accuracy on validation images, in percent."""
    torch.manual_seed(seed)  # a script's own process
    rng = np.random.default_rng([_TRAIN_SEED, seed])
    transform, tokenizer = preprocess(), WordTokenizer()
    images = torch.empty(len(NOUNS), per_noun, 3, 64, 64, dtype=torch.float16)
    adjectives: list[list[tuple[str, ...]]] = []
    for row, noun in zip(images, tqdm(NOUNS, desc="drawing")):
        drawn = [draw(noun, rng) for _ in range(per_noun)]
        row[:] = torch.stack([transform(d.image) for d in drawn])
        adjectives.append([d.adjectives for d in drawn])

    model = build_clip(tokenizer.vocab_size)
    steps = per_noun * epochs
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps, pct_start=0.1)
    bar = tqdm(total=steps, desc="training")
    for _ in range(epochs):
        order = np.stack([rng.permutation(per_noun) for _ in NOUNS])
        for column in order.T:
            batch = images[torch.arange(len(NOUNS)), torch.from_numpy(column)].float()
            captions = [
                _caption(noun, adjectives[i][j], rng) for i, (noun, j) in enumerate(zip(NOUNS, column))
            ]
            loss = _contrastive(model, _augmented(batch), tokenizer(captions))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            with torch.no_grad():  # CLIP's own bound
                model.logit_scale.clamp_(max=float(np.log(100.0)))
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.2f}", scale=f"{model.logit_scale.exp().item():.0f}")
    accuracy = _validate(model, tokenizer)
    half = {
        name: value.half().contiguous() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    save_file(half, path)
    return accuracy


def _caption(noun: str, adjectives: tuple[str, ...], rng: np.random.Generator) -> str:
    if adjectives and rng.random() < _ADJECTIVE_SHARE:
        return ADJECTIVE_TEMPLATE.format(rng.choice(adjectives))
    if adjectives and rng.random() < 0.3:
        noun = f"{rng.choice(adjectives)} {noun}"
    return str(rng.choice(TEMPLATES)).format(noun)


def _augmented(batch: Tensor) -> Tensor:
    """Shifts and mirrors: the drawings vary in all else."""
    dy, dx = torch.randint(-5, 6, (2,)).tolist()
    batch = torch.roll(batch, (dy, dx), dims=(2, 3))
    flip = torch.rand(len(batch)) < 0.5
    return torch.where(flip[:, None, None, None], batch.flip(3), batch)


def _contrastive(model: nn.Module, pixels: Tensor, tokens: Tensor) -> Tensor:
    image = model.encode_image(pixels, normalize=True)  # type: ignore[operator]
    text = model.encode_text(tokens, normalize=True)  # type: ignore[operator]
    logits = model.logit_scale.exp() * image @ text.T  # type: ignore[operator, union-attr]
    target = torch.arange(len(logits))
    loss = nn.functional.cross_entropy
    return (loss(logits, target) + loss(logits.T, target)) / 2


@torch.no_grad()
def _validate(model: nn.Module, tokenizer: WordTokenizer) -> float:
    model.eval()
    rng = np.random.default_rng(_VALIDATION_SEED)
    transform = preprocess()
    text = model.encode_text(tokenizer([TEMPLATES[0].format(n) for n in ID_NAMES]), normalize=True)  # type: ignore[operator]
    right = 0
    for label, name in enumerate(ID_NAMES):
        pixels = torch.stack([transform(draw(name, rng).image) for _ in range(_VALIDATION_PER_CLASS)])
        image = model.encode_image(pixels, normalize=True)  # type: ignore[operator]
        right += int(((image @ text.T).argmax(dim=1) == label).sum())
    return 100 * right / (len(ID_NAMES) * _VALIDATION_PER_CLASS)


def main(path: Path, per_noun: int = 300, epochs: int = 6, seed: int = 0) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logger.info("zero-shot accuracy on validation images: %.1f %%", train(path, per_noun, epochs, seed))


if __name__ == "__main__":
    typer.run(main)
