"""Whether features were made by one model, so that they may be compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

# of describe(): what must agree before two feature files may be used together
IDENTITY = ("model", "weights", "dim", "preprocessing")


def differing(
    one: Mapping[str, Any], other: Mapping[str, Any], identity: Sequence[str] = IDENTITY
) -> Iterator[str]:
    """The keys of two provenances that both have, and that tell two models apart."""
    same_weights = "weights" in one and one["weights"] == other.get("weights")
    for key in identity:
        if key == "model" and same_weights:
            continue  # the same checkpoint under another path
        if key in one and key in other and one[key] != other[key]:
            yield key


def refuse_mixed(told: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare what files, by name, say of the model that they were made with.

    Raises:
        ValueError: two were made with different ones.
    """
    for (one, own), (other, known) in combinations(told.items(), 2):
        for key in differing(own, known):
            raise ValueError(
                f"{one} was made with {key} {own[key]!r}, but {other} with {known[key]!r}; features of "
                "different models or preprocessing cannot be compared, so encode one of them again"
            )
