"""A vision-language model as the network of OpenOOD's evaluators and postprocessors."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adaneg_openood.text import class_names as read_class_names
from adaneg_openood.text import encode_names, label_features

logger = logging.getLogger(__name__)

NETWORK_KEYS = {
    "name": "adaneg_clip",
    "model": "open_clip:ViT-B-16/openai",
    "factory": "",
    "class_names": "",
    "template": "The nice {}.",
    "negatives": "",
    "precision": "auto",
    # OpenOOD's own, of its pipeline and data set YAMLs
    "num_classes": None,
    "num_gpus": None,
    "pretrained": None,
    "checkpoint": None,
}


class CLIPNetwork(nn.Module):
    """Zero-shot classifier that honours what OpenOOD asks of a network.

    The feature is the unit image feature, and the classifier ``fc`` has the scaled text features of the
    ID names for weights and no bias, so ``logits = s * cosines``.

    Args:
        model: of the vision-language protocol: ``encode_image``, ``encode_text``, ``logit_scale``,
            ``preprocess``, ``name``. None only with ``encode_image`` of a subclass.
        class_names: C names, in the order of the labels; needed unless ``id_features`` is given.
        template: prompt, with ``{}`` where the name goes.
        id_features: (C, D) text features of the ID names instead.
        negative_features: (M, D) text features of negative labels, for AdaNeg and NegLabel.

    Raises:
        ValueError: neither names nor features, or lists that do not fit.
        TypeError: a model without the towers.

    Example:
        >>> CLIPNetwork(load_model("open_clip:ViT-B-16/openai"), class_names)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Any,
        class_names: Sequence[str] | None = None,
        *,
        template: str = "The nice {}.",
        id_features: Tensor | None = None,
        negative_features: Tensor | None = None,
    ) -> None:
        super().__init__()
        if not callable(getattr(model, "encode_image", None)):
            raise TypeError(f"model must have encode_image(pixels), got a {type(model).__name__}")
        self.has_text_tower = callable(getattr(model, "encode_text", None))
        if class_names is None and id_features is None:
            raise ValueError("give class_names, one a class in the order of the labels, or id_features")
        if id_features is None:
            if not self.has_text_tower:
                raise TypeError(
                    f"{getattr(model, 'name', type(model).__name__)} has no text tower; give id_features"
                )
            assert class_names is not None  # checked above
            id_features = encode_names(model, class_names, template)
        assert id_features is not None
        if class_names is not None and len(class_names) != len(id_features):
            raise ValueError(f"{len(class_names)} class names, but {len(id_features)} ID text features")
        self.model = model
        self.class_names = None if class_names is None else tuple(class_names)
        self.template = template
        self.logit_scale = float(getattr(model, "logit_scale", 100.0))
        # names may have been encoded elsewhere; the network is where its towers are
        device = getattr(model, "device", None) or id_features.device
        unit = nn.functional.normalize(id_features.detach().to(device, torch.float32), dim=-1)
        self.register_buffer("id_features", unit)
        self.register_buffer(
            "negative_features",
            None if negative_features is None else negative_features.detach().float(),
        )
        n_classes, dim = unit.shape
        self.num_classes, self.feature_size = n_classes, dim
        self.fc = nn.Linear(dim, n_classes, bias=True)
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
        from adaneg_openood.openood.transforms import ModelTransform

        return ModelTransform(self.model)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D), unit length; with gradients if ``pixels`` want them (ODIN does)."""
        return encode_with_gradients(self.model, pixels)

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
    return CLIPNetwork(net, names_of(id_name))


def names_of(source: str) -> tuple[str, ...]:
    """Class names of a benchmark, the trial's among them, or of a file."""
    from adaneg_openood.openood import trial

    return trial.ID_NAMES if source == trial.NAME else read_class_names(source).names


def encode_with_gradients(model: Any, pixels: Tensor) -> Tensor:
    """``model.encode_image(pixels)``; where gradients are wanted, past the model's ``no_grad``."""
    encode = model.encode_image
    if pixels.requires_grad and torch.is_grad_enabled():
        behind = inspect.unwrap(getattr(type(model), "encode_image", encode))
        if behind is not encode:
            encode = functools.partial(behind, model)
    features: Tensor = encode(pixels)
    return features


def network_from_config(config: Mapping[str, Any]) -> CLIPNetwork:
    """The network of OpenOOD's ``network:`` section.

    Keys: ``model`` (a name :func:`adaneg_openood.vlm.load_model` takes), or ``factory``
    (``package.module:function`` without arguments, which returns a model); ``class_names`` (a
    benchmark's name or a text file, one name a line); ``template``; ``negatives`` (a text file of
    negative labels); ``precision``.

    Raises:
        ValueError: unknown keys, more than one GPU, or names that do not fit ``num_classes``.
    """
    from adaneg_openood.openood.settings import unknown_message

    odd = [key for key in config if key not in NETWORK_KEYS]
    if odd:
        said = "; ".join(unknown_message("setting", key, NETWORK_KEYS) for key in odd)
        raise ValueError(f"network: {said}")
    given = {**NETWORK_KEYS, **{key: value for key, value in config.items() if value not in (None, "")}}
    gpus = 1 if given["num_gpus"] is None else given["num_gpus"]
    if gpus > 1:
        raise ValueError(f"network: num_gpus is {gpus}; a stream cannot be split, run with --num_gpus 1")
    if not given["class_names"]:
        raise ValueError(
            "network: set class_names to a benchmark's name or to a text file with the ID names, one a "
            "line in label order (--network.class_names FILE)"
        )
    names = read_class_names(given["class_names"])
    if given["num_classes"] and given["num_classes"] != len(names):
        raise ValueError(
            f"network: {given['class_names']} holds {len(names)} names, but the data set has "
            f"{given['num_classes']} classes"
        )
    device = torch.device("cuda" if gpus and torch.cuda.is_available() else "cpu")
    model = _make(given["factory"]) if given["factory"] else _load(given, device)
    ids = negatives = None
    if given["negatives"]:
        labels = label_features(model, names, given["negatives"], prompt=given["template"])
        ids, negatives = labels.features.split([labels.n_id, labels.n_negatives])
    network = CLIPNetwork(
        model, names.names, template=given["template"], id_features=ids, negative_features=negatives
    )
    return network.to(device)


def _load(given: Mapping[str, Any], device: torch.device) -> Any:
    from adaneg_openood.vlm import load_model

    return load_model(given["model"], device=device, precision=given["precision"])


def _make(factory: str) -> Any:
    module, colon, function = factory.partition(":")
    if not colon:
        raise ValueError(f"network: factory must be 'package.module:function', got {factory!r}")
    return getattr(importlib.import_module(module), function)()
