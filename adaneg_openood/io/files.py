"""Files that are either complete or not there, and files of others, looked at before they are read."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from adaneg_openood.io.digests import digest_of

logger = logging.getLogger(__name__)

# Features hardly shrink at all, and text no more than thirtyfold; a bomb shrinks a thousandfold.
_MOST_RATIO = 200
_SMALL = 1 << 26  # bytes an entry may grow to whatever it is packed in
_LONG_NAME = 200  # bytes; a character has at most four
_CHECK = 8  # hex digits of a journal line's checksum


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
    # its name is longer than the target's, and file systems take 255 bytes
    name = target.name if len(os.fsencode(target.name)) <= _LONG_NAME else target.name[: _LONG_NAME // 4]
    temporary = target.with_name(f".{name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
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


def write_json(path: str | os.PathLike[str], content: Any, **options: Any) -> None:
    """Write JSON values as UTF-8 text, atomically.

    Args:
        path: the file.
        content: the values.
        options: of ``json.dumps``, such as ``indent``, which is 2 if not given.

    Raises:
        ValueError: a number that JSON does not know, such as NaN.
    """
    chosen = {"indent": 2, "ensure_ascii": False, "allow_nan": False, **options}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, **chosen) + "\n", encoding="utf-8")


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


def cache_folder(part: str, cache: str | os.PathLike[str] | None = None) -> Path:
    """A part of a cache: ``"text"``, ``"features"`` or ``"demo"``.

    Args:
        part: its name.
        cache: None is ``$ADANEG_CACHE``, or ``adaneg_openood`` in the user's cache folder.
    """
    users = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "adaneg_openood")
    return Path(cache or os.environ.get("ADANEG_CACHE") or users).expanduser() / part


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


def write_checked(
    path: str | os.PathLike[str], form: int, content: Mapping[str, Any], **options: Any
) -> None:
    """Write an object as JSON with the number of its format and its checksum, atomically.

    Args:
        path: the file.
        form: the format.
        content: what it holds, without the keys ``format`` and ``checksum``.
        options: as in :func:`write_json`.
    """
    write_json(path, {"format": form, "checksum": digest_of(content, 64), **content}, **options)


def read_checked(path: Path, form: int, advice: str) -> dict[str, Any]:
    """The object that :func:`write_checked` wrote.

    Args:
        path: the file.
        form: the only format that is read.
        advice: what the user may do about another one.

    Raises:
        ValueError: of another format, or damaged; the message names the file.
        OSError: it cannot be read.
    """
    content = read_json_object(path)
    found, checksum = content.pop("format", None), content.pop("checksum", None)
    if found != form:
        raise ValueError(f"{path}: format {found!r}, and this version reads {form}; {advice}")
    try:
        intact = checksum == digest_of(content, 64)
    except ValueError:  # a NaN, which none of these files holds
        intact = False
    if not intact:
        raise ValueError(f"{path}: damaged, it does not have its checksum; {advice}")
    return content


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
        with self.path.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a line that a full disk cut short must not spoil the next
                    lines.insert(0, b"\n")
            file.write(b"".join(lines))
            file.flush()
            os.fsync(file.fileno())
        self.records.update({key: dict(value) for key, value in records.items()})


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
