"""Work spread over the processes that ``torchrun`` starts; one process alone is a group of one.

Only small JSON messages travel between the processes. Features go through files, so the same code
serves gloo and nccl, one machine and several that share a folder.
"""

from __future__ import annotations

import datetime
import itertools
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Callable, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["ALONE", "Group", "local_device", "process_group"]

logger = logging.getLogger(__name__)

Job = TypeVar("Job")
Answer = TypeVar("Answer")

# How long a rank waits for the others, which may be joining hundreds of gigabytes. A rank that dies is
# noticed at once, by its closed connections.
_PATIENCE = datetime.timedelta(hours=12)
# what an error may be on the other ranks; all else becomes a RuntimeError
_KINDS: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (ValueError, TypeError, OSError, ImportError, RuntimeError)
}


class Group:
    """The processes at work together.

    Every method must be called by every rank, in the same order. An error on one rank is raised on all
    of them: there as it was, elsewhere as the same kind with the rank named. Values are JSON.

    Args:
        rank: this process, from 0.
        size: number of processes.
        store: where they meet besides the process group; None in a group of one.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: dist.Store | None = None) -> None:
        self.rank, self.size = rank, size
        self._store = store
        self._steps = 0

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes and speaks for all."""
        return self.rank == 0

    def each(self, work: Callable[[], Answer]) -> list[Any]:
        """Do work on every rank; the answers of all, by rank, on every rank."""
        if self.size == 1:
            return [work()]
        answer, error = None, None
        try:
            answer = work()
        except Exception as caught:
            error = caught
        told = None if error is None else _told(error)
        gathered = self._gather({"answer": answer, "error": told})
        if error is not None:
            raise error
        for rank, part in enumerate(gathered):
            if part["error"] is not None:
                raise _KINDS[part["error"]["kind"]](f"rank {rank}: {part['error']['text']}")
        return [part["answer"] for part in gathered]

    def first(self, work: Callable[[], Answer]) -> Any:
        """Do work on rank 0 alone; every rank gets its answer."""
        return self.each(work if self.is_first else lambda: None)[0]

    def local(self, work: Callable[[], Answer], first_alone: bool = False) -> Answer:
        """Do work on every rank, and get this rank's own answer, which need not be JSON.

        Args:
            work: what to do.
            first_alone: the others begin when rank 0 is done, and find in caches what it left there.
        """
        answers: list[Answer] = []
        if first_alone:
            self.first(lambda: answers.append(work()))
        self.each(lambda: None if answers else answers.append(work()))
        return answers[0]

    def share(
        self,
        jobs: Sequence[Job],
        work: Callable[[Job], Answer],
        begun: Callable[[int], object] | None = None,
    ) -> list[Any]:
        """Do each job on one rank, whichever is free; the answers in the order of the jobs.

        A rank that fails stops the others after the job they are at.

        Args:
            jobs: the same on every rank.
            work: may depend on nothing but its job, because any rank may get it.
            begun: called before a job of this rank with how many all ranks have begun before.
        """
        return self.share_stream(jobs, lambda mine: map(work, mine), begun)

    def share_stream(
        self,
        jobs: Sequence[Job],
        work: Callable[[Iterator[Job]], Iterable[Answer]],
        begun: Callable[[int], object] | None = None,
    ) -> list[Any]:
        """As :meth:`share`, for work that looks ahead: it draws jobs and gives their answers in order.

        Args:
            jobs: the same on every rank.
            work: an iterator of this rank's jobs, which may be drawn before earlier ones are answered,
                to one answer for each.
            begun: see :meth:`share`.
        """
        self._steps += 1
        step, store = self._steps, self._store
        numbers: list[int] = []

        def drawn() -> Iterator[Job]:
            number = -1
            while store is None or not store.check([f"failed/{step}"]):
                # a counter that all ranks draw from: no rank waits for a slower one
                number = number + 1 if store is None else store.add(f"next/{step}", 1) - 1
                if number >= len(jobs):
                    return
                if begun is not None:
                    begun(number)
                numbers.append(number)
                yield jobs[number]

        def mine() -> dict[str, Any]:
            try:
                return {str(number): answer for answer, number in zip(work(drawn()), numbers)}
            except BaseException:
                if store is not None:
                    store.set(f"failed/{step}", "1")
                raise

        answers = {number: answer for part in self.each(mine) for number, answer in part.items()}
        return [answers[str(number)] for number in range(len(jobs))]

    def _gather(self, value: Any) -> list[Any]:
        """JSON values of all ranks, without pickling, which ``all_gather_object`` would do."""
        place = _message_device()
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(place)
        lengths = [torch.zeros(1, dtype=torch.int64, device=place) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(data)], device=place))
        longest = int(max(int(length) for length in lengths))
        padded = torch.zeros(longest, dtype=torch.uint8, device=place)
        padded[: len(data)] = data
        parts: list[Tensor] = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return [
            json.loads(bytes(part[: int(length)].cpu().numpy())) for part, length in zip(parts, lengths)
        ]


ALONE = Group()
_NUMBERS = itertools.count()  # of this process's groups, the same on all ranks


@contextmanager
def process_group(device: str = "cpu") -> Iterator[Group]:
    """The group that ``torchrun`` started, or a group of one.

    A process group that exists already is used and left open.

    Args:
        device: what the ranks compute on. With ``"cuda"`` each takes the GPU of its local rank, see
            :func:`local_device`, and nccl is joined besides gloo.

    Raises:
        OSError: the processes cannot reach each other.
    """
    if not dist.is_available() or ("RANK" not in os.environ and not dist.is_initialized()):
        yield ALONE
        return
    owned = not dist.is_initialized()
    if owned:
        # messages go over gloo; nccl is for models that communicate
        backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        try:
            dist.init_process_group(backend, timeout=_PATIENCE)
        except (RuntimeError, ValueError) as error:
            raise OSError(
                f"the processes cannot form a group ({error}); start them with torchrun, which sets "
                "MASTER_ADDR, MASTER_PORT, RANK and WORLD_SIZE"
            ) from error
    try:
        store = dist.PrefixStore(f"adaneg/{next(_NUMBERS)}", dist.distributed_c10d._get_default_store())
        size = dist.get_world_size()
        yield Group(dist.get_rank(), size, store if size > 1 else None)
    finally:
        if owned:
            dist.destroy_process_group()


def local_device(device: str) -> str:
    """``"cuda"`` as this process's own GPU, by torchrun's ``LOCAL_RANK``; anything else as it is."""
    if device != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    return f"cuda:{int(os.environ['LOCAL_RANK']) % max(1, torch.cuda.device_count())}"


def _message_device() -> torch.device:
    """Where messages lie: on the CPU, unless the caller's group has nccl alone."""
    backend = str(dist.get_backend())
    if backend == "nccl" or (backend.startswith("cuda") and "cpu" not in backend):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _told(error: Exception) -> dict[str, str]:
    for name, kind in _KINDS.items():
        if isinstance(error, kind):
            return {"kind": name, "text": str(error)}
    return {"kind": "RuntimeError", "text": f"{type(error).__name__}: {error}"}
