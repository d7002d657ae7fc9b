"""A vision-language model as the network of OpenOOD's evaluators and postprocessors."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torchvision.transforms import Compose

from adaneg_openood.benchmark.labels import named_classes
from adaneg_openood.benchmark.settings import ModelSettings, NameSettings
from adaneg_openood.data.batches import image_transform
from adaneg_openood.data.feature_set import DEFAULT_LOGIT_SCALE
from adaneg_openood.io.configuration import checked
from adaneg_openood.openood.compat import CLIP_NORMALIZATION
from adaneg_openood.openood.labels import known_names
from adaneg_openood.text import ClassNames, label_features
from adaneg_openood.vlm import load_model


class Normalization:
    """Tells OpenOOD the mean and std that the step before has used already; changes nothing."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = tuple(mean), tuple(std)

    def __call__(self, pixels: Any) -> Any:
        return pixels


class ModelTransform(Compose):  # type: ignore[misc]
    """PIL image -> (3, H, W) tensor, by the model.

    OpenOOD asks an ImageNet preprocessor for the mean and std of its last transform (ImageNet-C is
    normalised by them), and takes a ``Compose`` only.
    """

    def __init__(self, model: Any) -> None:
        transform = image_transform(model)
        mean, std = CLIP_NORMALIZATION  # unless a step of the transform has them
        for step in [transform, *getattr(transform, "transforms", [])]:
            if hasattr(step, "mean") and hasattr(step, "std"):
                mean, std = step.mean, step.std
        super().__init__([transform, Normalization(mean, std)])
        name = getattr(transform, "__qualname__", repr(transform))
        about = getattr(model, "preprocessing", None) or name
        # what tells it from other models' preprocessing, also in another process
        self.key = f"{getattr(model, 'name', type(model).__name__)}: {about}"


class PixelsWanted(RuntimeError):
    """A method needs the images themselves."""


class CLIPNetwork(nn.Module):
    """Zero-shot classifier that honours what OpenOOD asks of a network.

    The feature is the unit image feature, and the classifier ``fc`` has the scaled text features of the
    ID names for weights and no bias, so ``logits = s * cosines``.

    Args:
        model: of the vision-language protocol: ``encode_image``, ``encode_text``, ``logit_scale``,
            ``preprocess``, ``name``. None only with ``encode_image`` of a subclass.
        class_names: C names in the order of the labels, or what
            :func:`adaneg_openood.text.class_names` gives; needed unless ``id_features`` is given.
        prompt: template of the names, see :func:`adaneg_openood.text.templates`; None is ``"nice"``.
        id_features: (C, D) text features of the ID names instead.
        negative_features: (M, D) text features of negative labels, for AdaNeg and NegLabel.

    Raises:
        ValueError: neither names nor features, or lists that do not fit.
        TypeError: a model without the towers.

    Example:
        >>> model = load_model("open_clip:ViT-B-16/openai")  # doctest: +SKIP
        >>> CLIPNetwork(model, class_names("imagenet"))  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Any,
        class_names: ClassNames | Sequence[str] | None = None,
        *,
        prompt: str | None = None,
        id_features: Tensor | None = None,
        negative_features: Tensor | None = None,
    ) -> None:
        super().__init__()
        if not callable(getattr(model, "encode_image", None)):
            raise TypeError(f"model must have encode_image(pixels), got a {type(model).__name__}")
        self.has_text_tower = callable(getattr(model, "encode_text", None))
        self.model = model
        if class_names is not None and not isinstance(class_names, ClassNames):
            class_names = ClassNames(self.name, tuple(class_names))
        self.class_names = class_names
        if id_features is None:
            if class_names is None:
                raise ValueError(
                    "give class_names, one per class in the order of the labels, or id_features"
                )
            if not self.has_text_tower:
                raise TypeError(f"{self.name} has no text tower; give id_features")
            made = label_features(model, class_names, prompt=prompt, with_negatives=False)
            id_features = made.features
        if class_names is not None and len(class_names) != len(id_features):
            raise ValueError(f"{len(class_names)} class names, but {len(id_features)} ID text features")
        self.logit_scale = float(getattr(model, "logit_scale", DEFAULT_LOGIT_SCALE))
        # names may have been encoded elsewhere; the network is where its towers are
        device = getattr(model, "device", None) or id_features.device
        unit = nn.functional.normalize(id_features.detach().to(device, torch.float32), dim=-1)
        self.register_buffer("id_features", unit)
        negatives = None if negative_features is None else negative_features.detach().float()
        self.register_buffer("negative_features", negatives)
        self.num_classes, self.feature_size = unit.shape
        self.fc = nn.Linear(self.feature_size, self.num_classes)
        with torch.no_grad():
            self.fc.weight.copy_(unit * self.logit_scale)
            self.fc.bias.zero_()
        self.fc.requires_grad_(False)
        self.to(unit.device)
        self.eval()

    id_features: Tensor
    negative_features: Tensor | None

    @property
    def name(self) -> str:
        """The model's name."""
        return str(getattr(self.model, "name", type(self.model).__name__))

    @property
    def device(self) -> torch.device:
        """Where images are encoded."""
        return self.id_features.device

    @property
    def preprocess(self) -> Any:
        """PIL image -> (3, H, W) tensor; pass it to OpenOOD's Evaluator as ``preprocessor``.

        Raises:
            AttributeError: the model has no ``preprocess``.
        """
        return ModelTransform(self.model)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D), unit length; with gradients if ``pixels`` want them (ODIN does).

        Features (B, D), which loaders may give instead of pixels, are returned as they are.

        Raises:
            PixelsWanted: gradients are wanted, and features were given.
        """
        wants_gradients = pixels.requires_grad and torch.is_grad_enabled()
        if pixels.ndim == 2:
            if wants_gradients:
                raise PixelsWanted("the method differentiates by pixels, and was given features")
            return pixels
        encode = self.model.encode_image
        if wants_gradients:  # past the model's no_grad
            behind = inspect.unwrap(getattr(type(self.model), "encode_image", encode))
            if behind is not encode:
                encode = functools.partial(behind, self.model)
        features: Tensor = encode(pixels)
        return features

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """N texts -> (N, D) float32, unit length."""
        features: Tensor = self.model.encode_text(list(texts))
        return features

    def forward(self, x: Tensor, return_feature: bool = False, return_feature_list: bool = False) -> Any:
        """Logits (B, C), and with ``return_feature`` the features (B, D).

        With ``return_feature_list`` a list of one, (B, D, 1, 1): a tower has no ResNet stages.
        """
        feature = self.encode_image(x).to(self.fc.weight.dtype)
        logits = self.fc(feature)
        if return_feature:
            return logits, feature
        if return_feature_list:
            return logits, [feature[:, :, None, None]]
        return logits

    def forward_threshold(self, x: Tensor, threshold: float) -> Tensor:
        """Logits of features that were cut off above ``threshold`` (ReAct)."""
        feature = self.encode_image(x).to(self.fc.weight.dtype).clip(max=threshold)
        logits: Tensor = self.fc(feature)
        return logits

    def intermediate_forward(self, x: Tensor, layer_index: int | None = None) -> Tensor:
        """The image feature (B, D), which knn-like methods ask for.

        Raises:
            NotImplementedError: a layer is asked for; an image tower is not a ResNet.
        """
        if layer_index is not None:
            raise NotImplementedError(
                "an image tower has no ResNet stages, so no layer can be asked for"
            )
        return self.encode_image(x)

    def get_fc(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights (C, D) and biases (C,) of the classifier, float32."""
        return self.fc.weight.detach().cpu().numpy(), self.fc.bias.detach().cpu().numpy()

    def get_fc_layer(self) -> nn.Linear:
        """The classifier."""
        return self.fc

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        super()._apply(fn, *args, **kwargs)
        # the model need not be a Module, yet it has to follow when the network is moved
        if not isinstance(self.model, nn.Module) and callable(getattr(self.model, "to", None)):
            if torch.device(getattr(self.model, "device", self.device)) != self.device:
                self.model.to(self.device)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> CLIPNetwork:
        # frozen towers are shared: some of OpenOOD's postprocessors copy their network
        clone = self.__class__.__new__(self.__class__)
        memo[id(self)] = clone
        for key, value in self.__dict__.items():
            clone.__dict__[key] = value if key == "model" else copy.deepcopy(value, memo)
        return clone


def as_network(net: Any, id_name: str) -> Any:
    """``net`` itself, or a bare image-text model with the class names of a benchmark around it.

    Raises:
        ValueError: a bare model, and the benchmark's class names are not known.
    """
    if isinstance(net, nn.Module) or not callable(getattr(net, "encode_text", None)):
        return net
    return CLIPNetwork(net, known_names(id_name))


class NetworkSettings(ModelSettings, NameSettings):
    """The ``network:`` section of OpenOOD's configuration."""

    factory: str = Field(
        "", description="package.module:function, which returns a model; instead of model."
    )
    # OpenOOD's own, of its pipeline and data set YAMLs
    name: Any = None
    num_classes: Optional[int] = None
    num_gpus: Optional[int] = None
    pretrained: Any = None
    checkpoint: Any = None


def network_from_config(config: Mapping[str, Any]) -> CLIPNetwork:
    """The network of OpenOOD's ``network:`` section, see :class:`NetworkSettings`.

    Raises:
        ValueError: unknown keys, no classes, or names that do not fit ``num_classes``.
    """
    settings = checked(NetworkSettings, dict(config), "network")
    names = named_classes(settings, "network")
    if names is None:
        raise ValueError(
            "network: set classes to a benchmark's name or to a text file with the ID names, one per "
            "line in the order of the labels (--network.classes FILE)"
        )
    if settings.num_classes and settings.num_classes != len(names):
        raise ValueError(
            f"network: {names.source} holds {len(names)} names, but the data set has "
            f"{settings.num_classes} classes"
        )
    device = torch.device("cuda" if settings.num_gpus != 0 and torch.cuda.is_available() else "cpu")
    model = _load(settings, device)
    own, prompt = settings.text_features, settings.prompt
    rows = label_features(model, names, prompt=prompt, text_features=own, with_negatives=False)
    return CLIPNetwork(model, names, id_features=rows.features[: rows.n_id]).to(device)


def _load(settings: NetworkSettings, device: torch.device) -> Any:
    if not settings.factory:
        how = {"precision": settings.precision, "preprocessing": settings.preprocessing}
        return load_model(settings.model, device=device, **how)
    module, colon, function = settings.factory.partition(":")
    if not colon:
        raise ValueError(f"network: factory must be 'package.module:function', got {settings.factory!r}")
    return getattr(importlib.import_module(module), function)()
