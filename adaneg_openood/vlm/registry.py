"""Models by name: ``prefix:what`` to a loader."""

from __future__ import annotations

import os
from typing import Any, Callable

from adaneg_openood.vlm.base import VisionLanguageModel

DEFAULT_MODEL = "open_clip:ViT-B-16/openai"  # of the published numbers

Loader = Callable[..., VisionLanguageModel]
_LOADERS: dict[str, Loader] = {}


def register(prefix: str) -> Callable[[Loader], Loader]:
    """Decorator: names that start with ``prefix:`` are loaded by this function.

    It is called with what follows the prefix, and the options of :func:`load_model`.
    """

    def keep(loader: Loader) -> Loader:
        _LOADERS[prefix] = loader
        return loader

    return keep


def load_model(name: str, **options: Any) -> VisionLanguageModel:
    """Load a model by name.

    Args:
        name: ``"open_clip:ViT-B-16/openai"`` (architecture/tag),
            ``"open_clip:ViT-B-16//data/model.safetensors"`` (architecture/file),
            ``"open_clip:local-dir:/folder"``, ``"hf:openai/clip-vit-base-patch16"`` or
            ``"hf:/folder"`` (transformers), ``"clip:ViT-B/16"`` (OpenAI's package), or ``"demo"``,
            the tiny model that comes with this package. Without a prefix, open_clip.
        options: ``device``, ``precision`` and ``preprocessing`` for all; each loader's own.

    Raises:
        ValueError: unknown prefix or name.
        ImportError: the model's library is not installed.

    Example:
        >>> load_model("resnet:50")
        Traceback (most recent call last):
        ...
        ValueError: unknown kind of model 'resnet' in 'resnet:50'; known are clip, demo, hf, open_clip
    """
    prefix, colon, rest = name.partition(":")
    if name == "demo":
        rest = name
    elif not colon or prefix in ("local-dir", "hf-hub"):
        prefix, rest = "open_clip", name
    if prefix not in _LOADERS:
        raise ValueError(
            f"unknown kind of model {prefix!r} in {name!r}; known are {', '.join(sorted(_LOADERS))}"
        )
    if not rest:
        raise ValueError(f"{name!r} names no model after the colon")
    return _LOADERS[prefix](rest, **options)


@register("open_clip")
def _open_clip(name: str, **options: Any) -> VisionLanguageModel:
    from adaneg_openood.vlm.open_clip import OpenClip

    if name.startswith(("local-dir:", "hf-hub:")):
        return OpenClip.load(name, **options)
    architecture, slash, weights = name.partition("/")
    return OpenClip.load(architecture, os.path.expanduser(weights) if slash else None, **options)


@register("demo")
def _demo(
    name: str, *, device: str = "cpu", precision: str = "auto", preprocessing: str = "model"
) -> VisionLanguageModel:
    from adaneg_openood.demo.model import load_demo_model
    from adaneg_openood.vlm.base import check_precision

    if preprocessing != "model":
        raise ValueError(f"the demo's model has its own preprocessing only, got {preprocessing!r}")
    check_precision(precision)
    model = load_demo_model()
    model.precision = precision
    return model.to(device)


@register("clip")
def _openai(name: str, **options: Any) -> VisionLanguageModel:
    from adaneg_openood.vlm.openai_clip import OpenAIClip

    return OpenAIClip.load(name, **options)


@register("hf")
def _transformers(name: str, **options: Any) -> VisionLanguageModel:
    from adaneg_openood.vlm.huggingface import HuggingFaceClip

    return HuggingFaceClip.load(name, **options)
