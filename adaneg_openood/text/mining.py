"""Negative label mining (NegMining): from a corpus and ID names to a list, by a published recipe."""

from __future__ import annotations

import logging
import math
import os
import random
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adaneg_openood.io.checks import check_int, check_number
from adaneg_openood.text.classnames import ClassNames
from adaneg_openood.text.corpus import Corpus, load_corpus
from adaneg_openood.text.negatives import NegativeLabels
from adaneg_openood.text.prompts import NameEncoder, TextCache, described
from adaneg_openood.text.recipes import RECIPES, MiningConfig, split_counts
from adaneg_openood.text.wordnet import WordNet
from adaneg_openood.text.words import fold, keys, synonyms

if TYPE_CHECKING:
    from adaneg_openood.vlm import VisionLanguageModel

logger = logging.getLogger(__name__)

_CHUNK = 4096  # candidates compared at a time, so memory is O(chunk x C) and not O(candidates x C)


class NegativeMiner:
    """The lowest candidates of a stream, in O(kept + batch) memory.

    A candidate's value is a percentile of its C cosines to the ID classes. The candidates of lowest
    value are kept; equal values keep the order in which they came, so the result never depends on
    hashing.

    Args:
        id_features: (C, D) text features of the ID names, unit length, any float dtype.
        n_negatives: how many to keep, at least 1; ``None`` keeps all.
        percentile: in [0, 1].
        interpolated: take the interpolated quantile; False takes the sorted cosine at
            ``int(percentile * C)``.
        near_copy: a candidate whose largest cosine is above it has the value 1; None has no limit.

    Raises:
        ValueError: no ID features, or a number out of its range.

    Source: NegLabel (Jiang et al., ICLR 2024), section 3.1; CSP (Chen et al., NeurIPS 2024).
    """

    def __init__(
        self,
        id_features: Tensor,
        n_negatives: int | None,
        percentile: float = 0.95,
        *,
        interpolated: bool = False,
        near_copy: float | None = None,
    ) -> None:
        if id_features.ndim != 2 or not len(id_features):
            raise ValueError(f"id_features must be (C, D) with C > 0, got {tuple(id_features.shape)}")
        n_id = len(id_features)
        check_number("percentile", percentile, 0.0, 1.0)
        if n_negatives is not None:
            check_int("n_negatives", n_negatives)
        self.n_negatives = n_negatives
        self.near_copy = near_copy
        self.n_seen = 0
        # between the sorted cosines at rank and rank + 1, so much of the way
        place = percentile * (n_id - 1) if interpolated else int(percentile * n_id)
        self._rank = min(math.floor(place), n_id - 1)
        self._way = place - self._rank if self._rank < n_id - 1 else 0.0
        self._id_columns = id_features.detach().float().T
        self._values = torch.empty(0)
        self._indices = torch.empty(0, dtype=torch.int64)

    @torch.no_grad()
    def update(self, candidates: Tensor) -> None:
        """Take the next candidates.

        Args:
            candidates: (n, D) text features, unit length, any float dtype and device.

        Raises:
            ValueError: D differs from the ID features'.
        """
        if candidates.ndim != 2 or candidates.shape[1] != len(self._id_columns):
            raise ValueError(
                "candidates and id_features must be (N, D) and (C, D) of one width, got "
                f"{tuple(candidates.shape)} and {tuple(self._id_columns.T.shape)}"
            )
        for chunk in candidates.split(_CHUNK):
            cosines = chunk.to(self._id_columns.device).float() @ self._id_columns
            values = self._valued(cosines).cpu()
            indices = torch.arange(self.n_seen, self.n_seen + len(values))
            self.n_seen += len(values)
            values = torch.cat([self._values, values])
            # what was kept comes first, so a stable sort leaves ties in order of arrival
            order = torch.argsort(values, stable=True)[: self.n_negatives]
            self._values = values[order]
            self._indices = torch.cat([self._indices, indices])[order]

    def _valued(self, cosines: Tensor) -> Tensor:
        values = cosines.kthvalue(self._rank + 1, dim=1).values
        if self._way:
            values = values.lerp(cosines.kthvalue(self._rank + 2, dim=1).values, self._way)
        if self.near_copy is not None:
            values = values.masked_fill(cosines.amax(dim=1) > self.near_copy, 1.0)
        return values

    @property
    def indices(self) -> Tensor:
        """(n,) int64 positions in the stream, lowest value first; n <= n_negatives."""
        return self._indices

    @property
    def values(self) -> Tensor:
        """(n,) float32, the kept candidates' values, ascending."""
        return self._values


def filter_candidates(
    corpus: Corpus,
    classes: ClassNames | None,
    match: str | None = "caseless",
    related: set[str] | None = None,
) -> Corpus:
    """Drop the ID names, adjectives that are also nouns, and related words.

    Args:
        corpus: the candidates.
        classes: the ID classes, or None where they are not known. A class that is called by several
            synonyms ("tench, Tinca tinca") drops each of them, except under ``"exact"``.
        match: see :class:`MiningConfig`; it also decides when an adjective is a noun, except that
            plurals do not count there. None drops related words alone.
        related: folded words to drop besides, from :meth:`WordNet.related`.

    Raises:
        ValueError: nothing is left.
    """
    names = () if classes is None else classes.names
    if match != "exact":  # the released code compares whole names
        names = tuple(word for name in names for word in synonyms(name))
    wanted = [
        [word for word in words if fold(word) not in (related or ())]
        for words in (corpus.nouns, corpus.adjectives)
    ]
    if match is not None:
        ids = {key for name in names for key in keys(name, match)}
        wanted = [[word for word in words if not keys(word, match) & ids] for words in wanted]
        spelling = "caseless" if match == "plural" else match
        nouns = {key for word in corpus.nouns for key in keys(word, spelling)}
        wanted[1] = [word for word in wanted[1] if not keys(word, spelling) & nouns]
    left_nouns, left_adjectives = map(tuple, wanted)
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
    if config.match is not None or related:
        words = filter_candidates(words, classes, config.match, related)
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
    kinds = [kind for kind in recipe.kinds if wanted[kind]]
    total = sum(len(left.of_kind(kind)) for kind in kinds) + len(classes or ())
    with NameEncoder(model, cache=cache, total=total if progress else None) as encoder:
        ids = id_features
        if classes is not None:
            ids = encoder.rows(classes.names, prompts.id, prompts.raw)
        assert ids is not None
        for kind in kinds:
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
    about = _provenance(model, classes, corpus, config, left)
    of_each = tuple(kind for kind in kinds for _ in range(wanted[kind]))
    return NegativeLabels(tuple(words), of_each, about)


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

    def of_all(self) -> Mining:
        """The same, except that every candidate is kept: for methods that choose among them."""
        return replace(self, config=replace(self.config, n_negatives="all", share=None))

    def load(self) -> tuple[Corpus, WordNet | None]:
        """The candidates, and the WordNet that they, or ``exclude_related``, need.

        Raises:
            WordNetMissing, ValueError, OSError: see ``load_corpus``.
        """
        database, of_wordnet = None, self.corpus == "wordnet"
        if self.config.exclude_related or (of_wordnet and not self.download):
            database = WordNet(self.wordnet)
        if isinstance(self.corpus, Corpus):
            return self.corpus, database
        where: dict[str, Any] = {
            "lemmas": self.lemmas,
            "download": self.download,
            "wordnet": database or self.wordnet,
        }
        return load_corpus(self.corpus, **where), database

    def run(
        self, model: VisionLanguageModel, classes: ClassNames | None, **options: Any
    ) -> NegativeLabels:
        """Mine; ``options`` are ``id_features``, ``cache`` and ``progress`` of :func:`mine`."""
        words, database = self.load()
        return mine(model, classes, words, self.config, wordnet=database, **options)


def _provenance(
    model: VisionLanguageModel,
    classes: ClassNames | None,
    corpus: Corpus,
    config: MiningConfig,
    left: Corpus,
) -> dict[str, Any]:
    recipe = RECIPES[config.recipe]
    made: dict[str, Any] = {
        "model": described(model),
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
