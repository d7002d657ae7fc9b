"""Text and image features out of whatever network OpenOOD was given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adaneg_openood.openood.compat import refuse

_TEXTS = 512  # texts encoded at a time


@dataclass(frozen=True)
class Towers:
    """What the postprocessors ask of a network.

    Attributes:
        encode_image: (B, 3, H, W) on the network's device -> (B, D).
        encode_text: N texts -> (N, D); None where the network has no text tower.
        id_features: (C, D) features of the ID names as the network uses them; None if it does not tell.
        negative_features: (M, D) features of negative labels; None if the network has none.
        class_names: C names; None if the network does not tell.
        logit_scale: s; None if the network does not tell.
        device: where images are encoded.
        name: of the model, for cache keys.
    """

    encode_image: Callable[[Tensor], Tensor]
    encode_text: Callable[[Sequence[str]], Tensor] | None
    id_features: Tensor | None
    negative_features: Tensor | None
    class_names: tuple[str, ...] | None
    logit_scale: float | None
    device: torch.device
    name: str

    @property
    def scoring_device(self) -> torch.device:
        """Where features are kept and scored: where they are made, but MPS lacks float64."""
        return torch.device("cpu") if self.device.type == "mps" else self.device


def towers_of(net: Any) -> Towers:
    """Find the towers of a network.

    Understood are, in this order: a network with ``encode_image`` (this package's, or any object of
    the vision-language protocol); OpenOOD's ``CLIPZeroshot``; a network that returns features when
    called with ``return_feature=True``, which has no text tower.

    Raises:
        TypeError: none of these.
    """
    net = getattr(net, "module", net)  # DataParallel
    device = device_of(net)
    if callable(getattr(net, "encode_image", None)):
        names = getattr(net, "class_names", None)
        scale = getattr(net, "logit_scale", None)
        return Towers(
            net.encode_image,
            getattr(net, "encode_text", None) if getattr(net, "has_text_tower", True) else None,
            getattr(net, "id_features", None),
            getattr(net, "negative_features", None),
            None if names is None else tuple(names),
            _scale(scale),
            device,
            str(getattr(net, "name", type(net).__name__)),
        )
    if hasattr(net, "zeroshot_weights") and hasattr(net, "model"):
        return _zeroshot(net, device)
    if callable(net):
        return Towers(
            lambda pixels: _returned_feature(net, pixels),
            encode_text=None,
            id_features=None,
            negative_features=None,
            class_names=None,
            logit_scale=None,
            device=device,
            name=type(net).__name__,
        )
    raise TypeError(
        f"the network is a {type(net).__name__}, which has no encode_image; use the network "
        "'adaneg_clip', OpenOOD's CLIPZeroshot, or an object with encode_image and encode_text"
    )


def _scale(value: Any) -> float | None:
    """s: a number is s itself, a tensor is CLIP's parameter, which is its logarithm."""
    if isinstance(value, Tensor):
        return float(value.detach().exp())
    return None if value is None else float(value)


def device_of(net: Any) -> torch.device:
    """The device of a network's parameters or buffers; its ``device`` attribute if it has none."""
    own = getattr(net, "device", None)
    if own is not None:
        return torch.device(own)
    for source in ("parameters", "buffers"):
        if hasattr(net, source):
            for tensor in getattr(net, source)():
                return torch.device(tensor.device)
    for name in ("zeroshot_weights", "id_features"):
        if isinstance(getattr(net, name, None), Tensor):
            return torch.device(getattr(net, name).device)
    return torch.device("cpu")


def version_of(net: Any) -> tuple[Any, ...]:
    """Changes when a network's parameters are replaced or written to; cheap."""
    net = getattr(net, "module", net)
    tensors = list(net.parameters()) if hasattr(net, "parameters") else []
    return (id(net), *((tensor.data_ptr(), tensor._version) for tensor in tensors))


def _zeroshot(net: Any, device: torch.device) -> Towers:
    """OpenOOD's ``CLIPZeroshot``: towers of OpenAI's package, (D, C) averaged text features."""
    model = net.model

    def encode_image(pixels: Tensor) -> Tensor:
        features: Tensor = model.encode_image(pixels)
        return features / features.norm(dim=-1, keepdim=True)

    def encode_text(texts: Sequence[str]) -> Tensor:
        try:
            import clip
        except ModuleNotFoundError:
            refuse("clip", "clip is not installed")
        parts = []
        for start in range(0, len(texts), _TEXTS):
            tokens = clip.tokenize(list(texts[start : start + _TEXTS]), truncate=True).to(device)
            features = model.encode_text(tokens).float()
            parts.append(features / features.norm(dim=-1, keepdim=True))
        return torch.cat(parts)

    scale = getattr(model, "logit_scale", None)
    visual = getattr(model, "visual", None)
    size = getattr(visual, "input_resolution", "")
    return Towers(
        encode_image,
        encode_text,
        net.zeroshot_weights.T,
        None,
        None,
        _scale(scale),
        device,
        f"CLIPZeroshot:{type(visual).__name__}{size}",
    )


def _returned_feature(net: Any, pixels: Tensor) -> Tensor:
    try:
        output = net(pixels, return_feature=True)
    except TypeError:
        raise TypeError(
            f"the network {type(net).__name__} takes no return_feature and has no encode_image, so it "
            "gives no image features. Use the network 'adaneg_clip' or OpenOOD's CLIPZeroshot."
        ) from None
    features: Tensor = output[1]
    return torch.nn.functional.normalize(features.flatten(1).float(), dim=-1)
