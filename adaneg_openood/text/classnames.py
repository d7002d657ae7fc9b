"""Names of the ID classes, in the label order of the benchmark."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaneg_openood.text.words import clean_word

logger = logging.getLogger(__name__)

_WNID = re.compile(r"n\d{8}")
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
        twice = [name for name, n in Counter(self.names).items() if n > 1]
        if twice:
            logger.info("%s: name(s) of several classes, each keeps its row: %s", self.source, twice)

    def __len__(self) -> int:
        return len(self.names)


def class_names(source: str | os.PathLike[str]) -> ClassNames:
    """The classes of a benchmark, or of the user's own file.

    Args:
        source: ``"imagenet"`` (OpenAI's names, which published numbers use), ``"imagenet200"``
            (OpenOOD's, the classes of ImageNet-R), ``"cifar10"``, ``"cifar100"``, ``"bimcv"``; or a
            file, see :func:`read_class_names`.

    Raises:
        ValueError: neither a benchmark nor a file, or the file holds no names.

    Example:
        >>> class_names("cifar10").names[:2]
        ('airplane', 'automobile')
    """
    key = os.fspath(source)
    builder = BENCHMARKS.get(key.lower().replace("-", "").replace("_", ""))
    if builder is not None:
        return builder()
    if not Path(key).is_file():
        raise ValueError(
            f"{key!r} is neither a file of class names nor one of "
            "imagenet, imagenet200, cifar10, cifar100, bimcv"
        )
    return read_class_names(key)


def _imagenet() -> ClassNames:
    from open_clip import IMAGENET_CLASSNAMES

    return ClassNames("imagenet", tuple(IMAGENET_CLASSNAMES), _imagenet_wnids())


def _imagenet200() -> ClassNames:
    # OpenOOD's ImageNet-200 is the 200 classes of ImageNet-R in the order of their wnids.
    whole, rows = _imagenet(), [int(row) for row in _timm_table("imagenet_r_indices.txt").split()]
    assert whole.wnids is not None
    return ClassNames(
        "imagenet200",
        tuple(whole.names[row] for row in rows),
        tuple(whole.wnids[row] for row in rows),
    )


def _imagenet_wnids() -> tuple[str, ...]:
    return tuple(_timm_table("imagenet_synsets.txt").split())


def _timm_table(name: str) -> str:
    """A table of timm, which open_clip depends on, without importing timm (seconds)."""
    from importlib.util import find_spec

    spec = find_spec("timm")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("ImageNet's wnids come from timm: pip install timm")
    return (Path(spec.submodule_search_locations[0]) / "data" / "_info" / name).read_text("utf-8")


BENCHMARKS: dict[str, Any] = {
    "imagenet": _imagenet,
    "imagenet1k": _imagenet,
    "imagenet200": _imagenet200,
    "cifar10": lambda: ClassNames("cifar10", tuple(_CIFAR10)),
    "cifar100": lambda: ClassNames("cifar100", tuple(map(clean_word, _CIFAR100))),
    "bimcv": lambda: ClassNames("bimcv", _BIMCV),
}


def read_class_names(path: str | os.PathLike[str]) -> ClassNames:
    """Class names from a file; line i is label i.

    Text: one name a line, or ``wnid<TAB>name`` or ``wnid name`` (then the wnids are kept); blank
    lines at the end do not count. ``.json``: a list of names, or ``{"0": "name", ...}``.

    Raises:
        ValueError: no names, an empty line between names, labels that are not 0..C-1, or not UTF-8.
        OSError: the file cannot be read.
    """
    file = Path(path)
    try:
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: class names must be UTF-8 text, {error}") from error
    if file.suffix == ".json":
        return ClassNames(str(file), tuple(_from_json(file, text)))
    lines = [line.strip() for line in text.rstrip().splitlines()]
    empty = [str(number) for number, line in enumerate(lines, 1) if not line]
    if empty:
        raise ValueError(
            f"{file}: line(s) {', '.join(empty)} are empty; line i names label i, so none may be"
        )
    pairs = [re.split(r"\s+", line, maxsplit=1) for line in lines]
    if pairs and all(len(pair) == 2 and _WNID.fullmatch(pair[0]) for pair in pairs):
        names = tuple(clean_word(name) for _, name in pairs)
        return ClassNames(str(file), names, tuple(wnid for wnid, _ in pairs))
    return ClassNames(str(file), tuple(clean_word(line) for line in lines))


def classes_of_folders(source: str, folders: Mapping[int, str]) -> ClassNames:
    """Class names from the folders that images lie in.

    Args:
        source: of the folders, for messages.
        folders: label -> name of the folder. Folders that are ImageNet's wnids get ImageNet's names.

    Raises:
        ValueError: labels that are not 0..C-1, or one folder for several labels.
    """
    names = _in_order(source, dict(folders))
    if len(set(names)) < len(names):
        raise ValueError(f"{source}: one folder holds several labels; give a file of class names")
    if all(_WNID.fullmatch(name) for name in names):
        whole = _imagenet()
        known = dict(zip(whole.wnids or (), whole.names))
        if all(name in known for name in names):
            return ClassNames(source, tuple(known[name] for name in names), tuple(names))
    return ClassNames(source, tuple(map(clean_word, names)))


def _from_json(file: Path, text: str) -> list[str]:
    try:
        loaded = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON, {error}") from error
    if isinstance(loaded, dict):
        try:
            loaded = _in_order(str(file), {int(key): value for key, value in loaded.items()})
        except ValueError as error:
            raise ValueError(f"{file}: keys must be labels 0, 1, ...; {error}") from error
    if not isinstance(loaded, list) or not all(isinstance(name, str) for name in loaded):
        raise ValueError(f"{file}: must be a list of names, or an object from label to name")
    return [clean_word(name) for name in loaded]


def _in_order(source: str, by_label: dict[int, str]) -> Sequence[Any]:
    # the first few only: a label may be a billion by mistake
    gaps = (label for label in range(max(by_label, default=-1) + 1) if label not in by_label)
    missing = list(itertools.islice(gaps, 8))
    if missing:
        listed = ", ".join(map(str, missing))
        raise ValueError(f"{source}: no name for label(s) {listed}; labels must be 0..C-1")
    return [by_label[label] for label in sorted(by_label)]
