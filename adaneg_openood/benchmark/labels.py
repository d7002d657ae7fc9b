"""From settings to class names, negative labels and text rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Union

from adaneg_openood.benchmark.settings import LabelSettings, NameSettings, NegativeSettings
from adaneg_openood.data import ImageSet
from adaneg_openood.io.files import cache_folder
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


def drawn_world() -> Any:
    """The module with the demo's ``class_names``, ``corpus`` and ``image_set``, when it is asked for."""
    from adaneg_openood.demo import benchmark

    return benchmark


def named_classes(settings: NameSettings, where: str) -> ClassNames | None:
    """The classes that ``classes`` or the file of ``text_features`` names; None where neither does.

    ``where`` is named as the source of a list of names.

    Raises:
        ValueError, OSError: a file of no class names, or a folder of no class folders.
    """
    if isinstance(settings.classes, tuple):
        return ClassNames(f"{where}: classes", settings.classes)
    if settings.classes == "demo":
        return drawn_world().class_names()  # type: ignore[no-any-return]
    if settings.classes is not None:
        is_folder = settings.classes not in BENCHMARKS and Path(settings.classes).is_dir()
        if is_folder:
            return ImageSet.of(settings.classes, labelled=True).class_names()
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
        drawn_world().corpus() if settings.corpus == "demo" else settings.corpus,
        settings.wordnet,
        settings.lemmas,
        settings.download,
    )


def negatives_of(settings: NegativeSettings) -> Path | Mining | None:
    """The list of negatives, or how to mine them; None where learned prompts bring them."""
    if settings.negatives is not None:
        return settings.negatives
    # compared with the defaults, because OpenOOD's YAMLs write every setting out
    asked = any(
        getattr(settings, name) != NegativeSettings.model_fields[name].default
        for name in ("corpus", "mining", "n_negatives", "share")
    )
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
    takes_corpus: bool = False,
    cache: Path | None = None,
    progress: bool = False,
    **inputs: Any,
) -> LabelFeatures:
    """The text rows that settings ask for.

    Args:
        model: the text tower; None where ``text_features`` bring all rows.
        classes: the ID classes.
        settings: prompts, negatives, or a file of text features.
        negatives: what the settings say of them, opened before; None opens it now.
        takes_corpus: whether they are for a method that chooses among all words, not among mined ones.
        cache: folder of the caches; None is the user's.
        progress, inputs: see :func:`~adaneg_openood.text.label_features`.

    Raises:
        ValueError, OSError, ImportError: with a message for people.
    """
    if negatives is None and settings.text_features is None:
        negatives = negatives_of(settings)
    if takes_corpus and isinstance(negatives, Mining):
        negatives = negatives.of_all()
    return label_features(
        model,
        classes,
        negatives,
        prompt=settings.prompt,
        adjective_prompt=settings.adjective_prompt,
        learned_prompts=settings.learned_prompts,
        text_features=settings.text_features,
        logit_scale=settings.logit_scale,
        cache=TextCache(cache_folder("text", cache)),
        progress=progress,
        **inputs,
    )
