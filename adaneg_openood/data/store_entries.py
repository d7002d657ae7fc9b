"""What a feature store holds: listed, verified, pruned."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaneg_openood.data.parts import read_about, read_part
from adaneg_openood.io.files import cache_folder
from adaneg_openood.io.locks import exclusive

_KEY = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class Entry:
    """What a store holds of one image set and model.

    Attributes:
        key: of the set and the model.
        files: its parts.
        problem: why some of them cannot be used; empty if they can. Only :func:`verified` reads the
            features.
        about: what they were made of: ``model``, ``source``, ``images`` and so on.
        size: bytes on disk.
        used: seconds since 1970, when it was last used.
    """

    key: str
    files: tuple[Path, ...]
    problem: str
    about: Mapping[str, Any]
    size: int
    used: float


def store_folder(cache: Path | None = None) -> Path:
    """Where features lie in a cache folder; None is ``$ADANEG_CACHE``, or the user's cache folder."""
    return cache_folder("features") if cache is None else cache / "features"


def entries(folder: Path) -> list[Entry]:
    """All entries of a store, most recently used first."""
    return _entries(folder, read_about)


def verified(folder: Path) -> list[Entry]:
    """All entries, with every byte of their features checked."""

    def read_all(file: Path) -> dict[str, Any]:
        read_part(file)
        return read_about(file)

    return _entries(folder, read_all)


def prune(
    folder: Path,
    *,
    older_than_days: float | None = None,
    max_bytes: int | None = None,
    damaged: bool = False,
    everything: bool = False,
    dry_run: bool = False,
) -> list[Entry]:
    """Remove entries that meet any of the conditions, and say which.

    Args:
        folder: the store.
        older_than_days: not used for so long.
        max_bytes: the least recently used, until the rest is no larger.
        damaged: those that :func:`verified` finds fault with.
        everything: all.
        dry_run: remove nothing.
    """
    now, kept, gone = time.time(), 0, []
    for entry in verified(folder) if damaged else entries(folder):
        old = older_than_days is not None and now - entry.used > older_than_days * 86_400
        large = max_bytes is not None and kept + entry.size > max_bytes
        if everything or old or large or (damaged and entry.problem):
            gone.append(entry)
        else:
            kept += entry.size
    # what another process makes at this moment stays
    gone = [entry for entry in gone if not _in_use(folder / entry.key)]
    for entry in gone if not dry_run else ():
        for file in entry.files:
            file.unlink(missing_ok=True)
    return gone


def _entries(folder: Path, look: Any) -> list[Entry]:
    sets: dict[str, list[tuple[Path, dict[str, Any], str]]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        if len(file.stem) != 32 or set(file.stem) - _KEY:
            continue
        try:
            about, problem = look(file), ""
        except FileNotFoundError:  # pruned by another process
            continue
        except ValueError as error:
            about, problem = {}, str(error)
        sets.setdefault(str(about.get("set", file.stem)), []).append((file, about, problem))
    found = []
    for key, parts in sets.items():
        stats = [os.stat(file) for file, _, _ in parts]
        about = next((about for _, about, _ in parts if about), {})
        problem = "; ".join(problem for _, _, problem in parts if problem)
        files = tuple(file for file, _, _ in parts)
        size, used = sum(stat.st_size for stat in stats), max(stat.st_mtime for stat in stats)
        found.append(Entry(key, files, problem, about, size, used))
    return sorted(found, key=lambda entry: -entry.used)


def _in_use(place: Path) -> bool:
    try:
        with exclusive(place):
            return False
    except BlockingIOError:
        return True
