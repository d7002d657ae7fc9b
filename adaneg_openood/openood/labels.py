"""The text features a detector works with: ID rows first, then negative labels."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adaneg_openood.io.digests import tensor_digest
from adaneg_openood.openood.text_model import CLIP_SCALE, TextModel
from adaneg_openood.openood.text_tower import Towers
from adaneg_openood.text.cache import TextCache, default_cache_folder
from adaneg_openood.text.classnames import IDClasses, id_classes
from adaneg_openood.text.corpus import load_corpus
from adaneg_openood.text.mining import mine_negatives
from adaneg_openood.text.negatives import MiningConfig, NegativeLabels, mine, split_counts
from adaneg_openood.text.prompts import encode_names
from adaneg_openood.text.wordnet import WordNetMissing
from adaneg_openood.vlm.checkpoints import check_checkpoint

logger = logging.getLogger(__name__)


class Labels(NamedTuple):
    """Text features and what a detector must know about them.

    Attributes:
        features: (C + M, D) float32 where images are scored, ID rows first; M = 0 for MCM.
        n_id: C.
        logit_scale: s.
    """

    features: Tensor
    n_id: int
    logit_scale: float

    @property
    def digest(self) -> str:
        """Of the features."""
        return tensor_digest(self.features)


@torch.no_grad()
def build_labels(
    towers: Towers,
    settings: Mapping[str, Any],
    *,
    n_classes: int | None,
    dataset: str | None,
    with_negatives: bool,
) -> Labels:
    """Text features by what the settings and the network offer.

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
    _refuse_length("the class names", classes, n_classes)
    _refuse_length("the network's ID text features", towers.id_features, n_classes)
    if (
        classes is not None
        and towers.id_features is not None
        and len(classes) != len(towers.id_features)
    ):
        raise ValueError(
            f"{len(classes)} class names, but the network has {len(towers.id_features)} classes; "
            "give one name a class, in the order of the labels"
        )
    scale = settings["logit_scale"] or towers.logit_scale
    if scale is None:
        logger.warning("the network does not tell its logit scale; using %g (CLIP's)", CLIP_SCALE)
        scale = CLIP_SCALE

    if settings["text_features"]:
        return _labels_from_file(towers, settings, classes, n_classes, float(scale), with_negatives)
    if classes is None and towers.id_features is None:
        classes = _names_of_dataset(dataset, n_classes)
    id_features = _id_features(towers, settings, classes)
    if not with_negatives:
        return Labels(_on(id_features, towers), len(id_features), float(scale))
    lookup = functools.partial(_names_of_dataset, dataset, n_classes)
    negatives = _negative_features(towers, settings, classes, lookup, id_features)
    if negatives.shape[1] != id_features.shape[1]:
        raise ValueError(
            f"negative labels have features of width {negatives.shape[1]}, "
            f"ID names of {id_features.shape[1]}"
        )
    features = torch.cat([_on(id_features, towers), _on(negatives, towers)])
    return Labels(features, len(id_features), float(scale))


def load_tensor(path: str | os.PathLike[str]) -> Tensor:
    """A (N, D) tensor from ``.safetensors`` or ``.pt``; nothing is unpickled but tensors.

    A file with several tensors must call the one that is meant ``text_features``.

    Raises:
        FileNotFoundError, ValueError: no such file, or no (N, D) floating-point tensor in it.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"text_features: there is no file {file}")
    check_checkpoint(file)
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        loaded: Any = load_file(str(file))
    else:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    if isinstance(loaded, dict):
        loaded = (
            loaded["text_features"] if "text_features" in loaded else next(iter(loaded.values()), None)
        )
    if not isinstance(loaded, Tensor) or loaded.ndim != 2 or not loaded.is_floating_point():
        found = tuple(loaded.shape) if isinstance(loaded, Tensor) else type(loaded).__name__
        raise ValueError(f"text_features: {file} must hold a (C + M, D) float tensor, found {found}")
    return loaded


def _labels_from_file(
    towers: Towers,
    settings: Mapping[str, Any],
    classes: IDClasses | None,
    n_classes: int | None,
    scale: float,
    with_negatives: bool,
) -> Labels:
    features = load_tensor(settings["text_features"])
    counts = (
        len(classes) if classes is not None else None,
        len(towers.id_features) if towers.id_features is not None else None,
        n_classes,
    )
    n_id = next((count for count in counts if count is not None), None)
    if n_id is None:
        raise ValueError("text_features: how many of its rows are ID is not known; give class_names")
    if len(features) <= n_id and with_negatives:
        raise ValueError(
            f"text_features: {settings['text_features']} holds {len(features)} rows, {n_id} of them ID: "
            "no negative label is left"
        )
    return Labels(_on(features, towers), n_id, scale)


def _class_names(towers: Towers, settings: Mapping[str, Any]) -> IDClasses | None:
    """ID names that the user or the network tells."""
    if settings["class_names"]:
        return id_classes(settings["class_names"])
    if towers.class_names is not None:
        return IDClasses(towers.name, towers.class_names)
    return None


def _names_of_dataset(dataset: str | None, n_classes: int | None) -> IDClasses | None:
    """ID names of a known data set; None for others."""
    try:
        classes = id_classes(dataset or "")
    except (ValueError, ImportError):  # a data set whose names nobody told
        return None
    return classes if n_classes is None or len(classes) == n_classes else None


def _id_features(towers: Towers, settings: Mapping[str, Any], classes: IDClasses | None) -> Tensor:
    if towers.encode_text is not None and classes is not None:
        return encode_names(
            TextModel(towers), classes.names, settings["template"], cache=_cache(settings)
        )
    if towers.id_features is not None:
        return towers.id_features
    if towers.encode_text is None:
        raise TypeError(
            f"the network {towers.name} has no text tower and gives no ID text features. Use the "
            "network 'adaneg_clip' or OpenOOD's CLIPZeroshot, or set text_features in the YAML to a "
            "file of them."
        )
    raise ValueError(
        f"the network {towers.name} does not know its class names; set class_names in the YAML to a "
        "text file, one name a line in the order of the labels"
    )


def _negative_features(
    towers: Towers,
    settings: Mapping[str, Any],
    classes: IDClasses | None,
    lookup: Callable[[], IDClasses | None],
    id_features: Tensor,
) -> Tensor:
    if settings["negatives"] and settings["candidates"]:
        raise ValueError("negatives and candidates are both set; give the one that is meant")
    given = settings["negatives"] or settings["candidates"]
    if not given and towers.negative_features is not None:
        return towers.negative_features
    if towers.encode_text is None:
        raise TypeError(
            f"the network {towers.name} has no text tower, so negative labels cannot be encoded. Use "
            "the network 'adaneg_clip' or CLIPZeroshot, or set text_features in the YAML to a file that "
            "holds ID and negative text features."
        )
    model, cache = TextModel(towers), _cache(settings)
    if settings["negatives"]:
        negatives = NegativeLabels.load(settings["negatives"])
    else:
        # a data set's own names only serve to drop candidates, so they are looked up late
        negatives = _mine(model, settings, classes or lookup(), id_features, cache)
    parts = [
        encode_names(model, negatives.of_kind(kind), template, cache=cache)
        for kind, template in (("adj", settings["adjective_template"]), ("noun", settings["template"]))
    ]
    return torch.cat(parts)


def _mine(
    model: TextModel,
    settings: Mapping[str, Any],
    classes: IDClasses | None,
    id_features: Tensor,
    cache: TextCache,
) -> NegativeLabels:
    """Negatives of the candidates; as :func:`adaneg_openood.text.mine`, also without ID names."""
    try:
        corpus = load_corpus(settings["candidates"] or "wordnet")
    except WordNetMissing as error:
        raise ValueError(
            "no negative labels: set negatives (a text file, one label a line) or candidates (a word "
            f"list to mine them from) in the YAML, or have WordNet. {error}"
        ) from None
    config = MiningConfig(
        n_negatives=settings["n_negatives"],
        percentile=settings["percentile"],
        prompt=settings["template"],
        adjective_prompt=settings["adjective_template"],
    )
    if classes is not None:
        return mine(model, classes, corpus, config, cache=cache)
    logger.warning("the ID names are not known, so candidates that equal one are not dropped")
    n_adjectives, n_nouns = split_counts(len(corpus.adjectives), len(corpus.nouns), config)
    words: list[str] = []
    for candidates, prompt, wanted in (
        (corpus.adjectives, config.adjective_prompt, n_adjectives),
        (corpus.nouns, config.prompt, n_nouns),
    ):
        if wanted:
            features = encode_names(model, candidates, prompt, cache=cache)
            chosen = mine_negatives(features, id_features.float().cpu(), wanted, config.percentile)
            words += [candidates[index] for index in chosen.tolist()]
    return NegativeLabels(tuple(words), ("adj",) * n_adjectives + ("noun",) * n_nouns)


def _cache(settings: Mapping[str, Any]) -> TextCache:
    return TextCache(settings["cache_dir"] or default_cache_folder())


def _refuse_length(what: str, values: Any, n_classes: int | None) -> None:
    if values is not None and n_classes is not None and len(values) != n_classes:
        raise ValueError(
            f"{what} are {len(values)}, but the ID data set has {n_classes} classes; "
            "give one a class, in the order of the labels"
        )


def _on(features: Tensor, towers: Towers) -> Tensor:
    return features.detach().to(towers.scoring_device, torch.float32)
