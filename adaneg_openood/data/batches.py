"""Images decoded and preprocessed by worker processes, in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Optional

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from adaneg_openood.data.image_set import ImageSet
from adaneg_openood.vlm import VisionLanguageModel

if TYPE_CHECKING:
    from PIL.Image import Image

_HANDLER_WAIT = 2.0  # seconds; a signal ends it

# indices of the good images, their pixels (b, 3, H, W) or None, and (index, error) of the others
Batch = tuple[list[int], Optional[Tensor], list[tuple[int, str]]]


class _Pixels(Dataset):  # type: ignore[type-arg]
    """index -> (index, pixels, error): a worker must not die of one broken image."""

    def __init__(
        self, source: ImageSet, transform: Callable[[Image], Tensor], start: int, stop: int
    ) -> None:
        self.source = source
        self.transform = transform
        self.start = start
        self.stop = stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, offset: int) -> tuple[int, Tensor | None, str]:
        index = self.start + offset
        try:
            return index, self.transform(self.source.open(index)), ""
        # Pillow's decoders raise many kinds; SyntaxError and struct.error are two of them
        except Exception as error:
            return index, None, f"{type(error).__name__}: {error}"


def _collate(items: list[tuple[int, Tensor | None, str]]) -> Batch:
    good = [(index, pixels) for index, pixels, _ in items if pixels is not None]
    bad = [(index, error) for index, pixels, error in items if pixels is None]
    stacked = torch.stack([pixels for _, pixels in good]) if good else None
    return [index for index, _ in good], stacked, bad


class DecodedBatches(Sized):
    """What :func:`decoded_batches` gives: as long as there are batches, read once or more."""

    def __init__(self, name: str, loader: DataLoader[Batch]) -> None:
        self.name, self.loader = name, loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        with worker_deaths_named(self.name):
            yield from self.loader


@contextmanager
def worker_deaths_named(name: str) -> Iterator[None]:
    """A decoding process that dies is told as ChildProcessError, which is an OSError.

    torch raises from a signal handler, so in whatever the main thread is doing: this belongs around the
    whole use of the batches.
    """
    try:
        try:
            yield
        except ConnectionError:
            # The worker's pipe broke before torch heard of its death: its signal handler is yet to
            # raise, and should do so in here.
            time.sleep(_HANDLER_WAIT)
            raise
    except RuntimeError as error:
        # torch's own words for it; any other error is not ours to rename
        if "DataLoader worker" not in str(error):
            raise
        raise ChildProcessError(
            f"{name}: a decoding process died ({str(error).splitlines()[0]}). It may have run out of "
            "memory, or an image may crash its decoder; --workers 0 decodes in the main process and "
            "shows which"
        ) from error


def decoded_batches(
    model: VisionLanguageModel, source: ImageSet, rows: range, batch_size: int, workers: int
) -> DecodedBatches:
    """Images of a source, decoded and preprocessed by worker processes, in order.

    Returns:
        Batches of: indices of the good images; their pixels (b, 3, H, W), None if there are none;
        and (index, error) of those that cannot be read. Reading them raises ChildProcessError, which is
        an OSError, if a worker process dies.
    """
    # the transform alone goes to the workers, never the towers
    transform = getattr(model, "transform", model.preprocess)
    loader: DataLoader[Batch] = DataLoader(
        _Pixels(source, transform, rows.start, rows.stop),
        batch_size=batch_size,
        num_workers=min(workers, max(1, len(rows) // 8)) if workers else 0,
        collate_fn=_collate,
        pin_memory=model.device.type == "cuda",
        # a generator of its own, because the loader draws a seed from the global one otherwise
        generator=torch.Generator(),
    )
    return DecodedBatches(source.name, loader)
