"""The text features a detector works with, by what the settings and the network offer."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import torch

from adaneg_openood.openood.settings import LabelSettings
from adaneg_openood.openood.text_model import CLIP_SCALE, TextModel
from adaneg_openood.openood.text_tower import Towers
from adaneg_openood.text import (
    ClassNames,
    LabelFeatures,
    Mining,
    MiningConfig,
    NegativeLabels,
    TextCache,
    class_names,
    label_features,
)
from adaneg_openood.text.wordnet import WordNetMissing

logger = logging.getLogger(__name__)


@torch.no_grad()
def build_labels(
    towers: Towers,
    settings: Mapping[str, Any],
    *,
    n_classes: int | None,
    dataset: str | None,
    with_negatives: bool,
) -> LabelFeatures:
    """Text features by what the settings and the network offer, where images are scored.

    Args:
        towers: of the network.
        settings: see :class:`~adaneg_openood.openood.settings.LabelSettings`.
        n_classes: of the ID data set, if known; lists of another length are refused.
        dataset: name of the ID data set, if known: then its class names are, too.
        with_negatives: whether the method uses negative labels.

    Raises:
        ValueError: lists that do not fit each other or the data; nothing to get negatives from.
        TypeError: a text tower is needed and the network has none.
        FileNotFoundError: a file of the settings is not there.
    """
    classes = _class_names(towers, settings)
    ids = towers.id_features
    _refuse_length("the class names", classes, n_classes)
    _refuse_length("the network's ID text features", ids, n_classes)
    if classes is not None and ids is not None and len(classes) != len(ids):
        raise ValueError(
            f"{len(classes)} class names, but the network has {len(ids)} classes; "
            "give one name per class, in the order of the labels"
        )
    scale = settings["logit_scale"] or towers.logit_scale
    if scale is None:
        logger.warning("the network does not tell its logit scale; using %g (CLIP's)", CLIP_SCALE)
        scale = CLIP_SCALE
    known = classes or _names_of_dataset(dataset, n_classes)
    if settings["text_features"]:
        n_id = n_classes if ids is None else len(ids)
        if known is None and n_id is not None:
            known = ClassNames(towers.name, tuple(f"class {label}" for label in range(n_id)))
        if known is None:
            raise ValueError("text_features: how many of its rows are ID is not known; give class_names")
        made = label_features(
            None,
            known,
            text_features=settings["text_features"],
            with_negatives=with_negatives,
            logit_scale=float(scale),
        )
    else:
        classes = known if ids is None else classes
        _refuse_no_tower(towers, classes, settings, with_negatives)
        model = None if towers.encode_text is None else TextModel(towers)
        negatives = _negatives(model, settings, towers, known) if with_negatives else None
        made = label_features(
            model,
            classes,
            negatives,
            prompt=_chosen(settings, "template"),
            adjective_prompt=_chosen(settings, "adjective_template"),
            id_features=ids,
            negative_features=towers.negative_features,
            with_negatives=with_negatives,
            logit_scale=float(scale),
            cache=_cache(settings),
        )
    return dataclasses.replace(made, features=made.features.to(towers.scoring_device))


def _class_names(towers: Towers, settings: Mapping[str, Any]) -> ClassNames | None:
    """ID names that the user or the network tells."""
    if settings["class_names"]:
        return class_names(settings["class_names"])
    if towers.class_names is not None:
        return ClassNames(towers.name, towers.class_names)
    return None


def _names_of_dataset(dataset: str | None, n_classes: int | None) -> ClassNames | None:
    """ID names of a known data set; None for others."""
    try:
        classes = class_names(dataset or "")
    except (ValueError, ImportError):  # a data set whose names nobody told
        return None
    return classes if n_classes is None or len(classes) == n_classes else None


def _refuse_no_tower(
    towers: Towers, classes: ClassNames | None, settings: Mapping[str, Any], with_negatives: bool
) -> None:
    if settings["negatives"] and settings["candidates"]:
        raise ValueError("negatives and candidates are both set; give the one that is meant")
    if towers.encode_text is None and towers.id_features is None:
        raise TypeError(
            f"the network {towers.name} has no text tower and gives no ID text features. Use the "
            "network 'adaneg_clip' or OpenOOD's CLIPZeroshot, or set text_features in the YAML to a "
            "file of them."
        )
    if classes is None and towers.id_features is None:
        raise ValueError(
            f"the network {towers.name} does not know its class names; set class_names in the YAML to a "
            "text file, one name per line in the order of the labels"
        )
    given = settings["negatives"] or settings["candidates"]
    if with_negatives and towers.encode_text is None and (given or towers.negative_features is None):
        raise TypeError(
            f"the network {towers.name} has no text tower, so negative labels cannot be encoded. Use "
            "the network 'adaneg_clip' or CLIPZeroshot, or set text_features in the YAML to a file that "
            "holds ID and negative text features."
        )


def _negatives(
    model: TextModel | None, settings: Mapping[str, Any], towers: Towers, classes: ClassNames | None
) -> NegativeLabels | None:
    """The list of the settings, or a mined one; None where the network brings their features."""
    if settings["negatives"]:
        return NegativeLabels.load(settings["negatives"])
    if not settings["candidates"] and towers.negative_features is not None:
        return None
    assert model is not None  # without a tower it was refused
    config = MiningConfig(
        n_negatives=settings["n_negatives"],
        percentile=settings["percentile"],
        prompt=_chosen(settings, "template"),
        adjective_prompt=_chosen(settings, "adjective_template"),
    )
    ids = None if towers.id_features is None else towers.id_features.float().cpu()
    try:
        return Mining(config, settings["candidates"] or "wordnet").run(
            model, classes, id_features=ids, cache=_cache(settings)
        )
    except WordNetMissing as error:
        raise ValueError(
            "no negative labels: set negatives (a text file, one label per line) or candidates (a word "
            f"list to mine them from) in the YAML, or have WordNet. {error}"
        ) from None


def _chosen(settings: Mapping[str, Any], name: str) -> str | None:
    """A template that differs from the default; None lets the list of negatives decide."""
    return None if settings[name] == getattr(LabelSettings, name) else str(settings[name])


def _cache(settings: Mapping[str, Any]) -> TextCache:
    return TextCache(settings["cache_dir"] or None)


def _refuse_length(what: str, values: Any, n_classes: int | None) -> None:
    if values is not None and n_classes is not None and len(values) != n_classes:
        raise ValueError(
            f"{what} are {len(values)}, but the ID data set has {n_classes} classes; "
            "give one per class, in the order of the labels"
        )
