"""One job at a time on one output."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from adaneg_openood.io.processes import Group

logger = logging.getLogger(__name__)

_held: dict[Path, tuple[int, Any]] = {}  # lock file -> the thread and the lock that hold it


@contextmanager
def exclusive(target: Path, wait: bool = False) -> Iterator[None]:
    """Hold ``.<name>.lock`` beside ``target``, which need not exist; the file is gone afterwards.

    The system lets go of a lock when its holder ends, however it ends: a killed run leaves a file that
    locks nothing, and processes that it started hold nothing. A thread that holds the lock may enter
    again, so a caller's lock may span the locks of what it calls. ``wait`` waits for other processes.

    Raises:
        BlockingIOError: another process holds it, and ``wait`` is false; the message says which.
        OSError: its folder cannot be written; the message names ``target``.
    """
    path = Path(os.path.abspath(target)).with_name(f".{target.name}.lock")
    if path in _held and _held[path][0] == threading.get_ident():
        yield
        return
    lock = None
    try:
        lock = _acquired(target, path, wait)
        if lock is not None:
            _held[path] = threading.get_ident(), lock
            with suppress(OSError):  # for others' message; Windows lets nobody write into a locked file
                path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", "utf-8")
        yield
    except KeyboardInterrupt:
        lock = lock or _unheld(path)
        raise
    finally:
        _held.pop(path, None)
        if lock is not None:
            with suppress(OSError):
                path.unlink()  # still held: nobody else has locked it
            lock.release()


def _acquired(target: Path, path: Path, wait: bool) -> Any:
    """The lock, or None on a file system that has none."""
    from filelock import FileLock, Timeout

    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            before, holder = path.stat().st_ino, ""
            with suppress(PermissionError):  # Windows lets nobody read a locked file either
                holder = path.read_text("utf-8", "replace").strip()
            lock = FileLock(path, timeout=-1 if wait else 0)
            lock.acquire()
        except Timeout:
            raise BlockingIOError(
                f"{target}: {holder or 'another process'} is writing it; wait for it, or write elsewhere"
            ) from None
        except FileNotFoundError:
            continue  # the last holder removed it between two of our steps
        except NotImplementedError:  # some network drives have no locks
            logger.debug("%s: no file locks here", path)
            with suppress(OSError):
                path.unlink()
            return None
        except OSError as error:
            raise type(error)(error.errno, error.strerror, os.fspath(target)) from error
        # the last holder may have removed the file between our opening and locking it
        with suppress(FileNotFoundError):
            if path.stat().st_ino == before:
                return lock
        lock.release()


def _unheld(path: Path) -> Any:
    """The lock of a file that Ctrl-C left behind before it was locked; None if it is another's."""
    from filelock import FileLock

    with suppress(OSError, NotImplementedError):  # a timeout is an OSError, too
        if path.exists():
            lock = FileLock(path, timeout=0)
            lock.acquire()
            return lock
    return None


def _let_go_in_child() -> None:
    """A forked worker closes the locks that it inherited: they end with the process that took them."""
    for _, lock in _held.values():
        # filelock does it itself from version 4 on, and has forgotten the descriptor by now
        descriptor = getattr(getattr(lock, "_context", None), "lock_file_fd", None)
        if descriptor is not None:
            with suppress(OSError):
                os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


@contextmanager
def first_holds(group: Group, target: Path, wait: bool = False) -> Iterator[None]:
    """Rank 0 holds the lock on ``target``, and every rank works under it; see :func:`exclusive`."""
    lock = exclusive(target, wait) if group.is_first else nullcontext()
    group.first(lock.__enter__)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)
