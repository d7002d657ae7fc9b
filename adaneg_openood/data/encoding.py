"""Images through the image tower, part by part, with one loader for all of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any, Callable

import numpy as np
import torch
from torch import Tensor

from adaneg_openood.data.batches import (
    CHANGED,
    Batch,
    Decoded,
    image_transform,
    loaded,
    stacked,
)
from adaneg_openood.data.image_set import ImageSet
from adaneg_openood.data.parts import Part, PartFeatures
from adaneg_openood.io.names import listed
from adaneg_openood.vlm import VisionLanguageModel
from adaneg_openood.vlm.preprocessing import BytePixels, split_transform

_NAMED = 8  # broken images an error lists
_MOST_THREADS = 8  # each holds a batch; machines with more cores are better served by torchrun
_AHEAD = 2  # batches that a device has yet to answer

Launch = Callable[[Tensor], Callable[[], Tensor]]  # pixels -> wait for their features


def encode_parts(
    images: ImageSet,
    model: VisionLanguageModel,
    parts: Iterator[Part],
    *,
    batch_size: int,
    workers: int | None,
    stop_at_broken: bool,
    decode: str,
    bar: Any,
) -> Iterator[tuple[Part, PartFeatures]]:
    """Encode parts in the order in which they are drawn, and yield each with its features.

    Args:
        parts: drawn one after the other, each when a worker is free for its first batch.
        batch_size, workers, decode: see :meth:`FeatureStore.get`.
        stop_at_broken: whether broken images are an error; otherwise they are told of in the part.
        bar: a progress bar to update.

    Raises:
        ValueError: broken images, images that changed meanwhile, or features that are no numbers.
        ChildProcessError: an OSError, a decoding process died.
    """
    drawn: deque[Part] = deque()

    def order() -> Iterator[list[int]]:
        for part in parts:
            drawn.append(part)
            for start in range(part.start, part.stop, batch_size):
                yield list(range(start, min(start + batch_size, part.stop)))

    features: list[Tensor] = []
    kept: list[int] = []
    broken: dict[int, str] = {}
    batches = _decoded(images, model, order(), workers, decode)
    # closed at once on an error, because it holds threads
    with closing(_encoded(model, batches, stop_at_broken)) as made:
        for indices, encoded, bad in made:
            _refuse_changed(images, bad)
            if bad and stop_at_broken:
                raise ValueError(broken_images(images, dict(bad)))
            if encoded is not None:
                _refuse_bad_features(model, images, indices, encoded)
                features.append(encoded)
            kept += indices
            broken.update(bad)
            bar.update(len(indices) + len(bad))
            part = drawn[0]
            if len(kept) + len(broken) == len(part):
                drawn.popleft()
                yield (
                    part,
                    PartFeatures(
                        torch.cat(features) if features else torch.zeros(0, model.dim),
                        torch.tensor(kept, dtype=torch.int64) - part.start,
                        {index - part.start: error for index, error in broken.items()},
                    ),
                )
                features, kept, broken = [], [], {}


def listed_broken(images: ImageSet, broken: Mapping[int, str]) -> str:
    """How many images cannot be read, and the first of them, on one line."""
    told = [f"{images.names[index]} ({error})" for index, error in list(broken.items())[:_NAMED]]
    more = f"; and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
    return f"{images.name}: {len(broken)} broken image(s): {'; '.join(told)}{more}"


def broken_images(images: ImageSet, broken: Mapping[int, str]) -> str:
    """The error for images that cannot be read, by index."""
    return (
        f"{listed_broken(images, broken)}. Mend or remove them, or leave them out with --skip-broken "
        "(skip_broken=True); what was encoded so far is kept, and the next run goes on from there"
    )


def _decoded(
    images: ImageSet,
    model: VisionLanguageModel,
    order: Iterator[list[int]],
    workers: int | None,
    decode: str,
) -> Iterator[Batch]:
    """Batches of pixels, for CUDA already there."""
    transform = image_transform(model)
    if decode == "gpu":
        from adaneg_openood.data.gpu_decoding import decoded_on_gpu

        return decoded_on_gpu(images, model, order, workers)
    if model.device.type != "cuda":
        return loaded(Decoded(images, transform), stacked, order, workers, len(images))
    halves = split_transform(transform)  # uint8 takes a quarter of the bus
    prepare = transform if halves is None else halves.to_bytes
    batches = loaded(Decoded(images, prepare), stacked, order, workers, len(images), pin=True)
    return _copied_ahead(batches, halves, model.device)


def _copied_ahead(
    batches: Iterator[Batch], halves: BytePixels | None, device: torch.device
) -> Iterator[Batch]:
    """Batches on the device; the next one is copied while one is encoded."""
    copying = torch.cuda.Stream(device)
    ready: deque[Batch] = deque()
    for indices, pixels, bad in batches:
        if pixels is not None:
            with torch.cuda.stream(copying):
                pixels = pixels.to(device, non_blocking=True)
        ready.append((indices, pixels, bad))
        if len(ready) > 1:
            yield _arrived(ready.popleft(), copying, halves)
    while ready:
        yield _arrived(ready.popleft(), copying, halves)


def _arrived(batch: Batch, copying: torch.cuda.Stream, halves: BytePixels | None) -> Batch:
    indices, pixels, bad = batch
    if pixels is not None:
        using = torch.cuda.current_stream(pixels.device)
        using.wait_stream(copying)
        pixels.record_stream(using)
        pixels = pixels if halves is None else halves.to_floats(pixels)
    return indices, pixels, bad


def _encoded(
    model: VisionLanguageModel, batches: Iterator[Batch], stop_at_broken: bool
) -> Generator[Batch, None, None]:
    """Batches with (b, D) float32 features on the CPU in place of pixels, in order."""
    waiting: deque[tuple[Batch, Callable[[], Tensor] | None]] = deque()
    with _launcher(model) as (launch, ahead):
        for batch in batches:
            waiting.append((batch, None if batch[1] is None else launch(batch[1])))
            if batch[2] and stop_at_broken:
                break
            if len(waiting) > ahead:
                yield _answered(*waiting.popleft())
        while waiting:
            yield _answered(*waiting.popleft())


def _answered(batch: Batch, wait: Callable[[], Tensor] | None) -> Batch:
    return batch[0], None if wait is None else wait(), batch[2]


@contextmanager
def _launcher(model: VisionLanguageModel) -> Iterator[tuple[Launch, int]]:
    """How a batch is set to work, and how many may be at work while the next is decoded.

    On a CPU each batch is encoded by one thread, and several batches at a time: how many threads share
    one matrix product changes its last bits, and torchrun gives its processes another number of threads
    than a lone process has.
    """
    threads = min(torch.get_num_threads(), _MOST_THREADS)
    if model.device.type == "cuda":
        yield lambda pixels: _launched_on_cuda(model, pixels), _AHEAD
    elif model.device.type != "cpu" or threads == 1:
        yield lambda pixels: lambda: _features(model, pixels), 0
    else:
        with _one_thread_each():
            pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
            try:
                # one more than are at work, and no more in memory
                yield lambda pixels: pool.submit(_features, model, pixels).result, threads
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def _launched_on_cuda(model: VisionLanguageModel, pixels: Tensor) -> Callable[[], Tensor]:
    features = model.encode_image(pixels).float()
    kept = torch.empty(features.shape, pin_memory=True).copy_(features, non_blocking=True)
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(features.device))

    def wait() -> Tensor:
        done.synchronize()
        return kept

    return wait


def _features(model: VisionLanguageModel, pixels: Tensor) -> Tensor:
    return model.encode_image(pixels).float().cpu()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _refuse_changed(images: ImageSet, bad: list[tuple[int, str]]) -> None:
    changed = next((index for index, error in bad if error == CHANGED), None)
    if changed is not None:
        raise ValueError(
            f"{images.name}: {images.names[changed]} changed while images were encoded; run it again"
        )


def _refuse_bad_features(
    model: VisionLanguageModel, images: ImageSet, indices: list[int], features: Tensor
) -> None:
    """Half precision overflows to infinity, which becomes NaN at unit length."""
    dim = getattr(model, "dim", features.shape[-1])
    if features.ndim != 2 or features.shape != (len(indices), dim):
        raise ValueError(
            f"{model.name}: gave features of shape {tuple(features.shape)} for {len(indices)} images; "
            f"must be ({len(indices)}, {dim})"
        )
    values = features.numpy()  # torch would give its turn to the threads that decode, and wait for it
    bad = ~np.isfinite(values).all(axis=1) | ~values.any(axis=1)
    if bad.any():
        names = [images.names[indices[row]] for row in np.flatnonzero(bad)]
        precision = getattr(model, "effective_precision", "unknown")
        raise ValueError(
            f"{images.name}: {model.name} gave NaN, infinite or all-zero features for {len(names)} "
            f"image(s) of a batch, in precision {precision}: {listed(names)}. Nothing of them was "
            "written; if the precision is fp16 it overflowed, so use bf16 or fp32; otherwise its "
            "weights are damaged"
        )
