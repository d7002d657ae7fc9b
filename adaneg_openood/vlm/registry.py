"""Models by name: ``prefix:what`` to a loader."""

from __future__ import annotations

import importlib.util
import os
from typing import Any, Callable

from adaneg_openood.vlm.base import VisionLanguageModel

DEFAULT_MODEL = "open_clip:ViT-B-16/openai"  # of the published numbers

Loader = Callable[..., VisionLanguageModel]
_LOADERS: dict[str, Loader] = {}
_LIBRARIES = {  # module that a kind of model needs, and the command that installs it
    "open_clip": ("open_clip", "pip install open_clip_torch"),
    "clip": ("clip.clip", 'pip install "adaneg_openood[clip]"'),
    "hf": ("transformers", 'pip install "adaneg_openood[hf]"'),
}


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
    prefix, rest = _split(name)
    return _LOADERS[prefix](rest, **options)


def check_model(name: str) -> str:
    """Whether a model can be loaded, as far as can be told without its weights.

    Args:
        name: as for :func:`load_model`.

    Returns:
        One line about it.

    Raises:
        ValueError: an unknown prefix, architecture or tag.
        FileNotFoundError: weights or a folder that are not there.
        ImportError: the model's library is not installed.
    """
    prefix, rest = _split(name)
    if prefix == "demo":
        return "demo, which comes with this package"
    module, command = _LIBRARIES[prefix]
    if not _is_installed(module):
        raise ImportError(f"{name} needs the package {module.partition('.')[0]}: {command}")
    if prefix == "open_clip":
        from adaneg_openood.vlm.open_clip import check_names

        architecture, slash, weights = rest.partition("/")
        if rest.startswith(("local-dir:", "hf-hub:")):
            architecture, slash, weights = rest, "", ""
        check_names(architecture, os.path.expanduser(weights) if slash else None)
    place = (weights if prefix == "open_clip" else rest).removeprefix("local-dir:")
    if place.startswith(("/", "~", ".")):
        if not os.path.exists(os.path.expanduser(place)):
            raise FileNotFoundError(f"no such weights: {place}")
        return f"{name}; its files are here"
    return f"{name}; its weights are fetched at first use unless they are cached"


def _split(name: str) -> tuple[str, str]:
    """Prefix, and what follows it."""
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
    return prefix, rest


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that a submodule is in
        return False
    except ValueError:  # loaded without a spec, by hand
        return True


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
