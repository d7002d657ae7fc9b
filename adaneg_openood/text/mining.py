"""Negative label mining (NegMining): from a corpus and ID names to a list, by a published recipe."""

from __future__ import annotations

import logging
import os
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adaneg_openood.text.cache import TextCache
from adaneg_openood.text.classnames import ClassNames
from adaneg_openood.text.corpus import Corpus, load_corpus
from adaneg_openood.text.miner import NegativeMiner
from adaneg_openood.text.negatives import NegativeLabels
from adaneg_openood.text.prompts import NameEncoder
from adaneg_openood.text.recipes import RECIPES, MiningConfig
from adaneg_openood.text.wordnet import WordNet
from adaneg_openood.text.words import fold, keys, synonyms

if TYPE_CHECKING:
    from adaneg_openood.vlm import VisionLanguageModel

logger = logging.getLogger(__name__)


def filter_candidates(
    corpus: Corpus,
    classes: ClassNames | None,
    match: str = "caseless",
    related: set[str] | None = None,
) -> Corpus:
    """Drop the ID names, adjectives that are also nouns, and related words.

    Args:
        corpus: the candidates.
        classes: the ID classes, or None where they are not known. A class that is called by several
            synonyms ("tench, Tinca tinca") drops each of them, except under ``"exact"``.
        match: see :class:`MiningConfig`; it also decides when an adjective is a noun, except that
            plurals do not count there.
        related: folded words to drop besides, from :meth:`WordNet.related`.

    Raises:
        ValueError: nothing is left.
    """
    names = () if classes is None else classes.names
    if match != "exact":  # the released code compares whole names
        names = tuple(word for name in names for word in synonyms(name))
    id_keys = {key for name in names for key in keys(name, match)}
    spelling = "caseless" if match == "plural" else match
    nouns = {key for word in corpus.nouns for key in keys(word, spelling)}
    related = related or set()

    def kept(word: str) -> bool:
        return fold(word) not in related and not keys(word, match) & id_keys

    left_nouns = tuple(word for word in corpus.nouns if kept(word))
    left_adjectives = tuple(
        word for word in corpus.adjectives if kept(word) and not keys(word, spelling) & nouns
    )
    if not left_nouns and not left_adjectives:
        raise ValueError(
            f"{corpus.source}: every candidate is an ID name or related to one; "
            "use a larger corpus, or mine without exclude_related"
        )
    logger.info(
        "candidates: %d of %d nouns, %d of %d adjectives left",
        *(len(left_nouns), len(corpus.nouns), len(left_adjectives), len(corpus.adjectives)),
    )
    return Corpus(left_nouns, left_adjectives, corpus.source)


def split_counts(n_adjectives: int, n_nouns: int, config: MiningConfig) -> tuple[int, int]:
    """How many adjectives and nouns are kept.

    Of M in all: ``int(M n_adj / (n_adj + n_noun))`` adjectives, and nouns for the rest; a kind with too
    few candidates is filled up with the other. Of a share: ``int(share n)`` of each kind.

    Example:
        >>> split_counts(30, 70, MiningConfig(n_negatives=10))
        (3, 7)
        >>> split_counts(30, 70, MiningConfig(share=0.5))
        (15, 35)
    """
    config = config.resolved()
    if config.share is not None:
        return int(config.share * n_adjectives), int(config.share * n_nouns)
    total = n_adjectives + n_nouns
    wanted = min(config.n_negatives, total) if isinstance(config.n_negatives, int) else total
    if config.adjective_share is None:
        # integers, so that no rounding can take one away
        adjectives = wanted * n_adjectives // total
    else:
        adjectives = int(wanted * config.adjective_share)
    adjectives = min(adjectives, n_adjectives)
    nouns = min(wanted - adjectives, n_nouns)
    return min(wanted - nouns, n_adjectives), nouns


def candidates_of(
    corpus: Corpus, classes: ClassNames | None, config: MiningConfig, related: set[str] | None = None
) -> Corpus:
    """The candidates of a mining, spelled and filtered as the recipe has it.

    CSP's adjectives become phrases ("red landscape"), drawn by a private generator.

    Raises:
        ValueError: an excluded file is not there, or nothing is left.
    """
    config = config.resolved()
    recipe = RECIPES[config.recipe]
    words = corpus.without(config.exclude or ())
    if recipe.underscores != "clean":
        words = words.as_read(spaces=recipe.underscores == "spaces")
    if config.match is not None:
        words = filter_candidates(words, classes, config.match, related)
    elif related:
        kept = [[w for w in part if fold(w) not in related] for part in (words.nouns, words.adjectives)]
        words = Corpus(tuple(kept[0]), tuple(kept[1]), corpus.source)
    if recipe.superclasses:
        draw = random.Random(config.seed)
        phrases = tuple(f"{word} {draw.choice(recipe.superclasses)}" for word in words.adjectives)
        words = Corpus(words.nouns, phrases, corpus.source)
    return words


@torch.no_grad()
def mine(
    model: VisionLanguageModel,
    classes: ClassNames | None,
    corpus: Corpus,
    config: MiningConfig | None = None,
    *,
    id_features: Tensor | None = None,
    wordnet: WordNet | None = None,
    cache: TextCache | None = None,
    progress: bool = False,
) -> NegativeLabels:
    """Mine negative labels (NegMining) in O(M + batch) memory.

    Args:
        model: the text tower.
        classes: the ID classes; None where only their features are known: then no candidate is
            dropped for its name.
        corpus: the candidates, before filters.
        config: options; None is the published setting for ImageNet.
        id_features: (C, D) features of the ID names, instead of ``classes``.
        wordnet: needed for ``exclude_related`` only; None opens the one in the usual places.
        cache: keeps text features.
        progress: show a bar.

    Returns:
        The negatives in the recipe's order of kinds, each kind lowest value first, ties in corpus
        order: the same on every run.

    Raises:
        ValueError: no candidates are left, or neither classes nor id_features.
        WordNetMissing: ``exclude_related`` without WordNet.

    Source: see :class:`MiningConfig`.
    """
    config = MiningConfig() if config is None else config
    recipe, full = RECIPES[config.recipe], config.resolved()
    if classes is None:
        if id_features is None:
            raise ValueError("mining needs the ID names, or their features")
        logger.warning("the ID names are not known, so candidates that equal one are not dropped")
    related: set[str] = set()
    if config.exclude_related and classes is not None:
        called = [word for name in classes.names for word in synonyms(name)]
        related = (wordnet or WordNet()).related(classes.wnids or called)
    left = candidates_of(corpus, classes, config, related)
    wanted = dict(zip(("adj", "noun"), split_counts(len(left.adjectives), len(left.nouns), config)))
    if not any(wanted.values()):
        raise ValueError(f"{corpus.source}: too few candidates, a share of {full.share} keeps none")
    prompts = config.prompts()
    words: list[str] = []
    kinds: list[str] = []
    total = sum(len(left.of_kind(kind)) for kind in recipe.kinds if wanted[kind])
    total += 0 if classes is None else len(classes)
    with NameEncoder(model, cache=cache, total=total if progress else None) as encoder:
        ids = id_features
        if classes is not None:
            ids = encoder.rows(classes.names, prompts.id, prompts.raw)
        assert ids is not None
        for kind in recipe.kinds:
            if not wanted[kind]:
                continue
            candidates = left.of_kind(kind)
            miner = NegativeMiner(
                ids,
                wanted[kind],
                full.percentile,
                interpolated=recipe.interpolated,
                near_copy=full.near_copy,
            )
            for features in encoder.parts(candidates, getattr(prompts, kind), prompts.raw):
                miner.update(features)
            words += [candidates[index] for index in miner.indices.tolist()]
            kinds += [kind] * len(miner.indices)
    about = _provenance(model, classes, corpus, config, left)
    return NegativeLabels(tuple(words), tuple(kinds), about)


@dataclass(frozen=True)
class Mining:
    """Where negative labels are mined from, and how.

    Attributes:
        config: the recipe and its settings.
        corpus: ``"wordnet"``, a file or folder of word lists, or the words themselves.
        wordnet, lemmas, download: see :func:`~adaneg_openood.text.corpus.load_corpus`.
    """

    config: MiningConfig = field(default_factory=MiningConfig)
    corpus: str | os.PathLike[str] | Corpus = "wordnet"
    wordnet: str | os.PathLike[str] | None = None
    lemmas: str = "first"
    download: bool = False

    def load(self) -> tuple[Corpus, WordNet | None]:
        """The candidates, and the WordNet that they, or ``exclude_related``, need.

        Raises:
            WordNetMissing, ValueError, OSError: see ``load_corpus``.
        """
        database = None
        of_wordnet = isinstance(self.corpus, str) and self.corpus == "wordnet"
        if self.config.exclude_related or (of_wordnet and not self.download):
            database = WordNet(self.wordnet)
        if isinstance(self.corpus, Corpus):
            return self.corpus, database
        words = load_corpus(
            self.corpus,
            wordnet=database or self.wordnet,
            lemmas=self.lemmas,
            download=self.download,
        )
        return words, database

    def run(
        self,
        model: VisionLanguageModel,
        classes: ClassNames | None,
        *,
        id_features: Tensor | None = None,
        cache: TextCache | None = None,
        progress: bool = False,
    ) -> NegativeLabels:
        """Mine; arguments as in :func:`mine`."""
        words, database = self.load()
        return mine(
            model,
            classes,
            words,
            self.config,
            id_features=id_features,
            wordnet=database,
            cache=cache,
            progress=progress,
        )


def _provenance(
    model: VisionLanguageModel,
    classes: ClassNames | None,
    corpus: Corpus,
    config: MiningConfig,
    left: Corpus,
) -> dict[str, Any]:
    from adaneg_openood.vlm import describe

    recipe = RECIPES[config.recipe]
    about = describe(model)
    about.pop("preprocessing", None)
    made: dict[str, Any] = {
        "model": about,
        "mining": config.recipe,
        "groups": recipe.groups,
        "corpus": corpus.source,
        "corpus_sha256": corpus.digest,
        "candidates": {"adj": len(left.adjectives), "noun": len(left.nouns)},
        "options": config.to_json(),
    }
    if classes is not None:
        made.update(id=classes.source, id_classes=len(classes), id_sha256=classes.digest)
    if recipe.scored_as_mined:
        made["prompts"] = config.prompts().to_json()
    return made
