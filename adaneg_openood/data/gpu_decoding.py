"""JPEGs decoded and resized on a CUDA device, by nvJPEG."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Optional

import torch
from torch import Tensor
from torch.utils.data import Dataset

from adaneg_openood.data.batches import Batch, default_workers, image_transform, loaded, tried
from adaneg_openood.data.image_set import ImageSet
from adaneg_openood.vlm import VisionLanguageModel
from adaneg_openood.vlm.preprocessing import BytePixels, split_transform

logger = logging.getLogger(__name__)

_COMPARED = 32  # images
_READERS = 4  # processes; more do not read faster, and each takes its time to start
_THREADS = 2  # one resizes while the other decodes
_TOGETHER = 2**27  # bytes of images that are resized together, which takes several times as much memory
_ON_DEVICE = ("Resize", "CenterCrop")
_TO_RGB = ("MaybeConvertMode", "function")  # of steps that nvJPEG's RGB does not need

# of each image: its index, a JPEG's bytes (n,) or finished pixels (3, H, W), uint8, and the error
Item = tuple[int, Optional[Tensor], str]
Packed = tuple[list[tuple[int, Optional[torch.Size], str]], Tensor]


class JpegBytes(Dataset):  # type: ignore[type-arg]
    """index -> a JPEG's bytes, (n,) uint8; of other images, and of JPEGs cut short, their pixels."""

    def __init__(self, images: ImageSet, halves: BytePixels) -> None:
        self.images, self.halves = images, halves

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        return tried(self.images, index, lambda: self._content(index))

    def _content(self, index: int) -> Tensor:
        if self.images.base is not None:
            content = (self.images.base / self.images.names[index]).read_bytes()
            # Pillow says what is wrong with a JPEG that has no end; nvJPEG fills it with grey
            if content[:2] == b"\xff\xd8" and b"\xff\xd9" in content[-64:]:
                return torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return self.halves.to_bytes(self.images.open(index))


def packed(items: list[Item]) -> Packed:
    """Items as one tensor, because each tensor that a worker sends costs a file descriptor."""
    about = [
        (index, None if content is None else content.shape, error) for index, content, error in items
    ]
    parts = [content.reshape(-1) for _, content, _ in items if content is not None]
    return about, torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8)


def _unpacked(batch: Packed) -> list[Item]:
    about, whole = batch
    sizes = [0 if shape is None else shape.numel() for _, shape, _ in about]
    parts = whole.split(sizes)
    return [
        (index, None if shape is None else part.reshape(shape), error)
        for (index, shape, error), part in zip(about, parts)
    ]


def decoded_on_gpu(
    images: ImageSet, model: VisionLanguageModel, order: Iterator[list[int]], workers: int | None
) -> Iterator[Batch]:
    """Batches of pixels on the model's device.

    Raises:
        ValueError: the model is not on CUDA, or its preprocessing cannot be done there.
    """
    halves = gpu_halves(model)
    decoder = _Decoder(images, halves, model.device)
    readers = min(default_workers(), _READERS) if workers is None else workers
    items = loaded(JpegBytes(images, halves), packed, order, readers, len(images))
    with ThreadPoolExecutor(_THREADS) as pool:
        waiting: deque[Future[tuple[Batch, Any]]] = deque()
        for batch in items:
            waiting.append(pool.submit(decoder, batch))
            if len(waiting) > _THREADS:
                yield _arrived(waiting.popleft())
        while waiting:
            yield _arrived(waiting.popleft())


def decoding_difference(images: ImageSet, model: VisionLanguageModel) -> dict[str, float]:
    """How far features of the first images lie from those of images decoded on the CPU.

    Returns:
        Median and largest of 1 - cosine, and the number of images; a warning tells them.
    """
    halves, transform = gpu_halves(model), image_transform(model)
    rows = [row for row in range(min(_COMPARED, len(images))) if _is_readable(images, row)]
    if not rows:
        return {}
    items = JpegBytes(images, halves)
    (_, pixels, _), _ = _Decoder(images, halves, model.device)(packed([items[row] for row in rows]))
    torch.cuda.synchronize(model.device)
    assert pixels is not None
    plain = torch.stack([transform(images.open(row)) for row in rows])
    cosines = (model.encode_image(pixels) * model.encode_image(plain)).sum(dim=1)
    apart = (1 - cosines.float()).clamp(min=0)
    found = {"median": float(apart.median()), "largest": float(apart.max()), "images": len(rows)}
    logger.warning(
        "%s: decoded on the GPU; of the first %d images, features differ from those decoded on the CPU "
        "by a cosine distance of %.2g in the median and %.2g at most",
        *(images.name, len(rows), found["median"], found["largest"]),
    )
    return found


def _is_readable(images: ImageSet, row: int) -> bool:
    return not tried(images, row, lambda: images.open(row))[2]


def gpu_halves(model: VisionLanguageModel) -> BytePixels:
    """The model's preprocessing, if a CUDA device can do it.

    Raises:
        ValueError: it cannot; the message says why.
    """
    if model.device.type != "cuda":
        raise ValueError(f"decode='gpu' needs a model on CUDA, {model.name} is on {model.device}")
    halves = split_transform(image_transform(model))
    names = [] if halves is None else [type(step).__name__ for step in halves.geometry]
    other = [name for name in names if name not in (*_ON_DEVICE, *_TO_RGB)]
    if halves is None or other:
        why = f"has the step {other[0]}" if other else "is not resizing, cropping and normalising"
        raise ValueError(f"decode='gpu': the preprocessing of {model.name} {why}; use decode='cpu'")
    return halves


class _Decoder:
    """Items of a batch -> pixels on the device, in a thread of its own with a stream of its own."""

    def __init__(self, images: ImageSet, halves: BytePixels, device: torch.device) -> None:
        self.images, self.halves, self.device = images, halves, device
        self.steps = [step for step in halves.geometry if type(step).__name__ in _ON_DEVICE]
        self._of_thread = threading.local()

    @torch.no_grad()
    def __call__(self, batch: Packed) -> tuple[Batch, Any]:
        stream = getattr(self._of_thread, "stream", None)
        if stream is None:
            stream = self._of_thread.stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(stream):
            made = self._pixels(_unpacked(batch))
            bad = [(index, error) for index, pixels, error in made if pixels is None]
            good = [(index, pixels) for index, pixels, _ in made if pixels is not None]
            pixels = torch.stack([pixels for _, pixels in good]) if good else None
            floats = None if pixels is None else self.halves.to_floats(pixels)
            done = torch.cuda.Event()
            done.record(stream)
        return ([index for index, _ in good], floats, bad), done

    def _pixels(self, items: list[Item]) -> list[Item]:
        jpegs = [(place, content) for place, (_, content, _) in enumerate(items) if _is_jpeg(content)]
        decoded = self._decoded([content for _, content in jpegs if content is not None])
        made = list(items)
        for (place, _), pixels in zip(jpegs, self._resized(decoded)):
            index = items[place][0]
            made[place] = (index, pixels, "") if pixels is not None else self._by_pillow(index)
        return [(i, None if p is None else p.to(self.device, non_blocking=True), e) for i, p, e in made]

    def _decoded(self, contents: list[Tensor]) -> list[Tensor | None]:
        if not contents:
            return []
        from torchvision.io import ImageReadMode, decode_jpeg

        try:
            return list(decode_jpeg(contents, mode=ImageReadMode.RGB, device=self.device))
        except RuntimeError:  # one of them is of a kind that nvJPEG does not know, such as CMYK
            if len(contents) == 1:
                return [None]
            half = len(contents) // 2
            return self._decoded(contents[:half]) + self._decoded(contents[half:])

    def _resized(self, images: list[Tensor | None]) -> list[Tensor | None]:
        """Images of one size are resized together: a few launches for all instead of a few for each."""
        places: dict[torch.Size, list[int]] = {}
        for place, image in enumerate(images):
            if image is not None:
                places.setdefault(image.shape, []).append(place)
        made = list(images)
        for shape, alike in places.items():
            together = max(1, _TOGETHER // shape.numel())
            for start in range(0, len(alike), together):
                some = alike[start : start + together]
                pixels = torch.stack([image for at in some if (image := images[at]) is not None])
                for step in self.steps:
                    pixels = step(pixels)
                for at, image in zip(some, pixels.unbind()):
                    made[at] = image
        return made

    def _by_pillow(self, index: int) -> Item:
        return tried(self.images, index, lambda: self.halves.to_bytes(self.images.open(index)))


def _is_jpeg(content: Tensor | None) -> bool:
    return content is not None and content.ndim == 1


def _arrived(future: Future[tuple[Batch, Any]]) -> Batch:
    batch, done = future.result()
    if batch[1] is not None:
        using = torch.cuda.current_stream(batch[1].device)
        using.wait_event(done)
        batch[1].record_stream(using)
    return batch
