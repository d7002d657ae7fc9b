"""Which label a class folder stands for: told by its name, never by its position."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Union

from adaneg_openood.io.names import listed
from adaneg_openood.text.classnames import ClassNames, names_of_wnids
from adaneg_openood.text.columns import ListFile, peeled
from adaneg_openood.text.words import clean_word, fold

_WNID = re.compile(r"n[0-9]{8}")
_INDEX = re.compile(r"[0-9]{1,9}")

Classes = Union[ClassNames, Sequence[str]]


def named_classes(where: str, folders: Sequence[str]) -> ClassNames:
    """The classes that folders name, in their order; ImageNet's wnids get ImageNet's names.

    Raises:
        ValueError: the folders are numbers, which name nothing, or unknown wnids.
    """
    if all(map(_INDEX.fullmatch, folders)):
        raise ValueError(
            f"{where}: its classes are called by numbers ({listed(folders)}), which name nothing; give "
            "the class names"
        )
    names, wnids = _parts(where, folders)
    if wnids is not None and not any(names):
        names = names_of_wnids(wnids, where)
    return ClassNames(where, tuple(map(clean_word, names)), wnids)


def _parts(where: str, folders: Sequence[str]) -> tuple[Sequence[str], tuple[str, ...] | None]:
    """The names in folders such as ``001.Crow`` and ``n01440764-tench``, and their wnids, if any."""
    file = ListFile(Path(where), words=False)
    file.places, file.shown = [f"folder {name}" for name in folders], list(folders)
    columns, names = peeled(file, list(folders), strict=False)
    wnids = [tuple(cells) for _, cells in columns if _WNID.fullmatch(cells[0])]
    return names, wnids[0] if wnids else None


def labels_of_folders(where: str, folders: Sequence[str], classes: ClassNames | None) -> dict[str, int]:
    """Folder -> label.

    Without ``classes`` a folder's label is its place, or its number. With them folders are matched with
    names (case, underscores and the synonyms behind a comma do not count), with wnids, or, where all are
    numbers and none is a name, with labels.

    Raises:
        ValueError: a folder that is no class, or two of one class; the message shows both sides.
    """
    numbers = all(map(_INDEX.fullmatch, folders))
    if classes is None:
        return {folder: int(folder) if numbers else label for label, folder in enumerate(folders)}
    found = match_names(folders, classes)
    if len(found) < len(folders) and not numbers:
        names, wnids = _parts(where, folders)
        by_part = {**match_names(names, classes), **match_names(wnids or (), classes)}
        for folder, *parts in zip(folders, names, wnids or names):
            labels_of = [by_part[part] for part in parts if part in by_part]
            if folder not in found and labels_of:
                found[folder] = labels_of[0]
    if numbers and not found:
        found = {folder: int(folder) for folder in folders if int(folder) < len(classes)}
    labels = list(found.values())
    unknown = [folder for folder in folders if folder not in found]
    if unknown or len(set(labels)) < len(labels):
        twice = [folder for folder in found if labels.count(found[folder]) > 1]
        wrong = f"{listed(unknown)} are no class" if unknown else f"{listed(twice)} are one class"
        free = [name for label, name in enumerate(classes.names) if label not in labels]
        raise ValueError(
            f"{where}: its folder(s) {wrong}. The {len(classes)} classes of {classes.source} are "
            f"{listed(classes.names)}; those without a folder are {listed(free) or 'none'}. Rename "
            "the folders, or give the names of these classes"
        )
    return found


def match_names(own: Iterable[str], classes: ClassNames) -> dict[str, int]:
    """Those of ``own`` that name a class -> its label; a name that two classes share names none."""
    names = list(enumerate(classes.names))
    tables = (  # whole names before synonyms: of "crane" and "heron, crane" the first is meant
        _unambiguous((fold(name), label) for label, name in names),
        _unambiguous((fold(word), label) for label, name in names for word in name.split(",")),
        {wnid: label for label, wnid in enumerate(classes.wnids or ())},
    )
    found = {}
    for name in own:
        words = [fold(word) for word in (name, *name.split(","))]
        labels = [table[word] for word in words for table in tables if word in table]
        if labels:
            found[name] = labels[0]
    return found


def _unambiguous(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    labels: dict[str, set[int]] = {}
    for word, label in pairs:
        labels.setdefault(word, set()).add(label)
    return {word: held.pop() for word, held in labels.items() if len(held) == 1}


def classes_by_label(entries: Iterable[tuple[str, int]]) -> tuple[str, ...] | str:
    """The folder of each label, where images lie in one folder per class; or why they do not."""
    folders: dict[int, str] = {}
    for image, label in entries:
        folder = image.rpartition("/")[0].rpartition("/")[2]
        if label >= 0 and folders.setdefault(label, folder) != folder:
            return (
                f"label {label} has images in the folders {folders[label]!r} and {folder!r}, so the "
                "folders are not its class's name"
            )
    if len(set(folders.values())) < len(folders):
        return "one folder holds several labels"
    missing = [str(label) for label in range(len(folders)) if label not in folders]
    if missing or not all(folders.values()):
        return f"no folder of label(s) {listed(missing)}" if missing else "its images lie in no folders"
    return tuple(folders[label] for label in range(len(folders))) or "its images are all OOD"


def refuse_other_names(where: str, own: Mapping[int, str], classes: ClassNames) -> None:
    """Raise a ValueError if a label's own name, in a data set or of its folder, is another label's.

    What names no class is not judged.
    """
    found = match_names(own.values(), classes)
    for label, name in own.items():
        other = found.get(name, label)
        if other != label:
            here = repr(classes.names[label]) if label < len(classes) else "no class"
            raise ValueError(
                f"{where}: label {label} is {name!r} there, but {here} in {classes.source}, where "
                f"{name!r} is label {other}; give the class names in the order of these labels"
            )


def refuse_other_classes(
    where: str, header: Mapping[str, Any], labels: Iterable[int], classes: ClassNames
) -> None:
    """Compare the classes that a feature file's header names with those that its labels stand for.

    A header without ``classes`` tells them by its images' folders.
    """
    own = header.get("classes") or classes_by_label(zip(header.get("names", ()), labels))
    if not isinstance(own, str):
        refuse_other_names(where, dict(enumerate(own)), classes)
