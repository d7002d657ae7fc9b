"""A store's files: features of a run of images each, so that an interruption costs little.

They are written and read here, and listed, verified and pruned.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from adaneg_openood.io.digests import tensor_digest
from adaneg_openood.io.files import atomic_path
from adaneg_openood.io.locks import exclusive

_HEADER = "adaneg_part"
_DAMAGES = (KeyError, TypeError, AttributeError, ValueError, RecursionError)  # of metadata
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class Part:
    """A run of images that is encoded at a time.

    Attributes:
        start, stop: indices of its images.
        key: what its features are found by.
    """

    start: int
    stop: int
    key: str

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, eq=False)
class PartFeatures:
    """What is known of a part's images.

    Attributes:
        features: (n, D) float32.
        kept: (n,) int64 places of the images in the part, rising.
        broken: place -> error of the images that cannot be read.
    """

    features: Tensor
    kept: Tensor
    broken: Mapping[int, str]


def write_part(file: Path, part: PartFeatures, about: Mapping[str, Any]) -> None:
    """Write ``<key>.safetensors``; ``about`` is what it was made of, JSON values.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors.torch import save_file

    broken = {str(place): error for place, error in part.broken.items()}
    told = json.dumps({**about, "key": file.stem, "broken": broken})
    tensors = {"features": part.features.contiguous(), "kept": part.kept}
    with atomic_path(file) as temporary:
        # one entry, because safetensors writes several in any order
        save_file(tensors, temporary, {_HEADER: f"{_digest(told, part)} {told}"})


def read_part(file: Path, n_images: int | None = None) -> PartFeatures:
    """What :func:`write_part` wrote, checked; ``n_images`` is how many it must be of, None any.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: damaged, or of other images; the message names the file.
    """
    with _opened(file) as (opened, digest, told):
        about = json.loads(told)
        broken = {int(place): str(error) for place, error in about["broken"].items()}
        part = PartFeatures(opened.get_tensor("features"), opened.get_tensor("kept"), broken)
    if _digest(told, part) != digest:
        raise ValueError(f"{file}: damaged, it does not have its checksum")
    if about["key"] != file.stem or n_images not in (None, len(part.kept) + len(broken)):
        raise ValueError(f"{file}: damaged, it is of other images than its name says")
    return part


@contextmanager
def _opened(file: Path) -> Iterator[tuple[Any, str, str]]:
    """A part's tensors, its checksum, and what it says of itself."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            digest, _, told = opened.metadata()[_HEADER].partition(" ")
            yield opened, digest, told
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, *_DAMAGES) as error:
        raise ValueError(f"{file}: damaged, {error}") from error


def _digest(told: str, part: PartFeatures) -> str:
    text = f"{told}{tensor_digest(part.features)}{tensor_digest(part.kept)}"
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """What a store holds of one image set and model.

    Attributes:
        key: of the set and the model.
        files: its parts.
        problem: why some of them cannot be used; empty if they can.
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


def entries(folder: Path, verify: bool = False) -> list[Entry]:
    """All entries of a store, most recently used first; ``verify`` checks every byte of them."""
    sets: dict[str, list[tuple[Path, dict[str, Any], str]]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        if len(file.stem) != 32 or set(file.stem) - _HEX:
            continue
        about, problem = {}, ""
        try:
            if verify:
                read_part(file)
            with _opened(file) as (_, _, told):
                said = json.loads(told)
                about = {**said, "set": str(said["set"]), "images": int(said["images"])}
        except FileNotFoundError:  # pruned by another process
            continue
        except ValueError as error:
            problem = str(error)
        sets.setdefault(about.get("set", file.stem), []).append((file, about, problem))
    found = []
    for key, parts in sets.items():
        files, abouts, problems = zip(*parts)
        stats = [file.stat() for file in files]
        size, used = sum(stat.st_size for stat in stats), max(stat.st_mtime for stat in stats)
        about = next(filter(None, abouts), {})
        found.append(Entry(key, files, "; ".join(filter(None, problems)), about, size, used))
    return sorted(found, key=lambda entry: -entry.used)


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
        damaged: those with a byte that is wrong.
        everything: all.
        dry_run: remove nothing.
    """
    now, kept, gone = time.time(), 0, []
    for entry in entries(folder, verify=damaged):
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


def _in_use(place: Path) -> bool:
    try:
        with exclusive(place):
            return False
    except BlockingIOError:
        return True
