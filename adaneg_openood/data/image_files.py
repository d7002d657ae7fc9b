"""Image files: one decoded to RGB, those of a folder, and those of an OpenOOD imglist."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .gif .tif .tiff .webp .ppm .pgm .pnm .avif".split()
)
OOD_LABEL = -1
_LABEL = re.compile(r"-?[0-9]{1,18}")
# what file managers, archives and network drives leave in a folder; hidden ones begin with a dot
_TOOLS = frozenset(("__macosx", "__pycache__", "@eadir", "#recycle", "$recycle.bin", "lost+found"))

Entry = tuple[str, int]  # path as written, label


def load_image(path: str | os.PathLike[str], exif: bool = False) -> Image:
    """Open and decode an image file.

    Args:
        path: the file.
        exif: turn the image as its EXIF orientation says. Benchmarks were made without.

    Returns:
        An RGB image, see :func:`to_eight_bit`.

    Raises:
        OSError, ValueError: it is missing, empty, damaged or cut short, no image, or its values have no
            range that is known.
    """
    from PIL import Image as images
    from PIL import ImageFile

    file = Path(path)
    if file.is_file() and file.stat().st_size == 0:
        raise ValueError("the file has 0 bytes")
    # OpenOOD makes Pillow fill truncated images with grey, for the whole process
    lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with images.open(file) as image:
            image.load()
            return to_eight_bit(image, exif)
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def to_eight_bit(image: Image, exif: bool = False) -> Image:
    """An RGB image of the same look.

    Alpha is dropped, as OpenOOD does; palettes, grey and CMYK are converted by Pillow. 16-bit grey,
    which X-ray images come in, and floats in [0, 1] are scaled, because Pillow's own conversion clips
    them to white or black.

    Raises:
        ValueError: integers below 0 or of more than 16 bits, or floats outside [0, 255]: which of them
            is black and which is white is not known.
    """
    if exif:
        from PIL import ImageOps

        image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _scaled(image)
    if image.mode == "RGB":
        return image
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Palette images with Transparency")  # alpha is dropped
        return image.convert("RGB")


def _scaled(image: Image) -> Image:
    from PIL import Image as images

    values = np.asarray(image)
    low, high = values.min(initial=0), values.max(initial=0)
    if image.mode == "F":
        if not (low >= 0 and high <= 255):  # NaN is neither
            raise ValueError(f"its values are floats from {low:g} to {high:g}; scale them to 0 to 1")
        if high > 1:
            return image
        return images.fromarray((values * 255).round().astype(np.uint8))
    if low < 0 or high > 65535:
        raise ValueError(f"its values are integers from {low} to {high}; scale them to 0 to 65535")
    # 32-bit "I" is how Pillow opens some 16-bit files; 8-bit values in it stay as they are
    wide = image.mode.startswith("I;16") or high > 255
    return images.fromarray((values >> 8 if wide else values).astype(np.uint8))


def read_imglist(path: str | os.PathLike[str]) -> list[Entry]:
    """The images and labels of an OpenOOD imglist, see :func:`parse_entries`.

    Raises:
        ValueError, OSError: a line that is none, or a file that cannot be read.
    """
    file = Path(path)
    try:
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: an imglist must be UTF-8 text, {error}") from error
    return parse_entries(text.split("\n"), str(file))  # splitlines would cut at odd Unicode too


def parse_entries(lines: Iterable[str], where: str) -> list[Entry]:
    """Lines of an imglist, ``path label``, as (path as written, label) in order; label -1 is OOD.

    The label is what follows the last white space, so paths may hold spaces. Either line ending and a
    byte order mark are fine; empty lines do not count. ``where`` is the list's name, for messages.

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
    """The images under a folder, at any depth: paths relative to it with forward slashes, sorted.

    Links are followed, as torchvision does, except one back to a folder that it lies in. A link to an
    image that is gone counts as an image, so that it is missed when it is read. Hidden files and
    folders, and those that tools leave behind (``__MACOSX``, ``@eaDir``), are left out; a warning names
    the folders that hold images.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no images.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of images")
    images, skipped, lost = [], set(), []
    for here, files in _walked(folder):
        odd = next((part for part in here.parts if _is_of_tools(part)), None)
        for name in files:
            path = here / name
            if path.suffix.lower() in IMAGE_SUFFIXES:
                if odd is not None:
                    skipped.add(odd)
                elif not _is_of_tools(name):
                    images.append(path.as_posix())
            elif os.path.islink(folder / path) and not os.path.exists(folder / path):
                lost.append(path.as_posix())
    if skipped:
        listed = ", ".join(sorted(skipped))
        logger.warning("%s: left out images in %s, hidden or made by a tool", folder, listed)
    if lost:
        logger.warning("%s: links that lead nowhere: %s", folder, ", ".join(sorted(lost)))
    if not images:
        kinds = " ".join(sorted(IMAGE_SUFFIXES))
        raise ValueError(f"{folder}: holds no image, at any depth; looked for {kinds}")
    return sorted(images)


def _walked(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """The folders under one, links among them, relative to it, with the names of their files."""
    above: dict[str, frozenset[tuple[int, int]]] = {str(folder): frozenset()}
    for place, folders, files in os.walk(folder, followlinks=True):
        stat, chain = os.stat(place), above.pop(place)
        here = (stat.st_dev, stat.st_ino)
        if here in chain:  # a link back
            folders.clear()
            continue
        above.update((os.path.join(place, name), chain | {here}) for name in folders)
        yield Path(place).relative_to(folder), files


def class_folders(root: str | os.PathLike[str], images: Sequence[str]) -> list[str]:
    """The first-level folders of a folder's images, sorted: torchvision's and ImageNet's label order.

    Folders without an image are no classes; a warning names them.

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
    """Raise a ValueError for a path of a list that is absolute, or has ``..``, and leaves ``base``.

    A list from elsewhere must not read files outside its root. Paths are judged as they are written;
    links inside the root may lead out of it, as those of many datasets do. With the root ``/`` any path
    is inside.
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
