"""Zip files from strangers: looked at before they are unpacked."""

from __future__ import annotations

import os
import zipfile

# Features hardly shrink at all, and text no more than thirtyfold; a bomb shrinks a thousandfold.
_MOST_RATIO = 200
_SMALL = 1 << 26  # bytes an entry may grow to whatever it is packed in


def refuse_bombs(path: str | os.PathLike[str], archive: zipfile.ZipFile) -> None:
    """Look at an archive's list of contents.

    Raises:
        ValueError: an entry would grow to more than 64 MB and more than 200 times its packed size.
    """
    for entry in archive.infolist():
        if entry.file_size > max(_SMALL, _MOST_RATIO * entry.compress_size):
            raise ValueError(
                f"{path}: its entry {entry.filename[:80]!r} would unpack from {entry.compress_size} to "
                f"{entry.file_size} bytes, as a zip bomb does; it is not opened"
            )
