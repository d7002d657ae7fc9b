"""Features on disk, so that an image is encoded once: entries are found by what they were made of."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from adaneg_openood.data.encode import encode_images
from adaneg_openood.data.image_set import ImageSet
from adaneg_openood.io.digests import file_digest
from adaneg_openood.io.files import atomic_path, cache_folder
from adaneg_openood.io.locks import exclusive, first_holds
from adaneg_openood.io.processes import ALONE, Group
from adaneg_openood.vlm import VisionLanguageModel, describe

logger = logging.getLogger(__name__)

_FORMAT = 1
_DATA, _ABOUT = "features.safetensors", "entry.json"
# of describe(): what an image's features depend on
_IDENTITY = ("model", "weights", "dim", "preprocessing", "precision")


@dataclass(frozen=True, eq=False)
class Encoded:
    """Features of a set, in the order of its images.

    Attributes:
        features: (N, D) float32 of unit length, memory-mapped.
        labels: (N,) int64; None where every image is OOD.
        names: N image names.
        fresh: whether they were encoded now.
    """

    features: Tensor
    labels: Tensor | None
    names: tuple[str, ...]
    fresh: bool


@dataclass(frozen=True)
class Entry:
    """What is known of an entry without opening its features.

    Attributes:
        key: the name of its folder.
        problem: why it cannot be used; empty if it can. Only :meth:`FeatureCache.verify` reads the
            features; a listing looks at names and sizes.
        about: what it was made of, see :meth:`FeatureCache.get`; empty if that cannot be read.
        size: bytes on disk.
        used: seconds since 1970, when it was last used.
    """

    key: str
    folder: Path
    problem: str
    about: Mapping[str, Any]
    size: int
    used: float


class FeatureCache:
    """A folder of image features.

    An entry's key is a hash of the model's name, weights, width, preprocessing and precision, and of
    the image list with every file's size and time of change. Its checksum is looked at each time it
    is used: a damaged or foreign entry is made again, with a warning. Entries appear whole or not at
    all; encoding that was interrupted is taken up where it stopped.

    Args:
        folder: made when the first entry is written.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = default_feature_cache() if folder is None else Path(folder).expanduser()

    def get(
        self,
        model: VisionLanguageModel,
        images: ImageSet,
        *,
        batch_size: int = 256,
        workers: int = 4,
        on_error: str = "raise",
        progress: bool = False,
        group: Group = ALONE,
    ) -> Encoded:
        """Features of a set, from the cache or encoded now.

        Of a model that does not tell its weights apart (no ``describe()`` with ``weights``) nothing
        from earlier is used.

        Args:
            model: the image tower.
            images: see :class:`~adaneg_openood.data.ImageSet`.
            batch_size, workers, on_error, progress, group: see
                :func:`~adaneg_openood.data.encode_images`.

        Raises:
            ValueError: broken images, or a bad argument.
            FileNotFoundError: an image file is missing.
        """
        about = group.local(lambda: identity(model, images, on_error))
        folder = self.folder / key_of(about)
        with first_holds(group, folder / _ABOUT, wait=True):  # one job at a time makes an entry
            whole = group.first(lambda: _is_whole(folder, about))
            if not whole:
                encode_images(
                    model,
                    images,
                    folder / _DATA,
                    batch_size=batch_size,
                    workers=workers,
                    on_error=on_error,
                    progress=progress,
                    group=group,
                )
                group.first(lambda: _finish(folder, about, images))
            made = group.local(lambda: _load(folder, fresh=not whole))
            group.first(lambda: os.utime(folder / _ABOUT))  # when it was last used
            return made

    def entries(self) -> list[Entry]:
        """All entries, most recently used first."""
        folders = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        found = [_entry(folder) for folder in folders if _is_entry(folder)]
        return sorted(found, key=lambda entry: -entry.used)

    def verify(self) -> list[Entry]:
        """All entries, with every byte of their features checked."""
        return [_entry(entry.folder, _problem(entry.folder)) for entry in self.entries()]

    def prune(
        self,
        *,
        older_than_days: float | None = None,
        max_bytes: int | None = None,
        damaged: bool = False,
        everything: bool = False,
        dry_run: bool = False,
    ) -> list[Entry]:
        """Remove entries that meet any of the conditions, and say which.

        Args:
            older_than_days: not used for so long.
            max_bytes: the least recently used, until the rest is no larger.
            damaged: those that :meth:`verify` finds fault with, unfinished ones included.
            everything: all.
            dry_run: remove nothing.
        """
        entries = self.verify() if damaged else self.entries()
        now, kept, gone = time.time(), 0, []
        for entry in entries:
            old = older_than_days is not None and now - entry.used > older_than_days * 86_400
            if everything or old or (damaged and entry.problem):
                gone.append(entry)
            elif max_bytes is not None and kept + entry.size > max_bytes:
                gone.append(entry)
            else:
                kept += entry.size
        # what another process makes at this moment stays
        gone = [entry for entry in gone if not _in_use(entry.folder)]
        for entry in gone if not dry_run else ():
            shutil.rmtree(entry.folder)
        return gone


def _is_whole(folder: Path, about: Mapping[str, Any]) -> bool:
    """Whether an entry can be used; what is left of one that cannot is removed."""
    problem = _problem(folder) if (folder / _DATA).exists() else "new"
    if not problem and "weights" not in about:
        problem = "new"  # perhaps of other weights under the same name
    if problem and problem != "new":
        logger.warning("%s: %s, so it is encoded again", folder, problem)
    if problem:
        for name in (_ABOUT, _DATA):
            (folder / name).unlink(missing_ok=True)
    return not problem


def _finish(folder: Path, about: Mapping[str, Any], images: ImageSet) -> None:
    file = folder / _DATA
    if any(map(images.has_changed, range(len(images)))):
        file.unlink()
        raise ValueError(f"{images.name}: images changed while they were encoded; run it again")
    noted = {
        "about": about,
        "source": images.name,
        "images": len(images),
        "bytes": file.stat().st_size,
        "sha256": file_digest(file),
    }
    # last, because an entry without it does not count
    with atomic_path(folder / _ABOUT) as temporary:
        temporary.write_text(json.dumps(noted, indent=1, sort_keys=True) + "\n", "utf-8")


def identity(model: VisionLanguageModel, images: ImageSet, on_error: str = "raise") -> dict[str, Any]:
    """What an entry's key is the hash of."""
    known = describe(model)
    return {
        "format": _FORMAT,
        **{key: known[key] for key in _IDENTITY if key in known},
        "images_sha256": images.digest(),
        "on_error": on_error,
    }


def key_of(about: Mapping[str, Any]) -> str:
    """32 hex digits."""
    text = json.dumps(about, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def default_feature_cache() -> Path:
    """``$ADANEG_CACHE/features``, or ``adaneg_openood/features`` in the user's cache folder."""
    return cache_folder("features")


def _is_entry(folder: Path) -> bool:
    return folder.is_dir() and len(folder.name) == 32 and not set(folder.name) - set("0123456789abcdef")


def _problem(folder: Path) -> str:
    """Why an entry cannot be used; empty if it can."""
    file = folder / _DATA
    try:
        noted = json.loads((folder / _ABOUT).read_text("utf-8"))
        about, size, checksum = noted["about"], noted["bytes"], noted["sha256"]
    except FileNotFoundError:
        return "unfinished"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"damaged, its {_ABOUT} cannot be read ({type(error).__name__})"
    if not isinstance(about, dict) or key_of(about) != folder.name:
        return "foreign, it was made of something else than its name says"
    if not file.is_file():
        return "damaged, its features are gone"
    if file.stat().st_size != size:
        return f"damaged, its features have {file.stat().st_size} bytes instead of {size}"
    if file_digest(file) != checksum:
        return "damaged, its features do not have their checksum"
    return ""


def _load(folder: Path, fresh: bool) -> Encoded:
    from safetensors import safe_open

    with safe_open(folder / _DATA, framework="pt") as file:
        header = json.loads(file.metadata()["adaneg"])
        labels = file.get_tensor("labels") if "labels" in file.keys() else None
        return Encoded(file.get_tensor("features"), labels, tuple(header["names"]), fresh)


def _entry(folder: Path, problem: str | None = None) -> Entry:
    about: dict[str, Any] = {}
    try:
        noted = json.loads((folder / _ABOUT).read_text("utf-8"))
        about = {**noted["about"], "source": noted["source"], "images": noted["images"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        problem = problem or ("damaged" if (folder / _ABOUT).exists() else "unfinished")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    stamp = folder / _ABOUT
    used = (stamp if stamp.exists() else folder).stat().st_mtime
    return Entry(folder.name, folder, problem or "", about, size, used)


def _in_use(folder: Path) -> bool:
    try:
        with exclusive(folder / _ABOUT):
            return False
    except BlockingIOError:
        return True
