"""Images in one order, from folders, imglists and datasets: the only reader there is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

import numpy as np

from adaneg_openood.data.class_matching import (
    Classes,
    classes_by_label,
    labels_of_folders,
    match_names,
    named_classes,
    refuse_other_names,
)
from adaneg_openood.data.datasets import dataset_content, dataset_labels, opened_dataset
from adaneg_openood.data.image_files import (
    IMAGE_SUFFIXES,
    OOD_LABEL,
    Entry,
    class_folders,
    list_folder,
    load_image,
    read_imglist,
    refuse_outside,
    to_eight_bit,
)
from adaneg_openood.text.classnames import ClassNames

if TYPE_CHECKING:
    from PIL.Image import Image

_NAMELESS = "its source names none"
_BEGINNING = 4096  # bytes


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images in one order, with a label and a name each. Nothing is decoded before it is asked for.

    Made by :meth:`of` from what people have, or by :meth:`from_entries`.

    Attributes:
        name: where they come from, for provenance and messages.
        names: N image names; for files, paths relative to ``base``.
        labels: N labels; -1 is OOD.
        opener: index -> PIL image of any mode; must be picklable, because it runs in worker processes.
        base: folder of the image files; None if they lie in no files of their own.
        exif: whether EXIF orientation is heeded.
        classes: names of the labels that the caller gave.
        own_names: names that the source gives its labels, in their order: class folders, a dataset's
            ``classes``; or why there are none.
        dataset: the dataset behind it, or None.
    """

    name: str
    names: Sequence[str]
    labels: Sequence[int]
    opener: Callable[[int], Image]
    base: Path | None = None
    exif: bool = False
    classes: ClassNames | None = None
    own_names: tuple[str, ...] | str = _NAMELESS
    dataset: Any = None

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError(f"{self.name}: holds no image")
        if len(self.names) != len(self.labels):
            raise ValueError(f"{self.name}: {len(self.names)} names but {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(
        cls,
        source: Any,
        *,
        root: str | os.PathLike[str] | None = None,
        labelled: bool | None = None,
        limit: int | None = None,
        classes: Classes | None = None,
        exif: bool = False,
    ) -> ImageSet:
        """Images of a folder, an imglist, a single file or a dataset.

        Args:
            source: a folder; an OpenOOD imglist (``path label`` lines); an image file; or a map-style
                dataset of (PIL image, label), such as torchvision's and Hugging Face's.
            root: what an imglist's paths are relative to, and must stay inside of; None is the imglist's
                own folder.
            labelled: True is an ID set: every image has a class, which is a folder's first-level folder,
                or the label that imglists and datasets bring. False gives every image -1, for an OOD
                set. None takes labels as they are, and gives -1 to a folder's images.
            limit: take the first so many images; None takes all.
            classes: names of the labels. Folders, and the names that a dataset brings, are matched with
                them by name, by wnid or, if they are numbers, by label. Without, a folder's label is its
                place among the sorted folders.
            exif: turn images as their EXIF orientation says; benchmarks were made without.

        Raises:
            FileNotFoundError: no such file or folder.
            ValueError: no images, a bad line in the imglist, a path that leads out of the root, an ID
                image without a class, or folders that are not the ``classes``.
            TypeError: the dataset's items are not (PIL image, label).
        """
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1 or None, got {limit}")
        known: Any = classes
        if classes is not None and not isinstance(classes, ClassNames):
            known = ClassNames("the classes", tuple(classes))
        if not isinstance(source, (str, os.PathLike)):
            made = _of_dataset(source, labelled, limit, known, exif)
        else:
            path = Path(source)
            entries, own, base = _listed(path, root, labelled, known)
            made = cls.from_entries(
                str(path), entries[:limit], base, exif=exif, classes=known, own_names=own
            )
        if labelled:
            made.check_labels(None if known is None else len(known))
        return made

    @classmethod
    def from_entries(
        cls,
        name: str,
        entries: Iterable[Entry],
        base: str | os.PathLike[str],
        *,
        exif: bool = False,
        **about: Any,
    ) -> ImageSet:
        """Image files by (path, label), such as the parsed lines of an imglist.

        Args:
            name: for messages.
            entries: paths relative to ``base``, and labels.
            base: folder that no path may leave.
            exif: turn images as their EXIF orientation says.
            about: ``classes`` and ``own_names``, see the attributes.

        Raises:
            ValueError: no entry, or a path that leads out of ``base``.
        """
        pairs = list(entries)
        names = [path for path, _ in pairs]
        folder = Path(base)
        refuse_outside(name, folder, names)
        opener = _FileOpener(folder, names, exif)
        return cls(name, names, [label for _, label in pairs], opener, folder, exif, **about)

    def open(self, index: int) -> Image:
        """An image as RGB.

        Raises:
            OSError, ValueError: it cannot be read; see :func:`~adaneg_openood.data.load_image`.
        """
        return to_eight_bit(self.opener(index))

    def without(self, names: Collection[str]) -> ImageSet:
        """The same images in the same order, except those of these names."""
        rows = [row for row, name in enumerate(self.names) if name not in names]
        if len(rows) == len(self):
            return self
        return replace(
            self,
            names=[self.names[row] for row in rows],
            labels=[self.labels[row] for row in rows],
            opener=_Chosen(self.opener, rows),
            dataset=None,
        )

    def class_names(self) -> ClassNames:
        """The names of the labels: those that were given, or else those that the source brings.

        ImageNet's wnids get ImageNet's names.

        Raises:
            ValueError: there are none, and why.
        """
        if self.classes is not None:
            return self.classes
        if isinstance(self.own_names, str):
            raise ValueError(f"{self.name}: {self.own_names}; give the class names")
        return named_classes(self.name, self.own_names)

    def check_labels(self, n_classes: int | None = None) -> None:
        """Every image must be of a class, as those of an ID set are.

        Raises:
            ValueError: a label of -1, or beyond the classes; the message names the first image.
        """
        top = np.inf if n_classes is None else n_classes
        bad = [index for index, label in enumerate(self.labels) if not 0 <= label < top]
        if bad:
            wrong = "must be 0 or more"
            if n_classes is not None:
                wrong = f"outside [0, {n_classes}), for {n_classes} classes"
            raise ValueError(
                f"{self.name}: {len(bad)} label(s) of ID images {wrong}; the first is "
                f"{self.labels[bad[0]]} of image {bad[0]}, {self.names[bad[0]]}"
            )

    @cached_property
    def stats(self) -> np.ndarray:
        """(N, 2) int64 size and time of change of each file, looked at once; -1 for a missing one.

        Images that lie in no files have -1 throughout.
        """
        found = np.full((len(self), 2), -1, dtype=np.int64)
        for index in range(len(self)):
            found[index] = self._stat(index)
        return found

    def missing(self) -> list[tuple[str, str]]:
        """(path, why) of the files that are not there or hold nothing."""
        if self.base is None:
            return []
        bad = np.flatnonzero(self.stats[:, 0] <= 0)
        found = []
        for index in bad.tolist():
            file = self.base / self.names[index]
            why = "0 bytes" if self.stats[index, 0] == 0 else "not there"
            found.append((str(file), why if file.parent.is_dir() else f"no folder {file.parent}"))
        return found

    @property
    def was_listed(self) -> bool:
        """Whether :attr:`stats` has looked already."""
        return "stats" in vars(self)

    def has_changed(self, index: int) -> bool:
        """Whether a file is another than when :attr:`stats` looked."""
        return self._stat(index) != tuple(self.stats[index].tolist())

    def digest(self) -> str:
        """SHA-256 that changes with the list, the labels or any image, 64 hex digits."""
        digest = hashlib.sha256(self.images_digest(range(len(self))).encode())
        digest.update(np.asarray(self.labels, dtype=np.int64).tobytes())
        return digest.hexdigest()

    def images_digest(self, rows: range) -> str:
        """The same of some of the images, without their labels.

        Files count with their name, size and time of change, and with how they begin where an archive
        has given all of them one time; images of a dataset count with their content.
        """
        digest = hashlib.sha256(b"exif" if self.exif else b"")
        content = None if self.base is not None else dataset_content(self.dataset, rows)
        one_time = len(rows) > 1 and np.ptp(self.stats[rows.start : rows.stop, 1]) == 0
        for index in rows:
            digest.update(f"{self.names[index]}\n".encode("utf-8", "surrogateescape"))
            size, changed = self.stats[index].tolist()
            if size >= 0 or self.base is not None:
                digest.update(f"{size} {changed}\n".encode())
                if one_time and size > 0:
                    with open(os.path.join(self.base or "", self.names[index]), "rb") as file:
                        digest.update(file.read(_BEGINNING))
            elif content is None:
                image = self.opener(index)
                digest.update(f"{image.mode} {image.size}".encode())
                digest.update(image.tobytes())
        digest.update(content or b"")
        return digest.hexdigest()

    def _stat(self, index: int) -> tuple[int, int]:
        # torchvision's sets of files give their paths as names
        file = os.path.join(self.base or "", self.names[index])
        if self.base is None and not os.path.isabs(file):
            return -1, -1
        try:
            found = os.stat(file)
        except (OSError, ValueError):  # a name with a null byte
            return -1, -1
        return found.st_size, found.st_mtime_ns


@dataclass(frozen=True)
class _Chosen:
    """Opens some of the images of another opener."""

    opener: Callable[[int], Image]
    rows: Sequence[int]

    def __call__(self, index: int) -> Image:
        return self.opener(self.rows[index])


class _FileOpener:
    """A class, not a closure, so that spawned workers can receive it."""

    def __init__(self, base: Path, names: Sequence[str], exif: bool) -> None:
        self.base, self.names, self.exif = base, names, exif

    def __call__(self, index: int) -> Image:
        return load_image(self.base / self.names[index], self.exif)


def _listed(
    path: Path, root: str | os.PathLike[str] | None, labelled: bool | None, classes: ClassNames | None
) -> tuple[list[Entry], tuple[str, ...] | str, str | os.PathLike[str]]:
    """The entries of a folder, an image file or an imglist, its classes' own names, and its base."""
    if path.is_dir():
        images = list_folder(path)
        if not labelled:
            return [(image, OOD_LABEL) for image in images], _NAMELESS, path
        folders = class_folders(path, images)
        labels = labels_of_folders(str(path), folders, classes)
        entries = [(image, labels[image.partition("/")[0]]) for image in images]
        return entries, tuple(folders), path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such folder of images or imglist")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return [(path.name, OOD_LABEL)], _NAMELESS, path.parent
    entries = read_imglist(path)
    own = classes_by_label(entries)
    if labelled is False:
        entries = [(image, OOD_LABEL) for image, _ in entries]
    elif classes is not None and not isinstance(own, str):
        refuse_other_names(str(path), dict(enumerate(own)), classes)
    return entries, own, path.parent if root is None else root


def _of_dataset(
    dataset: Any, labelled: bool | None, limit: int | None, classes: ClassNames | None, exif: bool
) -> ImageSet:
    kind = type(dataset).__name__
    names, own, opener = opened_dataset(dataset, limit, exif)
    if labelled is False:
        labels = [OOD_LABEL] * len(names)
    else:
        labels = dataset_labels(dataset, len(names))
        if isinstance(own, tuple) and max(labels, default=OOD_LABEL) >= len(own):
            raise ValueError(f"{kind}: a label is {max(labels)}, but it has {len(own)} classes")
        if isinstance(own, tuple) and classes is not None:
            by_name = match_names(own, classes)
            if len(by_name) == len(own) == len(set(by_name.values())):
                labels = [label if label < 0 else by_name[own[label]] for label in labels]
            else:
                refuse_other_names(kind, dict(enumerate(own)), classes)
    return ImageSet(
        kind, names, labels, opener, exif=exif, own_names=own, classes=classes, dataset=dataset
    )
