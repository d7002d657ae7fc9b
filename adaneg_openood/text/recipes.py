"""How negatives are mined: the published recipes as records, and the settings of one mining."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adaneg_openood.io.checks import check_choice, check_number
from adaneg_openood.text.prompts import Prompt, PromptSet, named, templates
from adaneg_openood.text.words import MATCHES

KINDS = ("adj", "noun")


@dataclass(frozen=True)
class Recipe:
    """One published way to mine negatives.

    Attributes:
        paper: where it comes from.
        prompt: templates of ID names and nouns.
        adjective_prompt: templates of adjectives, or of the phrases made of them.
        kinds: order of the rows after the ID names.
        groups: number of groups that its score was published with.
        n_negatives: how many are kept, shared out in proportion; None where ``share`` decides.
        share: share of each kind that is kept; None where ``n_negatives`` decides.
        interpolated: whether a candidate's value is the interpolated quantile of its cosines, or the
            sorted cosine at ``int(percentile * C)``.
        near_copy: candidates with a cosine above it go last; None has no such limit.
        match: when a candidate counts as an ID name and is dropped; None keeps ID names.
        underscores: how words are spelled: ``"clean"`` (spaces, and one spelling whatever its case),
            ``"kept"``, or ``"spaces"``.
        exclude: word files that are left out.
        superclasses: words of which one follows each adjective.
        raw: whether the text tower's own embeddings are averaged over the templates.
        scored_as_mined: whether the score uses the templates of the mining.
    """

    paper: str
    prompt: tuple[str, ...]
    adjective_prompt: tuple[str, ...]
    kinds: tuple[str, str]
    groups: int
    n_negatives: int | None = None
    share: float | None = None
    interpolated: bool = True
    near_copy: float | None = None
    match: str | None = None
    underscores: str = "clean"
    exclude: tuple[str, ...] = ()
    superclasses: tuple[str, ...] = ()
    raw: bool = False
    scored_as_mined: bool = True


RECIPES = {
    "openood-vlm": Recipe(
        paper="NegLabel (ICLR 2024) as AdaNeg (NeurIPS 2024) runs it",
        prompt=templates("nice"),
        adjective_prompt=templates("adjective"),
        kinds=("adj", "noun"),
        groups=5,
        n_negatives=10_000,
        interpolated=False,
        match="caseless",
        scored_as_mined=False,
    ),
    "neglabel": Recipe(
        paper="NegLabel (ICLR 2024), its own code",
        prompt=("the nice {}",),
        adjective_prompt=("This is a {} photo",),
        kinds=("noun", "adj"),
        groups=100,
        share=0.15,
        underscores="kept",
    ),
    "csp": Recipe(
        paper="CSP (NeurIPS 2024)",
        prompt=(
            *("a close-up photo of the nice {}.", "a photo with the nice {}."),
            *("a good photo with the nice {}.", "a photo of the nice {}."),
            *("{}", "the {}", "the good {}", "the nice {}"),
        ),
        adjective_prompt=(
            *("{}", "a nice photo of {}", "a good photo of {}", "a close-up photo of {}"),
        ),
        kinds=("noun", "adj"),
        groups=100,
        share=0.15,
        near_copy=0.95,
        underscores="spaces",
        exclude=("noun.person", "noun.quantity", "noun.group", "adj.pert"),
        superclasses=tuple(
            "environment space object scene place item area view thing pattern structure landscape "
            "vista creature".split()
        ),
        raw=True,
    ),
}


@dataclass(frozen=True)
class MiningConfig:
    """How negatives are mined. What is None is as the recipe has it, see :data:`RECIPES`.

    Attributes:
        recipe: ``"openood-vlm"`` (AdaNeg's own), ``"neglabel"`` or ``"csp"``.
        n_negatives: M, shared out between the kinds in proportion; or ``"all"``, as for CIFAR.
        share: share of each kind that is kept, in (0, 1], instead of ``n_negatives``.
        percentile: which of a candidate's cosines to the ID names counts, in [0, 1].
        near_copy: candidates whose largest cosine is above it go last.
        adjective_share: share of adjectives among the M, in [0, 1]; None is their share among the
            candidates, as published.
        seed: of the superclasses that CSP draws for its adjectives.
        exclude: word files to leave out, such as ``("noun.person",)``.
        prompt: templates of ID names and nouns while mining, see
            :func:`~adaneg_openood.text.prompts.templates`.
        adjective_prompt: templates of adjectives.
        match: when a candidate is an ID name and is dropped: ``"exact"`` (openood-vlm's code, where
            capitals never match), ``"caseless"`` or ``"plural"``.
        exclude_related: also drop what WordNet places at, under or above an ID class.

    Raises:
        ValueError: a value out of its range; the message names it.

    Source: NegLabel (Jiang et al., ICLR 2024), section 3.1; AdaNeg (Zhang and Zhang, NeurIPS 2024);
    CSP (Chen et al., NeurIPS 2024).
    """

    recipe: str = "openood-vlm"
    n_negatives: int | str | None = None
    share: float | None = None
    percentile: float = 0.95
    near_copy: float | None = None
    adjective_share: float | None = None
    seed: int = 0
    exclude: Sequence[str] | None = None
    prompt: Prompt | None = None
    adjective_prompt: Prompt | None = None
    match: str | None = None
    exclude_related: bool = False

    def __post_init__(self) -> None:
        check_choice("mining", self.recipe, tuple(RECIPES))
        if self.n_negatives is not None and self.share is not None:
            raise ValueError("n_negatives and share are both given; keep the one that is meant")
        count = self.n_negatives
        if count not in (None, "all") and (type(count) is not int or count < 1):
            raise ValueError(f"n_negatives must be at least 1, or 'all', got {count!r}")
        for name in ("share", "percentile", "adjective_share", "near_copy"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), 0.0, 1.0)
        if self.share == 0:
            raise ValueError("share must be above 0, or no word is kept")
        if self.adjective_share is not None and self._count() is None:
            raise ValueError("adjective_share goes with n_negatives; share keeps as much of each kind")
        if self.match is not None:
            check_choice("match", self.match, MATCHES)
        if isinstance(self.exclude, str):
            raise ValueError(f"exclude must be a list of file names, got {self.exclude!r}")
        self.prompts()

    def _count(self) -> int | str | None:
        """M, or ``"all"``; None where ``share`` decides."""
        if self.n_negatives is None and self.share is None:
            return RECIPES[self.recipe].n_negatives
        return self.n_negatives

    def resolved(self) -> MiningConfig:
        """With the recipe's values in place of None, except that nothing excludes something."""
        recipe = RECIPES[self.recipe]
        count = self._count()
        filled = {
            name: getattr(recipe, name) if getattr(self, name) is None else getattr(self, name)
            for name in ("near_copy", "exclude", "prompt", "adjective_prompt", "match")
        }
        share = self.share if count is not None or self.share is not None else recipe.share
        return dataclasses.replace(self, n_negatives=count, share=share, **filled)

    def prompts(self) -> PromptSet:
        """The templates of the mining."""
        recipe = RECIPES[self.recipe]
        words = templates(recipe.prompt if self.prompt is None else self.prompt)
        adjectives = recipe.adjective_prompt if self.adjective_prompt is None else self.adjective_prompt
        return PromptSet(words, words, templates(adjectives), recipe.raw)

    def to_json(self) -> dict[str, Any]:
        """All settings as they hold, for a list's header."""
        full = self.resolved()
        values = dataclasses.asdict(full)
        for name in ("prompt", "adjective_prompt"):
            given = getattr(self, name)
            values[name] = list(values[name]) if given is None else named(given)
        return {**values, "exclude": list(values["exclude"])}


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
