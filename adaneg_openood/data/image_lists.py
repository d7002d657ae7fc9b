"""Lists of images: OpenOOD's imglists, and folders."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from adaneg_openood.data.decoding import IMAGE_SUFFIXES

logger = logging.getLogger(__name__)

OOD_LABEL = -1
_LABEL = re.compile(r"-?[0-9]{1,18}")
# what file managers, archives and network drives leave in a folder; hidden ones begin with a dot
_TOOLS = frozenset(("__macosx", "__pycache__", "@eadir", "#recycle", "$recycle.bin", "lost+found"))

Entry = tuple[str, int]  # path as written, label


def read_imglist(path: str | os.PathLike[str]) -> list[Entry]:
    """The images and labels of an OpenOOD imglist, see :func:`parse_entries`.

    Raises:
        ValueError: a line without an integer label, or one below -1; the message names the line.
        OSError: the file cannot be read.
    """
    file = Path(path)
    try:
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: an imglist must be UTF-8 text, {error}") from error
    return parse_entries(text.split("\n"), str(file))  # splitlines would cut at odd Unicode too


def parse_entries(lines: Iterable[str], where: str) -> list[Entry]:
    """Lines of an imglist.

    A line is ``path label``: the label is what follows the last white space, so paths may hold
    spaces. Either line ending and a byte order mark are fine; empty lines do not count.

    Args:
        lines: with or without their endings.
        where: the list's name, for messages.

    Returns:
        (path as written, label) a line, in order; label -1 is OOD.

    Raises:
        ValueError: a line without an integer label, or one below -1; the message names the line.

    Source: OpenOOD v1.5's ImglistDataset.
    """
    found = []
    for number, line in enumerate(lines, 1):
        line = line.rstrip("\r\n")
        text = (line.removeprefix("\ufeff") if number == 1 else line).replace("\t", " ").rstrip()
        if not text.strip():
            continue
        image, _, label = text.rpartition(" ")
        # ASCII digits alone: Python's int would take 1_0 for 10; and as many as 64 bits hold
        value = int(label) if _LABEL.fullmatch(label) else OOD_LABEL - 1
        if not image.strip() or value < OOD_LABEL:
            raise ValueError(
                f"{where}, line {number}: must be 'path label' with an integer label of 0 or more, "
                f"or -1 for OOD, got {line!r}"
            )
        found.append((image.strip(), value))
    return found


def list_folder(root: str | os.PathLike[str]) -> list[str]:
    """The images under a folder, at any depth, in one order on every machine.

    Hidden files and folders, and those that tools leave behind (``__MACOSX``, ``@eaDir``), are left
    out; a warning names the folders that hold images.

    Returns:
        Paths relative to ``root``, with forward slashes, sorted.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no images.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of images")
    images, skipped = [], set()
    for file in folder.rglob("*"):
        if file.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        path = file.relative_to(folder)
        odd = next((part for part in path.parts if _is_of_tools(part)), None)
        if not file.is_file():
            continue
        if odd is None:
            images.append(path.as_posix())
        elif odd != path.name:
            skipped.add(odd)
    if skipped:
        listed = ", ".join(sorted(skipped))
        logger.warning("%s: left out images in %s, hidden or made by a tool", folder, listed)
    if not images:
        kinds = " ".join(sorted(IMAGE_SUFFIXES))
        raise ValueError(f"{folder}: holds no image, at any depth; looked for {kinds}")
    return sorted(images)


def class_folders(root: str | os.PathLike[str], images: Sequence[str]) -> list[str]:
    """The first-level folders of a folder's images, sorted: torchvision's and ImageNet's label order.

    Args:
        root: the folder. Those in it without an image are no classes; a warning names them.
        images: what :func:`list_folder` gave.

    Raises:
        ValueError: an image that lies in no folder.
    """
    loose = next((image for image in images if "/" not in image), None)
    if loose is not None:
        raise ValueError(
            f"{root}: {loose} lies in no class folder; an ID set has one folder of images per class"
        )
    folders = sorted({image.partition("/")[0] for image in images})
    empty = {entry.name for entry in Path(root).iterdir() if entry.is_dir()} - set(folders)
    empty = {name for name in empty if not _is_of_tools(name)}
    if empty:
        logger.warning("%s: no class, because without an image: %s", root, ", ".join(sorted(empty)))
    return folders


def refuse_outside(source: str, base: Path, paths: Iterable[str]) -> None:
    """A list from elsewhere must not read files outside its root.

    Paths are judged as they are written; links inside the root may lead out of it, as those of many
    datasets do. With the root ``/`` any path is inside.

    Raises:
        ValueError: an absolute path, or one with ``..``, that leaves ``base``.
    """
    root = os.path.abspath(base)
    inside = root.rstrip(os.sep) + os.sep
    for path in paths:
        # two checks of text for most paths; abspath costs ten times as much
        if not os.path.isabs(path) and ".." not in path:
            continue
        if not os.path.abspath(os.path.join(root, path)).startswith(inside):
            raise ValueError(
                f"{source}: the path {path!r} leads out of the root {root}; where that is meant, give "
                "a root that holds all images (--root / allows any path)"
            )


def _is_of_tools(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _TOOLS
