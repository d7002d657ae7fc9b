"""Words as people and WordNet write them, and when two of them name the same thing."""

from __future__ import annotations

import re
import unicodedata

MATCHES = ("exact", "caseless", "plural")

# WordNet's own noun detachment rules (morphy(7WN)): ending of the plural, ending of the singular
_PLURALS = (
    *(("s", ""), ("ses", "s"), ("ves", "f"), ("ves", "fe"), ("xes", "x"), ("zes", "z")),
    *(("ches", "ch"), ("shes", "sh"), ("oes", "o"), ("men", "man"), ("ies", "y")),
)


def clean_word(word: str) -> str:
    """Underscores and runs of white space to one space, Unicode composed (NFC); case is kept."""
    return " ".join(unicodedata.normalize("NFC", word).replace("_", " ").split())


def fold(word: str) -> str:
    """What two spellings of one word share: case, underscores and compatibility forms do not count."""
    return " ".join(unicodedata.normalize("NFKC", word).casefold().replace("_", " ").split())


def synonyms(name: str) -> tuple[str, ...]:
    """The words that one class name gives: itself, and what stands between commas, semicolons and " / ".

    Example:
        >>> synonyms("tench, Tinca tinca")
        ('tench, Tinca tinca', 'tench', 'Tinca tinca')
    """
    parts = [part.strip() for part in re.split(r"[,;]| / ", name)]
    return tuple(dict.fromkeys(part for part in (name, *parts) if part))


def keys(word: str, match: str) -> frozenset[str]:
    """Two words are the same under ``match`` if their keys meet.

    Args:
        word: any spelling.
        match: ``"exact"`` compares cleaned spellings, case included, as NegLabel's code does;
            ``"caseless"`` folds case; ``"plural"`` also takes "dogs" and "dog" for the same.

    Example:
        >>> bool(keys("Fire_Engines", "plural") & keys("fire engine", "plural"))
        True
    """
    if match == "exact":
        return frozenset([clean_word(word)])
    return frozenset(_singulars(fold(word)) if match == "plural" else [fold(word)])


def _singulars(word: str) -> set[str]:
    """The word and what it may be the plural of; a few candidates too many do no harm."""
    found = {word}
    head = re.match(r"(.*?)( (?:of|in|on|and|with|for) .*)?$", word)
    # "birds of prey": the word before the preposition carries the plural
    stem, rest = (head.group(1), head.group(2) or "") if head else (word, "")
    for plural, singular in _PLURALS:
        short = stem[: len(stem) - len(plural)] + singular
        # three letters at least: "bus" is not the plural of "bu"
        if stem.endswith(plural) and len(short) >= 3 and not stem.endswith("ss"):
            found.add(short + rest)
    return found
