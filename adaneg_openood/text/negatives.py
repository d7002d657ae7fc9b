"""Negative labels: mining them from a corpus, and the readable list they are kept in."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adaneg_openood.io.files import atomic_path
from adaneg_openood.text.cache import TextCache
from adaneg_openood.text.classnames import IDClasses
from adaneg_openood.text.corpus import Corpus
from adaneg_openood.text.mining import NegativeMiner
from adaneg_openood.text.prompts import NAMED_TEMPLATES, encode_names, iterate_names, templates
from adaneg_openood.text.wordnet import WordNet
from adaneg_openood.text.words import MATCHES, fold, keys

if TYPE_CHECKING:
    from adaneg_openood.vlm import VisionLanguageModel

logger = logging.getLogger(__name__)

KINDS = ("adj", "noun")  # in the order of their rows
_HEADER = "adaneg-openood negative labels, version 1"


@dataclass(frozen=True)
class MiningConfig:
    """How negatives are mined.

    Attributes:
        n_negatives: M; None keeps every candidate, as for CIFAR.
        percentile: which of a candidate's sorted cosines to the ID names counts, in [0, 1].
        adjective_share: share of adjectives among the M, in [0, 1]; None is their share among the
            candidates, as published.
        prompt: template of ID names and nouns while mining, see
            :func:`~adaneg_openood.text.prompts.templates`.
        adjective_prompt: template of adjectives.
        match: when a candidate is an ID name: ``"exact"`` (NegLabel's code, where capitals never
            match), ``"caseless"`` or ``"plural"``.
        exclude_related: also drop what WordNet places at, under or above an ID class.

    Raises:
        ValueError: a value out of its range; the message names it.

    Source: NegLabel (Jiang et al., ICLR 2024), section 3.1; settings of AdaNeg (NeurIPS 2024).
    """

    n_negatives: int | None = 10_000
    percentile: float = 0.95
    adjective_share: float | None = None
    prompt: str | tuple[str, ...] = "nice"
    adjective_prompt: str | tuple[str, ...] = "adjective"
    match: str = "caseless"
    exclude_related: bool = False

    def __post_init__(self) -> None:
        if self.n_negatives is not None and self.n_negatives < 1:
            raise ValueError(f"n_negatives must be at least 1 or None, got {self.n_negatives}")
        if not 0.0 <= self.percentile <= 1.0:
            raise ValueError(f"percentile must be in [0, 1], got {self.percentile}")
        if self.adjective_share is not None and not 0.0 <= self.adjective_share <= 1.0:
            raise ValueError(f"adjective_share must be in [0, 1] or None, got {self.adjective_share}")
        if self.match not in MATCHES:
            allowed = ", ".join(map(repr, MATCHES))
            raise ValueError(f"match must be one of {allowed}, got {self.match!r}")
        templates(self.prompt)
        templates(self.adjective_prompt)


@dataclass(frozen=True)
class NegativeLabels:
    """Mined words: adjectives first, then nouns, each lowest percentile cosine first.

    Attributes:
        words: M words.
        kinds: ``"adj"`` or ``"noun"`` a word.
        provenance: what they were mined with; JSON values.
    """

    words: tuple[str, ...]
    kinds: tuple[str, ...]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.words) != len(self.kinds):
            raise ValueError(f"{len(self.words)} words but {len(self.kinds)} kinds")
        unknown = sorted(set(self.kinds) - set(KINDS))
        if unknown:
            raise ValueError(f"kinds must be 'adj' or 'noun', got {', '.join(map(repr, unknown))}")
        if [*self.kinds] != sorted(self.kinds):  # "adj" < "noun"
            raise ValueError("adjectives must come before nouns, the row order of every feature file")

    def __len__(self) -> int:
        return len(self.words)

    def of_kind(self, kind: str) -> tuple[str, ...]:
        """The words of one kind, in order."""
        return tuple(word for word, own in zip(self.words, self.kinds) if own == kind)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a text file, atomically: ``# key: JSON`` lines, then ``kind<TAB>word`` lines.

        Equal labels give equal bytes: no date, no machine.
        """
        lines = [f"# {_HEADER}", f"# count: {len(self)}"]
        lines += [
            f"# {key}: {json.dumps(value, ensure_ascii=False, sort_keys=True)}"
            for key, value in sorted(self.provenance.items())
        ]
        lines += [f"{kind}\t{word}" for word, kind in zip(self.words, self.kinds)]
        with atomic_path(path) as temporary:
            temporary.write_bytes(("\n".join(lines) + "\n").encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> NegativeLabels:
        """Read what :meth:`save` wrote, or any word list (then see ``read_word_lists``).

        Raises:
            ValueError: a damaged file: the message names the line.
            OSError: it cannot be read.
        """
        file = Path(path)
        try:
            text = file.read_text("utf-8-sig") if file.is_file() else ""
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: negative labels must be UTF-8 text, {error}") from error
        lines = text.splitlines()
        if not lines or lines[0] != f"# {_HEADER}":
            from adaneg_openood.text.corpus import read_word_lists

            return from_corpus(read_word_lists(file))
        words, kinds, provenance, count = [], [], {}, -1
        for number, line in enumerate(lines[1:], 2):
            try:
                if line.startswith("# "):
                    key, _, value = line[2:].partition(": ")
                    if key == "count":
                        count = int(value)
                    else:
                        provenance[key] = json.loads(value)
                elif line:
                    kind, tab, word = line.partition("\t")
                    if not tab or kind not in KINDS or not word:
                        raise ValueError("must be 'adj' or 'noun', a tab, and a word")
                    words.append(word)
                    kinds.append(kind)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{file}, line {number}: {error}; got {line[:80]!r}") from error
        if count != len(words):
            raise ValueError(
                f"{file}: says it holds {count} words but has {len(words)}; "
                "correct the count line if it was edited on purpose"
            )
        try:
            return cls(tuple(words), tuple(kinds), provenance)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error


def from_corpus(corpus: Corpus) -> NegativeLabels:
    """Take a word list as it is, without mining: NegLabel's released selection, for instance."""
    kinds = ("adj",) * len(corpus.adjectives) + ("noun",) * len(corpus.nouns)
    about = {"corpus": corpus.source, "corpus_sha256": corpus.digest}
    return NegativeLabels(corpus.adjectives + corpus.nouns, kinds, about)


def filter_candidates(
    corpus: Corpus,
    classes: IDClasses,
    match: str = "caseless",
    related: set[str] | None = None,
) -> Corpus:
    """Drop the ID names, adjectives that are also nouns, and related words.

    Args:
        corpus: the candidates.
        classes: the ID classes.
        match: see :class:`MiningConfig`; it also decides when an adjective is a noun, except that
            plurals do not count there.
        related: folded words to drop besides, from :meth:`WordNet.related`.

    Raises:
        ValueError: nothing is left.
    """
    id_keys = {key for name in classes.names for key in keys(name, match)}
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
    """How many adjectives and nouns are kept: ``int(M n_adj / (n_adj + n_noun))`` and the rest.

    A kind with too few candidates is filled up with the other.

    Example:
        >>> split_counts(30, 70, MiningConfig(n_negatives=10))
        (3, 7)
    """
    total = n_adjectives + n_nouns
    wanted = total if config.n_negatives is None else min(config.n_negatives, total)
    if config.adjective_share is None:
        # integers, so that no rounding can take one away
        adjectives = wanted * n_adjectives // total
    else:
        adjectives = int(wanted * config.adjective_share)
    adjectives = min(adjectives, n_adjectives)
    nouns = min(wanted - adjectives, n_nouns)
    return min(wanted - nouns, n_adjectives), nouns


@torch.no_grad()
def mine(
    model: VisionLanguageModel,
    classes: IDClasses,
    corpus: Corpus,
    config: MiningConfig | None = None,
    *,
    wordnet: WordNet | None = None,
    cache: TextCache | None = None,
    progress: bool = False,
) -> NegativeLabels:
    """Mine negative labels (NegMining) in O(M + batch) memory.

    Args:
        model: the text tower.
        classes: the ID classes.
        corpus: the candidates, before filters.
        config: options; None is the published setting for ImageNet.
        wordnet: needed for ``exclude_related`` only; None opens the one in the usual places.
        cache: keeps text features.
        progress: show bars.

    Returns:
        The negatives, adjectives first, each kind lowest percentile cosine first, ties in corpus
        order: the same on every run.

    Raises:
        ValueError: no candidates are left.
        WordNetMissing: ``exclude_related`` without WordNet.

    Source: NegLabel (Jiang et al., ICLR 2024), section 3.1.
    """
    config = MiningConfig() if config is None else config
    related: set[str] = set()
    if config.exclude_related:
        related = (wordnet or WordNet()).related(classes.wnids or classes.names)
    left = filter_candidates(corpus, classes, config.match, related)
    n_adjectives, n_nouns = split_counts(len(left.adjectives), len(left.nouns), config)
    id_features = encode_names(model, classes.names, config.prompt, cache=cache)
    words: list[str] = []
    kinds: list[str] = []
    for kind, candidates, prompt, wanted in (
        ("adj", left.adjectives, config.adjective_prompt, n_adjectives),
        ("noun", left.nouns, config.prompt, n_nouns),
    ):
        if not wanted:
            continue
        miner = NegativeMiner(id_features, wanted, config.percentile)
        for features in iterate_names(model, candidates, prompt, cache=cache, progress=progress):
            miner.update(features)
        chosen = [candidates[index] for index in miner.indices.tolist()]
        words += chosen
        kinds += [kind] * len(chosen)
    return NegativeLabels(tuple(words), tuple(kinds), _provenance(model, classes, corpus, config, left))


def text_features(
    model: VisionLanguageModel,
    classes: IDClasses,
    negatives: NegativeLabels,
    prompt: str | Sequence[str] = "nice",
    adjective_prompt: str | Sequence[str] = "adjective",
    *,
    cache: TextCache | None = None,
    progress: bool = False,
) -> Tensor:
    """Features of all labels, for scoring.

    Args:
        model: the text tower.
        classes: C ID classes.
        negatives: M negative labels.
        prompt: template of ID names and nouns, see
            :func:`~adaneg_openood.text.prompts.templates`; adjectives keep theirs.

    Returns:
        (C + M, D) float32 of unit length on the CPU; rows: ID, adjectives, nouns.
    """
    parts = [encode_names(model, classes.names, prompt, cache=cache)]
    for kind, template in (("adj", adjective_prompt), ("noun", prompt)):
        words = negatives.of_kind(kind)
        parts.append(encode_names(model, words, template, cache=cache, progress=progress))
    return torch.cat(parts)


def _provenance(
    model: VisionLanguageModel,
    classes: IDClasses,
    corpus: Corpus,
    config: MiningConfig,
    left: Corpus,
) -> dict[str, Any]:
    from adaneg_openood.vlm import describe

    about = describe(model)
    about.pop("preprocessing", None)
    names = "\n".join(classes.names)
    return {
        "model": about,
        "id": classes.source,
        "id_classes": len(classes),
        "id_sha256": hashlib.sha256(names.encode()).hexdigest()[:16],
        "corpus": corpus.source,
        "corpus_sha256": corpus.digest,
        "candidates": {"adj": len(left.adjectives), "noun": len(left.nouns)},
        "options": {
            **dataclasses.asdict(config),
            "prompt": _named(config.prompt),
            "adjective_prompt": _named(config.adjective_prompt),
        },
    }


def _named(prompt: str | tuple[str, ...]) -> str | list[str]:
    """A template's known name, or what is behind it, as a file of templates may change."""
    return prompt if prompt in NAMED_TEMPLATES else list(templates(prompt))  # type: ignore[return-value]
