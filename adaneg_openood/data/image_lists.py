"""Lists of images: OpenOOD's imglists, and folders."""

from __future__ import annotations

import os
import re
from pathlib import Path

OOD_LABEL = -1
_LABEL = re.compile(r"-?[0-9]{1,18}")
IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .gif .tif .tiff .webp .ppm .pgm .pnm .avif".split()
)


def read_imglist(path: str | os.PathLike[str]) -> list[tuple[str, int]]:
    """The images and labels of an OpenOOD imglist.

    A line is ``path label``: the label is what follows the last white space, so paths may hold
    spaces. Either line ending and a byte order mark are fine; empty lines do not count.

    Returns:
        (path as written, label) a line, in file order; label -1 is OOD.

    Raises:
        ValueError: a line without an integer label, or one below -1; the message names the line.
        OSError: the file cannot be read.

    Source: OpenOOD v1.5's ImglistDataset.
    """
    file = Path(path)
    try:
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: an imglist must be UTF-8 text, {error}") from error
    found = []
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would cut at odd Unicode too
        line = line.rstrip("\r")
        if not line.strip():
            continue
        image, _, label = line.rstrip().replace("\t", " ").rpartition(" ")
        # ASCII digits alone: Python's int would take 1_0 for 10; and as many as 64 bits hold
        value = int(label) if _LABEL.fullmatch(label) else OOD_LABEL - 1
        if not image.strip() or value < OOD_LABEL:
            raise ValueError(
                f"{file}, line {number}: must be 'path label' with an integer label of 0 or more, "
                f"or -1 for OOD, got {line!r}"
            )
        found.append((image.strip(), value))
    return found


def list_folder(root: str | os.PathLike[str], classes: list[str] | None = None) -> list[tuple[str, int]]:
    """The images under a folder, at any depth, in one order on every machine.

    Args:
        root: the folder.
        classes: names of its first-level folders in label order; None gives every image -1.

    Returns:
        (path relative to ``root``, with forward slashes; label) an image, sorted by path.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no images, or an image in a folder that is not among ``classes``.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of images")
    images = sorted(
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") and file.is_file()
    )
    if not images:
        kinds = " ".join(sorted(IMAGE_SUFFIXES))
        raise ValueError(f"{folder}: holds no image, at any depth; looked for {kinds}")
    if classes is None:
        return [(image, OOD_LABEL) for image in images]
    labels = {name: label for label, name in enumerate(classes)}
    found = []
    for image in images:
        first, slash, _ = image.partition("/")
        if not slash or first not in labels:
            raise ValueError(
                f"{folder}: {image} lies in no class folder; the classes are "
                f"{', '.join(classes[:8])}{', ...' if len(classes) > 8 else ''}"
            )
        found.append((image, labels[first]))
    return found


def refuse_outside(source: str | os.PathLike[str], base: Path, images: list[tuple[str, int]]) -> None:
    """A list from elsewhere must not read files outside its root.

    Paths are judged as they are written; links inside the root may lead out of it, as those of many
    datasets do. With the root ``/`` any path is inside.

    Raises:
        ValueError: an absolute path, or one with ``..``, that leaves ``base``.
    """
    root = os.path.abspath(base)
    inside = root.rstrip(os.sep) + os.sep
    for image, _ in images:
        # two checks of text for most paths; abspath costs ten times as much
        if not os.path.isabs(image) and ".." not in image:
            continue
        if not os.path.abspath(os.path.join(root, image)).startswith(inside):
            raise ValueError(
                f"{source}: the path {image!r} leads out of the root {root}; where that is meant, give "
                "a root that holds all images (--root / allows any path)"
            )


def class_folders(root: str | os.PathLike[str]) -> list[str]:
    """Names of the first-level folders, sorted: torchvision's and ImageNet's label order."""
    return sorted(entry.name for entry in Path(root).iterdir() if entry.is_dir())
