"""Results that are written down as they are had, so that a run that is killed loses almost nothing."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adaneg_openood.io.files import atomic_path

logger = logging.getLogger(__name__)

_CHECK = 8  # hex digits of a line's checksum


class Journal:
    """An append-only file of records by key, one checked line each.

    A line that was cut off by a kill, or that does not have its checksum, does not count and is
    removed; what it held is missing, to be made again. Records must be JSON values.

    Args:
        path: made when the first record is written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.records: dict[str, dict[str, Any]] = {}
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        whole = []
        for line in lines:
            record = _parsed(line)
            if record is not None:
                self.records[record["key"]] = record["value"]
                whole.append(line)
        if len(whole) < len(lines):
            logger.warning(
                "%s: %d line(s) cut off or damaged; what they held is made again",
                *(self.path, len(lines) - len(whole)),
            )
            with atomic_path(self.path) as temporary:
                temporary.write_bytes(b"".join(whole))

    def __contains__(self, key: str) -> bool:
        return key in self.records

    def append(self, records: Mapping[str, Mapping[str, Any]]) -> None:
        """Write records down; they are on the disk when this returns."""
        lines = [_line(key, value) for key, value in records.items()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(b"".join(lines))
            file.flush()
            os.fsync(file.fileno())
        self.records.update({key: dict(value) for key, value in records.items()})


def digest_of(value: Any, length: int = 16) -> str:
    """Hex digits of a hash of JSON values; the same for the same values on every machine."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def _line(key: str, value: Mapping[str, Any]) -> bytes:
    text = json.dumps({"key": key, "value": value}, ensure_ascii=True, allow_nan=False)
    return f"{_checksum(text)} {text}\n".encode("ascii")


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        check, _, text = line.decode("ascii").partition(" ")
    except UnicodeDecodeError:
        return None
    if not text.endswith("\n") or check != _checksum(text[:-1]):
        return None
    return dict(json.loads(text))


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:_CHECK]


def first_different(known: Mapping[str, Any], new: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    """The first of the keys whose values differ, or None."""
    return next((key for key in keys if known.get(key) != new.get(key)), None)
