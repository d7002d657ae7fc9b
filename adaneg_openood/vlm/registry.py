"""Models by name: ``prefix:what`` to a loader."""

from __future__ import annotations

import importlib
import os
from functools import reduce
from typing import Any, Callable

from adaneg_openood.io.checks import check_choice, is_installed
from adaneg_openood.vlm.base import PRECISIONS, VisionLanguageModel
from adaneg_openood.vlm.preprocessing import PREPROCESSINGS

DEFAULT_MODEL = "open_clip:ViT-B-16/openai"  # of the published numbers

Loader = Callable[..., VisionLanguageModel]
# "module:name" is imported when it is needed; so rooms above this one can be named
_LOADERS: dict[str, Loader | str] = {
    "clip": "adaneg_openood.vlm.openai_clip:OpenAIClip.load",
    "demo": "adaneg_openood.demo.model:load",
    "hf": "adaneg_openood.vlm.huggingface:HuggingFaceClip.load",
    "open_clip": "adaneg_openood.vlm.open_clip:OpenClip.load",
}
# prefix -> the module it needs, and what installs it
_LIBRARIES = {
    "clip": ("clip.clip", 'pip install "adaneg_openood[clip]"'),
    "demo": ("open_clip", "pip install open_clip_torch"),
    "hf": ("transformers", 'pip install "adaneg_openood[hf]"'),
    "open_clip": ("open_clip", "pip install open_clip_torch"),
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
        ValueError: an unknown prefix or name, precision or preprocessing.
        ImportError: the model's library is not installed; the message says how to install it.

    Example:
        >>> load_model("resnet:50")
        Traceback (most recent call last):
        ...
        ValueError: unknown kind of model 'resnet' in 'resnet:50'; known are clip, demo, hf, open_clip
    """
    prefix, rest = _split(name)
    check_choice("precision", options.get("precision", "auto"), PRECISIONS)
    check_choice("preprocessing", options.get("preprocessing", "model"), PREPROCESSINGS)
    loader: Any = _LOADERS[prefix]
    if isinstance(loader, str):
        module, _, path = loader.partition(":")
        loader = reduce(getattr, path.split("."), importlib.import_module(module))
    return loader(rest, **options)  # type: ignore[no-any-return]


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
    prefix, place = _split(name)
    if prefix == "demo":
        return "demo, which comes with this package"
    if prefix == "open_clip":
        from adaneg_openood.vlm.open_clip import check_names, parse_name

        architecture, weights = parse_name(place)
        check_names(architecture, weights)
        place = (weights or architecture).removeprefix("local-dir:")
    place = os.path.expanduser(place)
    if place.startswith(("/", ".")):
        if not os.path.exists(place):
            raise FileNotFoundError(f"no such weights: {place}")
        return f"{name}; its files are here"
    return f"{name}; its weights are fetched at first use unless they are cached"


def _split(name: str) -> tuple[str, str]:
    """Prefix and what follows it, of a name whose library is there."""
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
    module, command = _LIBRARIES.get(prefix, ("", ""))
    if module and not is_installed(module):
        raise ImportError(f"{name} needs {module.partition('.')[0]}: {command}")
    return prefix, rest
