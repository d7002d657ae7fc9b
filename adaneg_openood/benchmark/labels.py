"""From settings to class names, negative labels and text rows."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Union

from adaneg_openood.benchmark.settings import LabelSettings, NameSettings, NegativeSettings
from adaneg_openood.data import ImageSet
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
from adaneg_openood.text.classnames import BENCHMARKS
from adaneg_openood.text.learned import load_prompts
from adaneg_openood.vlm import VisionLanguageModel

# names of drawn worlds -> the module with their class_names, corpus and image_set
_WORLDS = {"demo": "adaneg_openood.demo.benchmark"}


def world(name: str) -> Any:
    """The module of a drawn world; it is imported when it is asked for."""
    return importlib.import_module(_WORLDS[name])


def named_classes(settings: NameSettings, where: str) -> ClassNames | None:
    """The classes that settings name, or None where they name none.

    Args:
        settings: their ``classes``, or the file of ``text_features``.
        where: named as the source of a list of names.

    Raises:
        ValueError, OSError: a file of no class names, or a folder of no class folders.
    """
    if isinstance(settings.classes, tuple):
        return ClassNames(f"{where}: classes", settings.classes)
    if settings.classes in _WORLDS:
        return world(settings.classes).class_names()
    if (
        settings.classes is not None
        and settings.classes not in BENCHMARKS
        and Path(settings.classes).is_dir()
    ):
        return ImageSet.of(settings.classes, labelled=True).class_names()
    if settings.classes is not None:
        return class_names(settings.classes)
    if settings.text_features is not None:
        made = LabelFeatures.load(settings.text_features)
        return ClassNames(str(settings.text_features), made.names[: made.n_id])
    return None


def mining_of(settings: NegativeSettings) -> Mining:
    """How negatives are mined.

    Raises:
        ValueError: settings that do not go together.
    """
    named = settings.corpus in _WORLDS
    return Mining(
        MiningConfig(
            recipe=settings.mining,
            n_negatives=settings.n_negatives,
            share=settings.share,
            percentile=settings.percentile,
            near_copy=settings.near_copy,
            adjective_share=settings.adjective_share,
            seed=settings.mining_seed,
            exclude=settings.exclude,
            prompt=getattr(settings, "prompt", None),
            adjective_prompt=settings.adjective_prompt,
            match=settings.match,
            exclude_related=settings.exclude_related,
        ),
        world(settings.corpus).corpus() if named else settings.corpus,
        settings.wordnet,
        settings.lemmas,
        settings.download,
    )


def negatives_of(settings: NegativeSettings) -> Path | Mining | None:
    """The list of negatives, or how to mine them; None where learned prompts bring them."""
    if settings.negatives is not None:
        return settings.negatives
    asked = {"corpus", "mining", "n_negatives", "share"} & settings.model_fields_set
    if settings.learned_prompts is not None and not asked:
        if load_prompts(settings.learned_prompts).brings_negatives:
            return None
    return mining_of(settings)


def make_labels(
    model: VisionLanguageModel | None,
    classes: ClassNames | None,
    settings: LabelSettings,
    *,
    negatives: Union[NegativeLabels, Mining, Path, None] = None,
    cache: Path | None = None,
    progress: bool = False,
    **inputs: Any,
) -> LabelFeatures:
    """The text rows that settings ask for, see :func:`~adaneg_openood.text.label_features`.

    Args:
        model: the text tower; None where ``text_features`` bring all rows.
        classes: the ID classes.
        settings: prompts, negatives, or a file of text features.
        negatives: what the settings say of them, opened before; None opens it now.
        cache: folder of the caches; None is the user's.
        progress: show a bar.
        inputs: further arguments of ``label_features``.

    Raises:
        ValueError, OSError, ImportError: with a message for people.
    """
    if negatives is None and settings.text_features is None:
        negatives = negatives_of(settings)
    return label_features(
        model,
        classes,
        negatives,
        prompt=settings.prompt,
        adjective_prompt=settings.adjective_prompt,
        learned_prompts=settings.learned_prompts,
        text_features=settings.text_features,
        logit_scale=settings.logit_scale,
        cache=TextCache(None if cache is None else cache / "text"),
        progress=progress,
        **inputs,
    )
