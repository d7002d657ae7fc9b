"""Whatever network OpenOOD was given, as an image-text model of this package."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adaneg_openood.io.digests import state_hash, state_version, tensor_digest
from adaneg_openood.openood.compat import refuse
from adaneg_openood.text import ClassNames
from adaneg_openood.vlm import TwoTowerModel, VisionLanguageModel

_TEXTS = 512  # texts encoded at a time


class NetworkModel:
    """The vision-language protocol on top of a network, as far as the network goes.

    Understood are, in this order: a network with ``encode_image`` (this package's, or any object of the
    vision-language protocol); OpenOOD's ``CLIPZeroshot``; a network that returns features when called
    with ``return_feature=True``, which has no text tower.

    Args:
        net: the network; a ``DataParallel`` is looked into.

    Attributes:
        name: of the model.
        device: where images are encoded.
        has_text_tower: whether :meth:`encode_text` works.
        id_features: (C, D) features of the ID names as the network uses them; None if it does not tell.
        negative_features: (M, D) features of negative labels; None if the network has none.
        class_names: the C classes; None if the network does not tell.
        logit_scale: s; None if the network does not tell.

    Raises:
        TypeError: none of these.
    """

    def __init__(self, net: Any) -> None:
        self.net = net = getattr(net, "module", net)
        self.device = device_of(net)
        self.transform: Any = None
        self.negative_features: Tensor | None = None
        self.class_names: ClassNames | None = None
        encode_text: Callable[[Sequence[str]], Tensor] | None = None
        if callable(getattr(net, "encode_image", None)):
            encode_image = net.encode_image
            if getattr(net, "has_text_tower", True):
                encode_text = getattr(net, "encode_text", None)
            ids, scale = getattr(net, "id_features", None), getattr(net, "logit_scale", None)
            self.negative_features = getattr(net, "negative_features", None)
            names = getattr(net, "class_names", None)
            self.name = str(getattr(net, "name", type(net).__name__))
            if names is not None and not isinstance(names, ClassNames):
                names = ClassNames(self.name, tuple(names))
            self.class_names = names
        elif hasattr(net, "zeroshot_weights") and hasattr(net, "model"):
            encode_image, encode_text = _unit(net.model.encode_image), self._tokenized
            ids, scale = net.zeroshot_weights.T, getattr(net.model, "logit_scale", None)
            visual = getattr(net.model, "visual", None)
            size = getattr(visual, "input_resolution", "")
            self.name = f"CLIPZeroshot:{type(visual).__name__}{size}"
        elif callable(net):
            encode_image, ids, scale = _unit(functools.partial(_returned_feature, net)), None, None
            self.name = type(net).__name__
        else:
            raise TypeError(
                f"the network is a {type(net).__name__}, which has no encode_image; use the network "
                "'adaneg_clip', OpenOOD's CLIPZeroshot, or an object with encode_image and encode_text"
            )
        self._encode_image, self._encode_text = encode_image, encode_text
        self.has_text_tower = encode_text is not None
        self.id_features: Tensor | None = ids
        # a number is s itself, a tensor is CLIP's parameter, which is its logarithm
        scale = scale.exp() if isinstance(scale, Tensor) else scale
        self.logit_scale: Any = None if scale is None else float(scale)
        inner = getattr(net, "model", net)
        self.context_length = getattr(inner, "context_length", None)
        self.token_count = getattr(inner, "token_count", None)
        self.version = version_of(net)

    @property
    def towers(self) -> VisionLanguageModel:
        """The model of this package within, whose text tower takes learned vectors; else self."""
        parts = self.net, getattr(self.net, "model", None)
        return next((part for part in parts if isinstance(part, TwoTowerModel)), self)

    @functools.cached_property
    def _text(self) -> Tensor:
        """The features of a text, by which widths and text towers are told."""
        return self.encode_text(["a photo."])

    @functools.cached_property
    def dim(self) -> int:
        """D, the width of the features."""
        if self.id_features is not None:
            return int(self.id_features.shape[1])
        if self.has_text_tower:
            return int(self._text.shape[1])
        from PIL import Image

        return int(self.encode_image(self.preprocess(Image.new("RGB", (8, 8)))[None]).shape[1])

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D) float32, unit length."""
        features: Tensor = self._encode_image(pixels.to(self.device))
        if features.ndim != 2 or len(features) != len(pixels):
            raise ValueError(
                f"the network {self.name} gave features of shape {tuple(features.shape)} for "
                f"{len(pixels)} images; one row per image is needed"
            )
        return features.float()

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """N texts -> (N, D) float32, unit length."""
        assert self._encode_text is not None, "see has_text_tower"
        return nn.functional.normalize(self._encode_text(list(texts)).float(), dim=-1)

    def preprocess(self, image: Any) -> Tensor:
        """The transform of :meth:`seen_through`, or the network's own."""
        transform = self.transform or getattr(self.net, "preprocess")  # noqa: B009
        pixels: Tensor = transform(image)
        return pixels

    def seen_through(self, transform: Any) -> NetworkModel:
        """The same model behind a data loader's transform."""
        model = object.__new__(type(self))
        # the weights are told once, not once per transform
        model.__dict__.update(self.__dict__, transform=transform, _weights=self._weights)
        return model

    def describe(self) -> dict[str, Any]:
        """What features depend on; without ``weights`` where that cannot be told."""
        about = {"model": self.name, "dim": self.dim, **self._weights}
        if self.transform is None:
            if "weights" not in about and self.has_text_tower:
                about["weights"] = tensor_digest(self._text)[:16]
            return about
        known = _settings_of(self.transform)
        if known is None:  # a transform that nothing tells from another
            return {name: value for name, value in about.items() if name != "weights"}
        return {**about, "preprocessing": known}

    @functools.cached_property
    def _weights(self) -> dict[str, Any]:
        inner = getattr(self.net, "model", self.net)
        for source in (self.net, inner):
            if callable(getattr(source, "describe", None)):
                return dict(source.describe())
        if not isinstance(inner, nn.Module):
            return {}
        digest = state_hash(inner.state_dict())
        if self.id_features is not None:
            digest.update(tensor_digest(self.id_features).encode())
        return {"weights": digest.hexdigest()[:16]}

    def to(self, device: Any) -> NetworkModel:
        """Stays where the network is."""
        return self

    def _tokenized(self, texts: Sequence[str]) -> Tensor:
        try:
            import clip
        except ModuleNotFoundError:
            refuse("clip", "clip is not installed")
        tokens = clip.tokenize(list(texts), truncate=True).to(self.device)
        return torch.cat([self.net.model.encode_text(part) for part in tokens.split(_TEXTS)])


def device_of(net: Any) -> torch.device:
    """A network's ``device`` attribute, or its parameters' device."""
    own = getattr(net, "device", None)
    if own is not None:
        return torch.device(own)
    parameters = net.parameters() if hasattr(net, "parameters") else ()
    return next((torch.device(tensor.device) for tensor in parameters), torch.device("cpu"))


def version_of(net: Any) -> tuple[Any, ...]:
    """Changes when weights of a network or of the model in it are replaced or written to; cheap."""
    net = getattr(net, "module", net)
    # the model need not be a Module, and its towers are then no parameters of the network
    inner = getattr(net, "model", None)
    parts = net, inner, getattr(inner, "model", None)
    return (id(net), *(state_version(part) for part in parts))


def _unit(encode: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda pixels: nn.functional.normalize(encode(pixels).float(), dim=-1)


def _returned_feature(net: Any, pixels: Tensor) -> Tensor:
    try:
        output = net(pixels, return_feature=True)
    except TypeError:
        raise TypeError(
            f"the network {type(net).__name__} takes no return_feature and has no encode_image, so it "
            "gives no image features. Use the network 'adaneg_clip' or OpenOOD's CLIPZeroshot."
        ) from None
    features: Tensor = output[1]
    return features.flatten(1)


def _settings_of(transform: Any) -> str | None:
    """A transform and its settings as text; None for one that nothing tells from another."""
    if isinstance(transform, (list, tuple)):
        parts = [_settings_of(item) for item in transform]
        return None if None in parts else f"[{', '.join(map(str, parts))}]"
    if isinstance(getattr(transform, "key", None), str):  # ModelTransform
        return str(transform.key)
    package = type(transform).__module__.partition(".")[0]
    steps = getattr(transform, "transforms", None) if package == "torchvision" else None
    if package == "openood" and hasattr(transform, "__dict__"):
        steps = list(vars(transform).values())
    if steps is not None:
        inner = _settings_of(steps)
        return None if inner is None else f"{type(transform).__qualname__}{inner}"
    # torchvision tells the settings of its own transforms, but for Lambda; a repr that a class has from
    # torch or torchvision does not know what the class adds
    author = getattr(type(transform).__repr__, "__module__", "").partition(".")[0]
    untold = package != "torchvision" and author in ("torch", "torchvision")
    text = repr(transform)
    return None if untold or " at 0x" in text or type(transform).__name__ == "Lambda" else text
