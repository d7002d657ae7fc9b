"""The text rows of a detector, by what the settings and the network offer."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sized
from pathlib import Path

from torch import Tensor

from adaneg_openood.benchmark.labels import named_classes, negatives_of
from adaneg_openood.benchmark.settings import LabelSettings, NameSettings
from adaneg_openood.data.feature_set import DEFAULT_LOGIT_SCALE
from adaneg_openood.detectors import DETECTORS
from adaneg_openood.io.configuration import checked
from adaneg_openood.openood.network_model import NetworkModel
from adaneg_openood.text import ClassNames, LabelFeatures, NegativeLabels, TextCache, label_features
from adaneg_openood.text.wordnet import WordNetMissing

logger = logging.getLogger(__name__)

_CORPUS = LabelSettings.model_fields["corpus"].default  # stands for "not given", too


def build_labels(
    method: str,
    model: NetworkModel,
    settings: NameSettings,
    *,
    n_classes: int | None,
    dataset: str | None,
    cache: TextCache,
) -> LabelFeatures:
    """Text rows of a method, where images are scored.

    Args:
        method: name of a detector.
        model: of the network.
        settings: :class:`~adaneg_openood.benchmark.settings.LabelSettings` for a method with negatives.
        n_classes, dataset: size and name of the ID data set, if known.
        cache: where encoded names are kept.

    Raises:
        ValueError: lists that do not fit each other or the data; nothing to get negatives from.
        TypeError: a text tower is needed and the network has none.
        OSError: a file of the settings cannot be read.
    """
    classes = named_classes(settings, "the YAML") if settings.classes is not None else None
    of_data = _names_of(dataset, n_classes)
    if classes is None and model.class_names is not None:
        classes = model.class_names
        if of_data is not None and of_data.names == classes.names:
            classes = of_data  # with its wnids
    ids = None if model.id_features is None else model.id_features.detach().float().cpu()
    _refuse_length("the class names", classes, n_classes)
    n_id = n_classes if classes is None else len(classes)
    _refuse_length("the network's ID text features", ids, n_id)
    scale = settings.logit_scale or model.logit_scale
    if scale is None:
        scale = DEFAULT_LOGIT_SCALE
        logger.warning("the network does not tell its logit scale; using %g (CLIP's)", scale)
    known, negatives = classes or of_data, None
    if settings.text_features is not None:
        n_id = n_classes if ids is None else len(ids)
        if known is None and n_id is not None:
            known = ClassNames(model.name, tuple(f"class {label}" for label in range(n_id)))
        if known is None:
            raise ValueError("text_features: how many of its rows are ID is not known; give classes")
        classes = known
    else:
        _refuse_without_tower(model, settings, known)
        if isinstance(settings, LabelSettings):
            negatives = _negatives(method, model, settings, known, ids, cache)
    learned = getattr(settings, "learned_prompts", None)
    tower = model if learned is None else model.towers
    made = label_features(
        tower if model.has_text_tower else None,
        known if ids is None or learned is not None else classes,
        negatives,
        prompt=settings.prompt,
        adjective_prompt=getattr(settings, "adjective_prompt", None),
        learned_prompts=learned,
        text_features=settings.text_features,
        id_features=ids,
        negative_features=model.negative_features,
        with_negatives=isinstance(settings, LabelSettings),
        logit_scale=float(scale),
        cache=cache,
    )
    return dataclasses.replace(made, features=made.features.to(model.device))


def _negatives(
    method: str,
    model: NetworkModel,
    settings: LabelSettings,
    classes: ClassNames | None,
    ids: Tensor | None,
    cache: TextCache,
) -> NegativeLabels | None:
    """The list of the settings, or a mined one; None where the network or learned prompts bring them."""
    mining = negatives_of(settings)
    if isinstance(mining, Path):
        return NegativeLabels.load(mining)
    if mining is None or (settings.corpus == _CORPUS and model.negative_features is not None):
        return None
    if DETECTORS[method].info.takes_corpus:
        mining = mining.of_all()
    try:
        return mining.run(model, classes, id_features=ids, cache=cache)
    except WordNetMissing as error:
        raise ValueError(
            "no negative labels: set negatives (a text file, one label per line) or corpus (a word list "
            f"to mine them from) in the YAML, or have WordNet. {error}"
        ) from None


def _refuse_without_tower(
    model: NetworkModel, settings: NameSettings, classes: ClassNames | None
) -> None:
    given, mined = getattr(settings, "negatives", None), getattr(settings, "corpus", _CORPUS) != _CORPUS
    if given is not None and mined:
        raise ValueError("negatives and corpus are both set; give the one that is meant")
    remedy = (
        "Use the network 'adaneg_clip' or OpenOOD's CLIPZeroshot, or set text_features in the YAML to a "
        "file of"
    )
    if model.has_text_tower:
        if classes is None and model.id_features is None:
            raise ValueError(
                f"the network {model.name} does not know its class names; set classes in the YAML to a "
                "text file, one name per line in the order of the labels"
            )
    elif model.id_features is None:
        raise TypeError(
            f"the network {model.name} has no text tower and gives no ID text features. {remedy} them."
        )
    elif isinstance(settings, LabelSettings) and (given or mined or model.negative_features is None):
        raise TypeError(
            f"the network {model.name} has no text tower, so negative labels cannot be encoded. "
            f"{remedy} ID and negative text features."
        )


def _refuse_length(what: str, values: Sized | None, n_classes: int | None) -> None:
    if values is not None and n_classes is not None and len(values) != n_classes:
        raise ValueError(
            f"{what} are {len(values)}, but the ID data set has {n_classes} classes; "
            "give one per class, in the order of the labels"
        )


def known_names(source: str) -> ClassNames:
    """Class names of a benchmark, the trial's among them, or of a file."""
    found = named_classes(checked(NameSettings, {"classes": source}, "class names"), "class names")
    assert found is not None  # a name was given
    return found


def _names_of(dataset: str | None, n_classes: int | None) -> ClassNames | None:
    """ID names of a known data set; None for others."""
    try:
        classes = known_names(dataset) if dataset else None
    except (ValueError, ImportError, OSError):  # a data set whose names nobody told
        return None
    return classes if classes is None or n_classes in (None, len(classes)) else None
