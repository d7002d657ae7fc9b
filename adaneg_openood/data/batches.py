"""Images decoded and preprocessed by worker processes, in order."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Optional

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from adaneg_openood.data.image_set import ImageSet
from adaneg_openood.io.names import harmless
from adaneg_openood.vlm import VisionLanguageModel

CHANGED = "it changed after it was listed"
_FEW = 8  # images a worker should have to do at least

# indices of the good images, their pixels (b, 3, H, W) or None, and (index, error) of the others
Batch = tuple[list[int], Optional[Tensor], list[tuple[int, str]]]


class Decoded(Dataset):  # type: ignore[type-arg]
    """index -> (index, what ``prepare`` makes of the image, error): no worker dies of a broken image."""

    def __init__(self, images: ImageSet, prepare: Callable[[Any], Any]) -> None:
        self.images, self.prepare = images, prepare

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, Any, str]:
        return tried(self.images, index, lambda: self.prepare(self.images.open(index)))


def tried(images: ImageSet, index: int, make: Callable[[], Any]) -> tuple[int, Any, str]:
    """(index, what ``make`` gives, error); :data:`CHANGED` if it is not the file that was listed."""
    try:
        made = make()
        if images.was_listed and images.has_changed(index):
            return index, None, CHANGED
        return index, made, ""
    # Pillow's decoders raise many kinds; SyntaxError and struct.error are two of them
    except Exception as error:
        return index, None, f"{type(error).__name__}: {error}"


def stacked(items: list[tuple[int, Tensor | None, str]]) -> Batch:
    """Items of :class:`Decoded` as one batch."""
    good = [(index, pixels) for index, pixels, _ in items if pixels is not None]
    bad = [(index, error) for index, pixels, error in items if pixels is None]
    pixels = torch.stack([pixels for _, pixels in good]) if good else None
    return [index for index, _ in good], pixels, bad


def image_transform(model: VisionLanguageModel) -> Callable[[Any], Tensor]:
    """PIL image -> pixels; alone, because workers need no towers."""
    return getattr(model, "transform", None) or model.preprocess


def decoded_batches(
    model: VisionLanguageModel, images: ImageSet, batch_size: int, workers: int | None = None
) -> Iterator[Batch]:
    """Images of a set, decoded and preprocessed by worker processes, in order.

    Args:
        model: whose preprocessing it is.
        images: the images.
        batch_size: images in one batch.
        workers: decoding processes; 0 decodes in this one, None takes as many as there are cores.

    Yields:
        Batches of: indices of the good images; their pixels (b, 3, H, W), None if there are none;
        and (index, error) of those that cannot be read.

    Raises:
        ChildProcessError: an OSError, a worker process died.
    """
    starts = range(0, len(images), batch_size)
    order = (list(range(start, min(start + batch_size, len(images)))) for start in starts)
    with worker_deaths_named(images.name):
        yield from loaded(Decoded(images, image_transform(model)), stacked, order, workers, len(images))


def loaded(
    dataset: Dataset[Any],
    collate: Callable[[list[Any]], Any],
    order: Iterable[list[int]],
    workers: int | None,
    n_images: int,
    pin: bool = False,
) -> Iterator[Any]:
    """One loader over all batches.

    Args:
        dataset: index -> item.
        collate: items of one batch -> the batch.
        order: indices of each batch, drawn when a worker is free for it.
        workers: see :func:`decoded_batches`.
        n_images: a few images need fewer workers.
        pin: whether batches lie in pinned memory.
    """
    wanted = default_workers() if workers is None else workers
    with warnings.catch_warnings():
        # the caller said how many; and workers are forked before any thread runs
        for said in ("This DataLoader will create", ".*is multi-threaded, use of fork"):
            warnings.filterwarnings("ignore", message=said)
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=order,  # type: ignore[arg-type]
            num_workers=min(wanted, max(1, n_images // _FEW)),
            collate_fn=collate,
            pin_memory=pin,
            # a generator of its own, because the loader draws a seed from the global one otherwise
            generator=torch.Generator(),
            worker_init_fn=_quiet,
        )
        batches = iter(loader)
    try:
        yield from batches
    finally:
        stop = getattr(batches, "_shutdown_workers", None)
        if stop is not None:  # now: torch tells of a worker's death, in any place, until they are gone
            stop()


@contextmanager
def progress_bar(shown: bool, title: str, total: int, done: int = 0) -> Iterator[Any]:
    """A bar of images, full at the end; its ``update`` takes a number of images."""
    from tqdm.auto import tqdm

    name = harmless(os.path.basename(title.rstrip(os.sep)) or title)
    with tqdm(
        total=total, initial=done, desc=f"encoding {name}", unit="image", disable=not shown
    ) as bar:
        yield bar
        bar.update(total - bar.n)  # those that other processes did


def default_workers() -> int:
    """The cores that this process may use, shared with those that torchrun started beside it."""
    usable = getattr(os, "sched_getaffinity", None)
    cores = len(usable(0)) if usable is not None else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def _quiet(_: int) -> None:
    """A worker says nothing of its own: the main process tells errors, and ends it on Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")


@contextmanager
def worker_deaths_named(name: str) -> Iterator[None]:
    """A decoding process that dies is told as ChildProcessError, which is an OSError.

    torch raises from a signal handler, so in whatever the main thread is doing: this belongs around the
    whole use of the batches.
    """
    try:
        yield
    except (ConnectionError, EOFError, RuntimeError) as error:
        # torch's own words for it, or the worker's pipe broke before torch heard of its death; any other
        # error is not ours to rename
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        said = (str(error) or repr(error)).splitlines()[0]
        raise ChildProcessError(
            f"{name}: a decoding process died ({said}). It may have run out of memory, or an image may "
            "crash its decoder; --workers 0 decodes in the main process and shows which"
        ) from error
