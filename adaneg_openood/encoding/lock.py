"""One job at a time on one output."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

logger = logging.getLogger(__name__)


@contextmanager
def exclusive(target: Path) -> Iterator[None]:
    """Hold ``.<name>.lock`` beside ``target``, where the system has file locks; gone afterwards.

    The system lets go of a lock when its holder ends, however it ends, so a killed run leaves a file
    that locks nothing.

    Raises:
        BlockingIOError: another process holds it; the message says which.
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
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read(200).strip() or "another process"
                raise BlockingIOError(
                    f"{target}: {holder} is writing it; wait for it, or name another file"
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


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
