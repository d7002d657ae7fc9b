"""Files that are either complete or not there."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it takes ``path``'s place if the block succeeds.

    Parent folders are made. If the block raises, ``path`` stays as it was and nothing is left over. The
    bytes are on the disk before the name is, so a power cut leaves the old file or the new one.

    Raises:
        OSError: it cannot be written: a full disk, a folder that is read-only, a device in its place.
            The message names ``path``, never the temporary file.
    """
    target = Path(path)
    # same folder, because os.replace is atomic within one file system only
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    _refuse_device(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _named(error, target) from error
    try:
        yield temporary
        _to_disk(temporary)
        os.replace(temporary, target)
    except OSError as error:
        # a full disk has no file name; an error of another file, which the block read, keeps its own
        if error.errno is None or error.filename not in (None, *map(os.fspath, (temporary, target))):
            raise
        raise _named(error, target) from error
    except Exception as error:
        # safetensors has a kind of its own for a full disk, that is no OSError
        if type(error).__name__ != "SafetensorError":
            raise
        raise OSError(f"{target}: cannot be written, {error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def check_writable(path: str | os.PathLike[str]) -> None:
    """Try whether :func:`atomic_path` could write a file, before the work for it begins.

    Nothing is left behind, and folders that are missing are not made.

    Raises:
        OSError: it could not; the message names ``path``.
    """
    target = Path(path)
    _refuse_device(target)
    folder = next(parent for parent in target.absolute().parents if os.path.lexists(parent))
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _named(error, target) from error


def _named(error: OSError, target: Path) -> OSError:
    """The same error, of the same kind, with the name that the user knows."""
    return OSError(error.errno, error.strerror, os.fspath(target))


def _refuse_device(target: Path) -> None:
    """A rename would put a file in the place of ``/dev/null``, and cannot replace a folder."""
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder, and a file is to be written", str(target))
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, "is a device, and a file is to be written", str(target))


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)  # writable, which Windows asks of fsync
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_folder(part: str) -> Path:
    """``part`` of ``$ADANEG_CACHE``, or of ``adaneg_openood`` in the user's cache folder.

    Args:
        part: ``"text"`` or ``"features"``.
    """
    named = os.environ.get("ADANEG_CACHE")
    if named:
        return Path(named).expanduser() / part
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "adaneg_openood" / part


def read_json_object(file: Path) -> dict[str, Any]:
    """A JSON file that must hold an object.

    Raises:
        ValueError: it does not; the message names the file.
        OSError: it cannot be read.
    """
    try:
        loaded = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: damaged, not JSON ({error})") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{file}: damaged, must be a JSON object, got {type(loaded).__name__}")
    return loaded
