"""The readable list in which negative labels are kept."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from adaneg_openood.io.checks import check_choice
from adaneg_openood.io.files import atomic_path
from adaneg_openood.text.corpus import Corpus, read_word_lists
from adaneg_openood.text.prompts import NameEncoder, PromptSet
from adaneg_openood.text.recipes import KINDS, RECIPES

_HEADER = "adaneg-openood negative labels, version 1"


@dataclass(frozen=True)
class NegativeLabels:
    """Negative labels in the order of their rows: all of one kind, then all of the other.

    Attributes:
        words: M words.
        kinds: ``"adj"`` or ``"noun"`` per word. Adjectives come first, unless the recipe has it the
            other way.
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
        if self.mining is not None:
            check_choice("mining", self.mining, tuple(RECIPES))
        if self.groups is not None and (type(self.groups) is not int or self.groups < 1):
            raise ValueError(f"groups must be a whole number from 1, got {self.groups!r}")
        self.prompts  # noqa: B018  a damaged header is told now, not when its prompts are used
        if [*self.kinds] != [kind for kind in self.order for own in self.kinds if own == kind]:
            first, second = ({"adj": "adjectives", "noun": "nouns"}[kind] for kind in self.order)
            raise ValueError(f"{first} must come before {second}, the row order of every feature file")

    def __len__(self) -> int:
        return len(self.words)

    @property
    def mining(self) -> str | None:
        """The recipe they were mined with; None for a list from elsewhere."""
        return self.provenance.get("mining")

    @property
    def groups(self) -> int | None:
        """The number of groups that the recipe's score was published with, if it is known."""
        return self.provenance.get("groups")

    @property
    def prompts(self) -> PromptSet | None:
        """The templates that the list is to be scored with; None leaves the choice to the user."""
        told = self.provenance.get("prompts")
        return None if told is None else PromptSet.from_json(told)

    @property
    def order(self) -> tuple[str, str]:
        """The two kinds, in the order of their rows."""
        return KINDS if self.mining is None else RECIPES[self.mining].kinds

    def of_kind(self, kind: str) -> tuple[str, ...]:
        """The words of one kind, in order."""
        return tuple(word for word, own in zip(self.words, self.kinds) if own == kind)

    def rows(self, encoder: NameEncoder, prompts: PromptSet) -> list[Tensor]:
        """Their features, one (n, D) tensor per kind in the order of the rows."""
        templates_of = ((kind, getattr(prompts, kind)) for kind in self.order)
        return [encoder.rows(self.of_kind(kind), own, prompts.raw) for kind, own in templates_of]

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
            return cls.of_corpus(read_word_lists(file))
        words, kinds, provenance, count = [], [], {}, None
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
        if count not in (None, len(words)):
            raise ValueError(
                f"{file}: says it holds {count} words but has {len(words)}; "
                "it was cut off, or edited: then delete its line '# count', too"
            )
        try:
            return cls(tuple(words), tuple(kinds), provenance)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    @classmethod
    def of_corpus(cls, corpus: Corpus) -> NegativeLabels:
        """Take a word list as it is, without mining: NegLabel's released selection, for instance."""
        kinds = ("adj",) * len(corpus.adjectives) + ("noun",) * len(corpus.nouns)
        about = {"corpus": corpus.source, "corpus_sha256": corpus.digest}
        return cls(corpus.adjectives + corpus.nouns, kinds, about)
