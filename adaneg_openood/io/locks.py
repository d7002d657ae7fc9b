"""One job at a time on one output."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from adaneg_openood.io.processes import Group

logger = logging.getLogger(__name__)


@contextmanager
def exclusive(target: Path, wait: bool = False) -> Iterator[None]:
    """Hold ``.<name>.lock`` beside ``target``, where the system has file locks; gone afterwards.

    The system lets go of a lock when its holder ends, however it ends, so a killed run leaves a file
    that locks nothing.

    Args:
        target: what is written; it need not exist.
        wait: until another process lets go of it.

    Raises:
        BlockingIOError: another process holds it, and ``wait`` is false; the message says which.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    path = target.with_name(f".{target.name}.lock")
    while True:
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read(200).strip() or "another process"
                raise BlockingIOError(
                    f"{target}: {holder} is writing it; wait for it, or write elsewhere"
                ) from None
            except OSError:  # some network drives have none
                logger.debug("%s: no file locks here", path)
            # the last holder may have removed the file between our opening and locking it
            if not _is_at(file.fileno(), path):
                continue
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            try:
                yield
            finally:
                with suppress(OSError):
                    path.unlink()
            return


@contextmanager
def first_holds(group: Group, target: Path, wait: bool = False) -> Iterator[None]:
    """Rank 0 holds the lock on ``target``, and every rank works under it; see :func:`exclusive`."""
    lock = exclusive(target, wait) if group.is_first else nullcontext()
    group.first(lock.__enter__)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
