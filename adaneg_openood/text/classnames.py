"""Names of the ID classes, in the label order of the benchmark."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from adaneg_openood.io.names import listed
from adaneg_openood.text.layouts import read_names
from adaneg_openood.text.words import clean_word

logger = logging.getLogger(__name__)

_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()
# No library that pip installs carries CIFAR-100's names without its images.
_CIFAR100 = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab
    crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo
    keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse
    mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy
    porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper
    snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television
    tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
""".split()
# BIMCV-COVID19+ has no class names of its own; its labels are 0 and 1. A file overrides these.
_BIMCV = ("COVID-19 negative chest X-ray", "COVID-19 positive chest X-ray")


@dataclass(frozen=True)
class ClassNames:
    """The ID classes of a benchmark; row i is label i.

    Attributes:
        source: benchmark name or file.
        names: C names; two classes may share one, and each keeps its row.
        wnids: C WordNet ids where the benchmark has them.
    """

    source: str
    names: tuple[str, ...]
    wnids: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError(f"{self.source}: holds no class name")
        empty = [str(row) for row, name in enumerate(self.names) if not name.strip()]
        if empty:
            raise ValueError(f"{self.source}: empty class name for label(s) {', '.join(empty)}")
        if self.wnids is not None and len(self.wnids) != len(self.names):
            raise ValueError(f"{self.source}: {len(self.names)} names but {len(self.wnids)} wnids")
        if self.wnids is not None and len(set(self.wnids)) < len(self.wnids):
            same = Counter(self.wnids).most_common(1)[0][0]
            raise ValueError(f"{self.source}: the wnid {same} stands for two classes")
        twice = [name for name, n in Counter(self.names).items() if n > 1]
        if twice:
            logger.info("%s: name(s) of several classes, each keeps its row: %s", self.source, twice)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def digest(self) -> str:
        """SHA-256 of the names in order, 16 hex digits."""
        return hashlib.sha256("\n".join(self.names).encode()).hexdigest()[:16]


def class_names(source: str | os.PathLike[str]) -> ClassNames:
    """The classes of a benchmark, or of the user's own file.

    Args:
        source: ``"imagenet"`` (OpenAI's names, which published numbers use), ``"imagenet200"``
            (OpenOOD's, the classes of ImageNet-R), ``"cifar10"``, ``"cifar100"``, ``"bimcv"``; or a
            file in any layout of docs/file_layouts.md.

    Raises:
        ValueError: neither a benchmark nor a file, or the file holds no names.

    Example:
        >>> class_names("cifar10").names[:2]
        ('airplane', 'automobile')
    """
    key = os.fspath(source)
    builder = BENCHMARKS.get(benchmark_key(key))
    if builder is not None:
        return builder()
    if not Path(key).is_file():
        raise ValueError(
            f"{key!r} is neither a file of class names nor one of "
            "imagenet, imagenet200, cifar10, cifar100, bimcv"
        )
    return read_class_names(key)


def benchmark_key(name: str) -> str:
    """A benchmark's name as :data:`BENCHMARKS` has it: case, ``-`` and ``_`` do not count.

    Example:
        >>> benchmark_key("ImageNet-1k")
        'imagenet1k'
    """
    return name.lower().replace("-", "").replace("_", "")


def _imagenet() -> ClassNames:
    from open_clip import IMAGENET_CLASSNAMES

    wnids = tuple(_timm_table("imagenet_synsets.txt").split())
    return ClassNames("imagenet", tuple(IMAGENET_CLASSNAMES), wnids)


def _imagenet200() -> ClassNames:
    # OpenOOD's ImageNet-200 is the 200 classes of ImageNet-R in the order of their wnids.
    whole, rows = _imagenet(), [int(row) for row in _timm_table("imagenet_r_indices.txt").split()]
    names, wnids = (tuple(part[row] for row in rows) for part in (whole.names, whole.wnids or ()))
    return ClassNames("imagenet200", names, wnids)


def _timm_table(name: str) -> str:
    """A table of timm, which open_clip depends on, without importing timm (seconds)."""
    spec: Any = find_spec("timm")
    return (Path(spec.origin).parent / "data" / "_info" / name).read_text("utf-8")


BENCHMARKS: dict[str, Any] = {
    "imagenet": _imagenet,
    "imagenet1k": _imagenet,
    "imagenet200": _imagenet200,
    "cifar10": lambda: ClassNames("cifar10", tuple(_CIFAR10)),
    "cifar100": lambda: ClassNames("cifar100", tuple(map(clean_word, _CIFAR100))),
    "bimcv": lambda: ClassNames("bimcv", _BIMCV),
}


def read_class_names(path: str | os.PathLike[str]) -> ClassNames:
    """Class names from a file, in any layout of docs/file_layouts.md; wnids are kept.

    Rows are in the order of the labels where the file has them, else in its own order. Wnids without
    names get ImageNet's, or their first WordNet word.

    Raises:
        ValueError: a line or entry that is no name, labels that are not 0..C-1 or 1..C, unknown wnids,
            or not UTF-8; the message shows it, and what would do.
        OSError: the file cannot be read.
    """
    found = read_names(Path(path))
    names = found.names or names_of_wnids(found.wnids or (), str(path))
    return ClassNames(str(path), tuple(map(clean_word, names)), found.wnids)


def names_of_wnids(wnids: Sequence[str], source: str) -> tuple[str, ...]:
    """OpenAI's names of ImageNet's classes, the first WordNet word of other nouns.

    Raises:
        ValueError: a wnid that is in neither list; ``source`` is named.
    """
    whole = _imagenet()
    known = dict(zip(whole.wnids or (), whole.names))
    if not all(wnid in known for wnid in wnids):
        lines = _timm_table("imagenet_synset_to_lemma.txt").splitlines()
        lemmas = dict(line.split("\t", 1) for line in lines if "\t" in line)
        known = {**{wnid: words.split(",")[0] for wnid, words in lemmas.items()}, **known}
    missing = [wnid for wnid in wnids if wnid not in known]
    if missing:
        raise ValueError(
            f"{source}: no name is known for the wnid(s) {listed(missing)}; put the names beside them, "
            "as 'wnid name'"
        )
    return tuple(known[wnid] for wnid in wnids)
