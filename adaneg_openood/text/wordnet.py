"""WordNet through nltk, offline, from any folder or zip file that holds its database."""

from __future__ import annotations

import io
import logging
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adaneg_openood.io.files import refuse_bombs
from adaneg_openood.text.words import fold

logger = logging.getLogger(__name__)

ENVIRONMENT = "ADANEG_WORDNET"
# where Linux distributions' packages put the database
_SYSTEM = ("/usr/share/wordnet", "/usr/share/wordnet/dict", "/usr/local/WordNet-3.0/dict")
_CORPORA = ("wordnet", "wordnet.zip")  # as nltk downloads it
_NEEDED = ("data.noun", "index.noun", "data.adj", "index.adj")
_DOWNLOAD = "python -m nltk.downloader wordnet"
_WNID = re.compile(r"n\d{8}$")

# lexnames(5WN). The names are compiled into WordNet's own library, so packages may leave the file out.
LEXICOGRAPHER_FILES = (
    *("adj.all", "adj.pert", "adv.all", "noun.Tops", "noun.act", "noun.animal", "noun.artifact"),
    *("noun.attribute", "noun.body", "noun.cognition", "noun.communication", "noun.event"),
    *("noun.feeling", "noun.food", "noun.group", "noun.location", "noun.motive", "noun.object"),
    *("noun.person", "noun.phenomenon", "noun.plant", "noun.possession", "noun.process"),
    *("noun.quantity", "noun.relation", "noun.shape", "noun.state", "noun.substance", "noun.time"),
    *("verb.body", "verb.change", "verb.cognition", "verb.communication", "verb.competition"),
    *("verb.consumption", "verb.contact", "verb.creation", "verb.emotion", "verb.motion"),
    *("verb.perception", "verb.possession", "verb.social", "verb.stative", "verb.weather", "adj.ppl"),
)


class WordNetMissing(FileNotFoundError):
    """WordNet's database is nowhere to be found; the message says how to get it."""


def find_wordnet(path: str | os.PathLike[str] | None = None) -> str:
    """Where WordNet's database is.

    Args:
        path: a folder, or a zip file, that holds ``data.noun`` and the rest at its top or one or
            two folders down (``dict/``, ``corpora/wordnet/``). None looks at the environment
            variable ``ADANEG_WORDNET``, nltk's data folders and where Debian's wordnet-base puts it.

    Returns:
        A folder, or ``file.zip/inner/`` in nltk's notation.

    Raises:
        WordNetMissing: nothing there; the message gives the one command that fetches it.
        ValueError: a zip file that is damaged, and WordNet is nowhere else.
    """
    import nltk.data

    told = path or os.environ.get(ENVIRONMENT)
    usual = [Path(folder, "corpora", name) for folder in nltk.data.path for name in _CORPORA]
    places = [Path(told).expanduser()] if told else [*usual, *map(Path, _SYSTEM)]
    damaged: ValueError | None = None
    for place in places:
        try:
            found = _inside(place)
        except ValueError as error:
            damaged = damaged or error  # another place may have it whole
            continue
        if found is not None:
            return found
    if damaged is not None:
        raise damaged
    raise WordNetMissing(
        f"WordNet was not found in {told or 'the folders of nltk and the system'}: no folder or zip "
        f"file with {', '.join(_NEEDED)}. Get it with\n    {_DOWNLOAD}\nor, on Debian and Ubuntu, "
        "apt-get install wordnet-base; or name the folder that holds it"
    )


def download_wordnet() -> None:
    """Let nltk fetch WordNet into its data folder. Raises OSError where that fails."""
    import nltk

    logger.info("fetching WordNet through nltk")
    if not nltk.download("wordnet", quiet=True):
        raise OSError(f"nltk could not fetch WordNet; try {_DOWNLOAD}, or name a folder that holds it")


class WordNet:
    """WordNet's database.

    Args:
        path: see :func:`find_wordnet`.

    Raises:
        WordNetMissing: no database there.
        ValueError: a damaged database.

    Source: Princeton WordNet 3.0, wndb(5WN); read by nltk.corpus.reader.wordnet.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = find_wordnet(path)
        with self._reading():
            self._reader = _open_reader(self.path)
            self.version: str = self._reader.get_version() or "unknown"

    def words(self, files: Iterable[str], lemmas: str = "first") -> dict[str, list[str]]:
        """The words of lexicographer files.

        Args:
            files: names such as ``"noun.plant"``.
            lemmas: ``"first"`` takes each synset's first word, ``"all"`` every synonym.

        Returns:
            file -> unique words as WordNet spells them (underscores, case), in database order.

        Raises:
            ValueError: unknown file or unknown ``lemmas``.
        """
        wanted = list(dict.fromkeys(files))
        unknown = sorted(set(wanted) - set(LEXICOGRAPHER_FILES))
        if unknown:
            raise ValueError(
                f"unknown lexicographer file(s) {', '.join(unknown)}; they are called like "
                f"noun.plant or adj.all: {', '.join(LEXICOGRAPHER_FILES)}"
            )
        if lemmas not in ("first", "all"):
            raise ValueError(f"lemmas must be 'first' or 'all', got {lemmas!r}")
        found: dict[str, dict[str, None]] = {name: {} for name in wanted}
        letters = {"noun": "n", "adj": "a", "adv": "r", "verb": "v"}
        # nltk keeps every synset it has met, 250 MB in the end; each is needed once here
        cache = getattr(self._reader, "_synset_offset_cache", {})
        for pos in dict.fromkeys(letters[name.partition(".")[0]] for name in wanted):
            with self._reading():
                for synset in self._reader.all_synsets(pos):
                    words = found.get(synset.lexname())
                    if words is not None:
                        names = synset.lemma_names()
                        words.update(dict.fromkeys(names[:1] if lemmas == "first" else names))
                    cache.get(pos, {}).clear()
        return {name: list(words) for name, words in found.items()}

    def related(self, classes: Iterable[str]) -> set[str]:
        """Words that WordNet places at, under or above the given classes.

        Args:
            classes: wnids such as ``"n02084071"`` (exact), or names: then every noun sense counts,
                because a name does not say which is meant.

        Returns:
            Folded words (see :func:`~adaneg_openood.text.words.fold`).

        Raises:
            ValueError: a wnid that this WordNet lacks; ImageNet's are WordNet 3.0's.
        """
        related: set[Any] = set()
        for name in classes:
            if _WNID.match(name):
                synsets = [self._synset(name)]
            else:
                synsets = self._reader.synsets(name.strip().replace(" ", "_"), "n")
            for synset in synsets:
                related.add(synset)
                related.update(synset.closure(lambda s: s.hyponyms() + s.instance_hyponyms()))
                related.update(synset.closure(lambda s: s.hypernyms() + s.instance_hypernyms()))
        return {fold(word) for synset in related for word in synset.lemma_names()}

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # nltk checks little: StopIteration, KeyError, any may come
            raise ValueError(f"{self.path}: not a readable WordNet database, {error!r}") from error

    def _synset(self, wnid: str) -> Any:
        synset, cause = None, None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error below says it better
            try:
                synset = self._reader.synset_from_pos_and_offset("n", int(wnid[1:]))
            except Exception as error:  # an offset amid a line: nltk raises what the parsing raises
                cause = error
        if synset is None:
            raise ValueError(
                f"{wnid} is not in the WordNet at {self.path} (version {self.version}); "
                "ImageNet's wnids are those of WordNet 3.0"
            ) from cause
        return synset


def _inside(place: Path) -> str | None:
    if place.is_dir():
        for folder in (place, place / "dict", place / "wordnet", place / "corpora" / "wordnet"):
            if all((folder / name).is_file() for name in _NEEDED):
                return str(folder.resolve())
        for file in (place / "wordnet.zip", place / "corpora" / "wordnet.zip"):
            if file.is_file():
                return _inside(file)
    elif place.is_file():
        names = _entries(place)
        for name in sorted(names):
            folder_in_zip = name[: -len("data.noun")]
            if name.endswith("data.noun") and all(folder_in_zip + n in names for n in _NEEDED):
                return f"{place.resolve()}/{folder_in_zip}"
    return None


def _entries(place: Path) -> set[str]:
    """The names in a zip file whose every byte is there; none for another kind of file.

    Raises:
        ValueError: damaged, such as by a download that broke off.
    """
    if place.suffix != ".zip" and not zipfile.is_zipfile(place):
        return set()
    try:
        with zipfile.ZipFile(place) as archive:
            refuse_bombs(place, archive)
            broken = archive.testzip()
            if broken is not None:
                raise zipfile.BadZipFile(f"{broken!r} in it does not have its checksum")
            return set(archive.namelist())
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
        raise ValueError(
            f"{place}: damaged, {error}; a download may have broken off: remove the file and run "
            f"{_DOWNLOAD}"
        ) from error


def _open_reader(path: str) -> Any:
    import nltk.data
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    class Reader(WordNetCorpusReader):  # type: ignore[misc]
        """The English database alone; packages without ``lexnames`` (Debian's) work too."""

        def map_wn(self, version: str = "wordnet") -> None:
            return None  # only for other languages, and it would need a second copy of WordNet

        def open(self, file: str) -> Any:
            try:
                return super().open(file)
            except (OSError, KeyError):
                if file.endswith(".exc"):
                    return io.StringIO("")  # irregular plurals, which are not asked for here
                if file != "lexnames":
                    raise
                kinds = {"noun": 1, "verb": 2, "adj": 3, "adv": 4}
                rows = enumerate(LEXICOGRAPHER_FILES)
                lines = [f"{i:02d}\t{name}\t{kinds[name.partition('.')[0]]}\n" for i, name in rows]
                return io.StringIO("".join(lines))

    root: Any = path
    zipped = re.match(r"(.*\.zip)/(.*)$", path)
    place = zipped.group(1) if zipped else path
    # nltk opens files only under its data path; a folder the user named is meant to be read
    if place not in nltk.data.path:
        nltk.data.path.append(place)
    if zipped:
        root = nltk.data.ZipFilePathPointer(place, zipped.group(2))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The multilingual functions")
        return Reader(root, None)
