"""What the command line calls: names in, files out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from adaneg_openood.text.cache import TextCache, default_cache_folder
from adaneg_openood.text.classnames import id_classes
from adaneg_openood.text.corpus import load_corpus
from adaneg_openood.text.negatives import MiningConfig, NegativeLabels, mine
from adaneg_openood.text.prompt_features import (
    LabelFeatures,
    label_features,
    learned_features,
    load_label_features,
    load_prompts,
)
from adaneg_openood.text.wordnet import WordNet
from adaneg_openood.vlm import TwoTowerModel, VisionLanguageModel, load_model

DEFAULT_MODEL = "open_clip:ViT-B-16/openai"


def mine_to_file(
    output: str | os.PathLike[str],
    *,
    id_source: str,
    model: str | VisionLanguageModel = DEFAULT_MODEL,
    corpus: str = "wordnet",
    wordnet: str | os.PathLike[str] | None = None,
    files: Sequence[str] | None = None,
    lemmas: str = "first",
    download: bool = False,
    config: MiningConfig | None = None,
    device: str = "cpu",
    precision: str = "auto",
    cache: str | os.PathLike[str] | bool = True,
    progress: bool = True,
) -> NegativeLabels:
    """Mine negative labels and save the readable list.

    Args:
        output: the text file.
        id_source: see :func:`~adaneg_openood.text.classnames.id_classes`.
        model: a name, see :func:`~adaneg_openood.vlm.load_model`, or a loaded model.
        corpus, wordnet, files, lemmas, download: see
            :func:`~adaneg_openood.text.corpus.load_corpus`.
        config: see :class:`~adaneg_openood.text.negatives.MiningConfig`.
        device, precision: of a model given by name.
        cache: folder of text features; True is the user's cache folder, False keeps nothing.
        progress: show bars.

    Raises:
        ValueError, OSError, ImportError: with a message for people.
    """
    config = MiningConfig() if config is None else config
    # names and words first: a typing error should not wait for a model to load
    classes = id_classes(id_source)
    database = None
    if corpus == "wordnet" and not download:
        database = WordNet(wordnet)
    elif config.exclude_related and corpus != "wordnet":
        database = WordNet(wordnet)
    words = load_corpus(
        corpus, wordnet=database or wordnet, files=files, lemmas=lemmas, download=download
    )
    mined = mine(
        _model(model, device, precision),
        classes,
        words,
        config,
        wordnet=database,
        cache=_cache(cache),
        progress=progress,
    )
    mined.save(output)
    return mined


def labels_to_folder(
    folder: str | os.PathLike[str],
    *,
    id_source: str,
    negatives: str | os.PathLike[str] | NegativeLabels | None,
    model: str | VisionLanguageModel = DEFAULT_MODEL,
    prompt: str = "nice",
    prompts: str | os.PathLike[str] | None = None,
    features: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    precision: str = "auto",
    cache: str | os.PathLike[str] | bool = True,
    progress: bool = True,
) -> LabelFeatures:
    """Encode ID names and negative labels into ``folder/text.npz``, beside the image features.

    Args:
        folder: a benchmark folder, see ``load_features``.
        id_source: see :func:`~adaneg_openood.text.classnames.id_classes`.
        negatives: a saved list, any word list (taken as it is), or labels; None only with
            ``prompts`` that have negative contexts.
        model, device, precision, cache, progress: as in :func:`mine_to_file`.
        prompt: template of ID names and nouns.
        prompts: a checkpoint of learned prompts (CoOp, NegPrompt, LAPT), instead of templates.
        features: a file of text features of the user's own, see
            :func:`~adaneg_openood.text.prompt_features.load_label_features`; taken as they are, so
            neither model nor negatives are used.

    Raises:
        ValueError: also where image features of another model lie in the folder.
        OSError, ImportError: with a message for people.
    """
    from adaneg_openood.data import refuse_mixing
    from adaneg_openood.vlm import describe

    id_classes(id_source)  # a typing error should not wait for a model to load
    towers: str | VisionLanguageModel = model
    if features is None:
        towers = _model(model, device, precision)
        about = describe(towers)
        about.pop("preprocessing", None)
        refuse_mixing(Path(folder) / "text.npz", about)
    made = make_labels(
        id_source=id_source,
        negatives=negatives,
        model=towers,
        prompt=prompt,
        prompts=prompts,
        features=features,
        cache=cache,
        progress=progress,
    )
    made.save(folder)
    return made


def make_labels(
    *,
    id_source: str,
    negatives: str | os.PathLike[str] | NegativeLabels | None,
    model: str | VisionLanguageModel = DEFAULT_MODEL,
    prompt: str = "nice",
    prompts: str | os.PathLike[str] | None = None,
    features: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    precision: str = "auto",
    cache: str | os.PathLike[str] | bool = True,
    progress: bool = True,
) -> LabelFeatures:
    """Text features of ID names and negative labels; arguments as in :func:`labels_to_folder`."""
    classes = id_classes(id_source)
    if features is not None:
        return load_label_features(features, n_id=len(classes))
    if isinstance(negatives, (str, os.PathLike)):
        negatives = NegativeLabels.load(negatives)
    towers = _model(model, device, precision)
    kept = _cache(cache)
    if prompts is not None:
        if not isinstance(towers, TwoTowerModel):
            raise ValueError(f"{towers.name}: learned prompts need an open_clip or OpenAI CLIP")
        return learned_features(towers, classes, load_prompts(prompts), negatives, prompt, cache=kept)
    if negatives is None:
        raise ValueError("negatives are needed; mine them first: adaneg-openood mine")
    return label_features(towers, classes, negatives, prompt, cache=kept, progress=progress)


def _model(model: str | VisionLanguageModel, device: str, precision: str) -> VisionLanguageModel:
    return load_model(model, device=device, precision=precision) if isinstance(model, str) else model


def _cache(cache: str | os.PathLike[str] | bool) -> TextCache | None:
    if cache is False:
        return None
    return TextCache(default_cache_folder() if cache is True else cache)
