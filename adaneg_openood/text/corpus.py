"""Candidate words: WordNet's, NegLabel's released lists, or anybody's word list."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adaneg_openood.text.layouts import read_names
from adaneg_openood.text.wordnet import LEXICOGRAPHER_FILES, WordNet, WordNetMissing, download_wordnet
from adaneg_openood.text.words import clean_word

logger = logging.getLogger(__name__)

# NegLabel's choice: adjectives and all nouns except animals and food, which ImageNet is full of
DEFAULT_FILES = tuple(
    name
    for name in LEXICOGRAPHER_FILES
    if name.startswith("adj.") or (name.startswith("noun.") and name not in ("noun.animal", "noun.food"))
)
# how the released lists wrap their words, in either case and with or without the full stop
_PROMPT = re.compile(r"the nice (?P<noun>.+?)\.?$|this is an? (?P<adj>.+?) photo\.?$", re.IGNORECASE)
_LISTS = (".txt", ".csv", ".tsv", ".json")
_ADJECTIVES = re.compile(r"^adj|(?:^|[^a-z])adjs?(?:[^a-z]|$)|adjective")


@dataclass(frozen=True)
class WordFile:
    """The words of one file, of one kind, as they are written there.

    Attributes:
        name: of the file, or of WordNet's lexicographer file.
        kind: ``"adj"`` or ``"noun"``.
        words: in the file's order, not cleaned.
    """

    name: str
    kind: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Corpus:
    """Candidate words, cleaned and unique, in an order that depends on the source alone.

    Attributes:
        nouns: words for the ID template.
        adjectives: words for the adjective template.
        source: where they come from, for people.
        files: the words as they were read, for recipes that have their own rules of cleaning.
    """

    nouns: tuple[str, ...]
    adjectives: tuple[str, ...]
    source: str
    files: tuple[WordFile, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if not self.nouns and not self.adjectives:
            raise ValueError(f"{self.source}: holds no word")
        if not self.files:
            own = (WordFile("adj", "adj", self.adjectives), WordFile("noun", "noun", self.nouns))
            object.__setattr__(self, "files", tuple(file for file in own if file.words))

    @classmethod
    def of_files(cls, files: Sequence[WordFile], source: str) -> Corpus:
        """All words of each kind, the first of each spelling kept, however it was capitalised."""
        nouns, adjectives = (
            _unique(word for file in files if file.kind == kind for word in file.words)
            for kind in ("noun", "adj")
        )
        return cls(nouns, adjectives, source, tuple(files))

    def of_kind(self, kind: str) -> tuple[str, ...]:
        """The nouns or the adjectives."""
        return self.adjectives if kind == "adj" else self.nouns

    def without(self, names: Sequence[str]) -> Corpus:
        """Leave files out.

        Args:
            names: such as ``"noun.person"``, with or without ``.txt``.

        Raises:
            ValueError: one is not there, or nothing is left.
        """
        if not names:
            return self
        unwanted = {name.removesuffix(".txt") for name in names}
        stems = [file.name.removesuffix(".txt") for file in self.files]
        missing = sorted(unwanted - set(stems))
        if missing:
            raise ValueError(
                f"{self.source}: no file {', '.join(missing)} to exclude; it has "
                f"{', '.join(dict.fromkeys(stems))}. Name other files, or exclude none"
            )
        left = [file for file, stem in zip(self.files, stems) if stem not in unwanted]
        return Corpus.of_files(left, self.source)

    def as_read(self, spaces: bool) -> Corpus:
        """The words as NegLabel's and CSP's code read them.

        Files are read in the order of their names. A word that was read before, in any file, does not
        count; capitals do.

        Args:
            spaces: underscores become spaces.
        """
        seen: set[str] = set()
        words: dict[str, list[str]] = {"noun": [], "adj": []}
        for file in sorted(self.files, key=lambda file: file.name):
            for word in file.words:
                word = (word.replace("_", " ") if spaces else word).strip()
                if word and word not in seen:
                    seen.add(word)
                    words[file.kind].append(word)
        return Corpus(tuple(words["noun"]), tuple(words["adj"]), self.source, self.files)

    def __len__(self) -> int:
        return len(self.nouns) + len(self.adjectives)

    @property
    def digest(self) -> str:
        """SHA-256 of all words in order, 16 hex digits."""
        text = "\n".join([*self.adjectives, "", *self.nouns])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_corpus(
    source: str | os.PathLike[str] = "wordnet",
    *,
    wordnet: str | os.PathLike[str] | WordNet | None = None,
    files: Sequence[str] | None = None,
    lemmas: str = "first",
    download: bool = False,
) -> Corpus:
    """Candidate words.

    Args:
        source: ``"wordnet"``, or a text file or folder, see :func:`read_word_lists`.
        wordnet: the folder or zip file of WordNet, or an open one; None looks in the usual places.
        files: lexicographer files; None takes adjectives and all nouns but animals and food.
        lemmas: ``"first"`` takes the first word of each synset (58,514 nouns and 14,006 adjectives
            of WordNet 3.0, which comes closest to the 58,546 and 13,091 of NegLabel's released
            lists), ``"all"`` every synonym (101,807 and 21,479).
        download: let nltk fetch WordNet if it is nowhere; False never touches the network.

    Raises:
        WordNetMissing: it is nowhere; the message gives the one command.
        ValueError: no words, or an unknown lexicographer file.
        OSError: a file cannot be read.
    """
    if os.fspath(source) != "wordnet":
        if files is not None:
            raise ValueError("lexicographer files are WordNet's; a word list is taken whole")
        return read_word_lists(source)
    if not isinstance(wordnet, WordNet):
        try:
            wordnet = WordNet(wordnet)
        except WordNetMissing:
            if not download or wordnet is not None:
                raise
            download_wordnet()
            wordnet = WordNet()
    chosen = DEFAULT_FILES if files is None else tuple(files)
    wrong = [name for name in chosen if not name.startswith(("noun.", "adj."))]
    if wrong:
        raise ValueError(
            f"only noun and adjective files can be mined, because each needs its prompt; "
            f"got {', '.join(wrong)}"
        )
    words = wordnet.words(chosen, lemmas)
    return Corpus.of_files(
        [WordFile(name, name.partition(".")[0], tuple(words[name])) for name in chosen],
        source=f"WordNet {wordnet.version} ({lemmas} lemmas of {len(chosen)} lexicographer files)",
    )


def read_word_lists(path: str | os.PathLike[str]) -> Corpus:
    """Words from a file, or from all lists of a folder in the order of their names.

    Files may have any layout of docs/file_layouts.md. The released NegLabel lists hold finished prompts
    ("the nice yellow clintonia", "This is a red photo."): they are recognised and unwrapped, so that no
    word is wrapped twice. Words are nouns, unless their file's own columns or prompts say otherwise, or
    its name says that it holds adjectives (``adj.all.txt``, ``wordnet_adjs.txt``).

    Raises:
        ValueError: no words, a line that is no word, or not UTF-8.
        FileNotFoundError: no such file or folder.
    """
    place = Path(path)
    if place.is_dir():
        files = sorted(file for file in place.glob("[!.]*") if file.suffix in _LISTS)
        if not files:
            raise ValueError(f"{place}: no list of words ({', '.join(_LISTS)}) in this folder")
    elif place.is_file():
        files = [place]
    else:
        raise FileNotFoundError(f"{place}: no such word list; give a file, a folder, or wordnet")
    found: list[WordFile] = []
    for file in files:
        if file.name.startswith(("verb.", "adv.")):
            logger.warning("%s: verbs and adverbs have no prompt, so it is left out", file)
            continue
        read = read_names(file, words=True)
        if read.names is None:
            raise ValueError(f"{file}: holds wnids alone; put the words beside them, as 'wnid word'")
        words, kinds = _unwrapped(file, read.names)
        kinds = kinds or read.kinds or (_kind_by_name(file),) * len(words)
        for kind in ("noun", "adj"):
            own = tuple(word for word, of in zip(words, kinds) if of == kind)
            if own:
                found.append(WordFile(file.name, kind, own))
    return Corpus.of_files(found, source=str(place))


def _kind_by_name(file: Path) -> str:
    if file.name.startswith(("adj.", "noun.")):
        return file.name.partition(".")[0]
    if not _ADJECTIVES.search(file.stem.lower()):
        return "noun"
    logger.warning(
        "%s: taken for adjectives, because of its name; call it noun.txt if they are nouns, or give the "
        "kind in each line, as 'noun word'",
        file,
    )
    return "adj"


def _unwrapped(file: Path, words: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """The words of finished prompts, and their kinds; other words as they are, without kinds."""
    matches = [_PROMPT.match(word) for word in words]
    # most lines, not all: one stray line must not leave ten thousand words wrapped
    if 2 * sum(map(bool, matches)) <= len(words):
        return tuple(words), None
    logger.info("%s: its lines are finished prompts; the words are taken out of them", file)
    default = "adj" if file.name.startswith("adj.") else "noun"
    kinds = tuple(str(match.lastgroup) if match else default for match in matches)
    taken = (match[kind] if match else word for word, match, kind in zip(words, matches, kinds))
    return tuple(taken), kinds


def _unique(words: Iterable[str]) -> tuple[str, ...]:
    """Cleaned, the first of each spelling kept, however it was capitalised."""
    seen: dict[str, str] = {}
    for word in filter(None, map(clean_word, words)):
        seen.setdefault(word.casefold(), word)
    return tuple(seen.values())
