"""A model's own preprocessing, in the shape that OpenOOD expects of a preprocessor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchvision.transforms import Compose

# OpenAI CLIP's
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


class Normalization:
    """Tells OpenOOD the mean and std that the step before has used already; changes nothing."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = tuple(mean), tuple(std)

    def __call__(self, pixels: Any) -> Any:
        return pixels

    def __repr__(self) -> str:
        return f"Normalization(mean={self.mean}, std={self.std})"


class ModelTransform(Compose):  # type: ignore[misc]
    """PIL image -> (3, H, W) tensor, by the model.

    OpenOOD asks an ImageNet preprocessor for the mean and std of its last transform (ImageNet-C is
    normalised by them), and takes a ``Compose`` only.

    Args:
        model: of the vision-language protocol.
    """

    def __init__(self, model: Any) -> None:
        # the transform behind a model's method: data loaders' workers must not be sent the model
        transform = getattr(model, "_preprocess", None) or model.preprocess
        mean, std = _statistics(transform)
        super().__init__([transform, Normalization(mean, std)])
        about = getattr(model, "preprocessing", None) or getattr(
            transform, "__qualname__", repr(transform)
        )
        # what tells it from other models' preprocessing, also in another process
        self.key = f"{getattr(model, 'name', type(model).__name__)}: {about}"


def _statistics(transform: Any) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std of the last normalisation found in a transform, or CLIP's."""
    steps = [transform, *getattr(transform, "transforms", [])]
    for step in reversed(steps):
        if hasattr(step, "mean") and hasattr(step, "std"):
            return step.mean, step.std
    return _MEAN, _STD
