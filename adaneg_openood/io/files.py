"""Files that are either complete or not there."""

from __future__ import annotations

import json
import os
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
        OSError: it cannot be written: a full disk, a folder that is read-only.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Same folder, because os.replace is atomic within one file system only.
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    try:
        yield temporary
        _to_disk(temporary)
        os.replace(temporary, target)
    except Exception as error:
        # safetensors has a kind of its own for a full disk, that is no OSError
        if type(error).__name__ != "SafetensorError":
            raise
        raise OSError(f"{target}: cannot be written, {error}") from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)  # writable, which Windows asks of fsync
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
