"""Encoding in parts, each a file of its own, so that an interruption costs one part at most."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaneg_openood.data.batches import Batch, decoded_batches, worker_deaths_named
from adaneg_openood.data.headers import refuse_other_rows
from adaneg_openood.data.image_set import ImageSet
from adaneg_openood.io.digests import tensor_digest
from adaneg_openood.io.files import atomic_path, read_json_object
from adaneg_openood.vlm import VisionLanguageModel

logger = logging.getLogger(__name__)

_NAMED = 8  # broken images an error lists
_MOST_THREADS = 8  # each holds a batch; machines with more cores are better served by torchrun


@dataclass(frozen=True, eq=False)
class Part:
    """A run of images that is encoded at a time.

    Attributes:
        start, stop: indices of its images.
        file: where it is kept.
    """

    start: int
    stop: int
    file: Path


@dataclass(frozen=True, eq=False)
class Encoded:
    """What a part's file holds.

    Attributes:
        features: (n, D) float32.
        rows: (n,) int64 indices of the images, rising.
        skipped: name -> error of the broken images.
    """

    features: Tensor
    rows: Tensor
    skipped: dict[str, str]


def parts_folder(target: Path) -> Path:
    """Where the parts of a feature file lie."""
    return target.with_name(f"{target.name}.parts")


def plan_parts(target: Path, n_images: int, batch_size: int, part_size: int) -> list[Part]:
    """The parts of a file, the same however many processes there are.

    ``part_size`` is rounded up to whole batches, so that every batch holds the same images in every run.
    """
    size = math.ceil(part_size / batch_size) * batch_size
    folder = parts_folder(target)
    return [
        Part(start, min(start + size, n_images), folder / f"{start:09d}.safetensors")
        for start in range(0, n_images, size)
    ]


def prepare(target: Path, header: dict[str, Any], parts: list[Part], n_images: int) -> list[int]:
    """Make the folder of parts, or take up the one that is there.

    Returns:
        Numbers of the parts that are missing. Damaged ones are removed, with a warning, and count as
        missing.

    Raises:
        ValueError: what is there was begun with another model.
    """
    folder = parts_folder(target)
    folder.mkdir(parents=True, exist_ok=True)
    plan = {**header, "part_size": parts[0].stop - parts[0].start, "images": n_images}
    plan_file = folder / "plan.json"
    if plan_file.exists():
        try:
            known = read_json_object(plan_file)
        except ValueError as error:
            logger.warning("%s, so it begins again", error)
            known = {}
        refuse_other_rows(target, plan, plan_file, known)
        if {**known, "model": plan.get("model")} != plan:
            logger.warning("%s: was begun with other images or sizes, so it begins again", target)
            shutil.rmtree(folder)
            folder.mkdir()
    with atomic_path(plan_file) as temporary:
        temporary.write_text(json.dumps(plan), "utf-8")
    return [number for number, part in enumerate(parts) if not _is_whole(part)]


def _is_whole(part: Part) -> bool:
    if not part.file.exists():
        return False
    try:
        read_part(part)
    except ValueError as error:
        logger.warning("%s; it is encoded again", error)
        part.file.unlink()
        return False
    return True


def read_part(part: Part) -> Encoded:
    """What a part holds, checked.

    Raises:
        ValueError: damaged, or of other images; the message names the file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(part.file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            made = Encoded(
                opened.get_tensor("features"),
                opened.get_tensor("rows"),
                json.loads(metadata["skipped"]),
            )
            digest, images = metadata["sha256"], metadata["images"]
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{part.file}: damaged, {error}") from error
    if _digest(made.features, made.rows) != digest:
        raise ValueError(f"{part.file}: damaged, its features do not have their checksum")
    if images != f"{part.start} to {part.stop}":
        raise ValueError(f"{part.file}: holds images {images}, not {part.start} to {part.stop}")
    return made


def encode_part(
    model: VisionLanguageModel,
    source: ImageSet,
    header: dict[str, Any],
    part: Part,
    workers: int,
    bar: Any = None,
) -> None:
    """Encode a part and write its file.

    Raises:
        ValueError: broken images, if the header's ``on_error`` is ``"raise"``; or features that are no
            numbers. No file is written then.
        OSError: it cannot be written, or a decoding process died.
    """
    from safetensors.torch import save_file

    rows = range(part.start, part.stop)
    loader = decoded_batches(model, source, rows, int(header["batch_size"]), workers)
    features, kept, broken = [], [], []
    # closed at once on an error, because it holds threads
    stop = header["on_error"] == "raise"
    with worker_deaths_named(source.name), closing(_encoded(model, loader, stop)) as batches:
        for indices, encoded, bad in batches:
            broken += bad
            if encoded is not None:
                _refuse_bad_features(model, source, indices, encoded)
                features.append(encoded)
                kept += indices
            if bar is not None:
                bar.update(len(indices) + len(bad))
    if broken and header["on_error"] == "raise":
        listed = "; ".join(f"{source.names[i]} ({error})" for i, error in broken[:_NAMED])
        more = f"; and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
        raise ValueError(
            f"{source.name}: {len(broken)} broken image(s): {listed}{more}. Mend or remove them, "
            "or skip broken images; what was encoded so far is kept"
        )
    for index, error in broken:
        logger.warning("%s: skipped broken image %s (%s)", source.name, source.names[index], error)
    tensors = {
        "features": torch.cat(features) if features else torch.zeros(0, model.dim),
        "rows": torch.tensor(kept, dtype=torch.int64),
    }
    about = {
        "skipped": json.dumps({source.names[index]: error for index, error in broken}),
        "sha256": _digest(tensors["features"], tensors["rows"]),
        "images": f"{part.start} to {part.stop}",
    }
    with atomic_path(part.file) as temporary:
        save_file(tensors, temporary, about)


def _digest(features: Tensor, rows: Tensor) -> str:
    return f"{tensor_digest(features)}{tensor_digest(rows)}"


def _encoded(
    model: VisionLanguageModel, loader: Any, stop_at_broken: bool
) -> Generator[Batch, None, None]:
    """(indices, (b, D) float32 on the CPU or None, broken) of each batch, in order.

    On a CPU each batch is encoded by one thread, and several batches at a time: how many threads share
    one matrix product changes its last bits, and torchrun gives its processes another number of threads
    than a lone process has.
    """
    if model.device.type != "cpu":
        for batch in loader:
            yield batch[0], _features(model, batch), batch[2]
            if batch[2] and stop_at_broken:
                return
        return
    threads = min(torch.get_num_threads(), _MOST_THREADS)
    with _one_thread_each():
        if threads == 1:
            for batch in loader:
                yield batch[0], _features(model, batch), batch[2]
                if batch[2] and stop_at_broken:
                    return
            return
        pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        try:
            waiting: deque[tuple[Batch, Future[Tensor | None]]] = deque()
            for batch in loader:
                waiting.append((batch, pool.submit(_features, model, batch)))
                if batch[2] and stop_at_broken:
                    break
                if len(waiting) > threads:  # one more than are at work, and no more in memory
                    done, future = waiting.popleft()
                    yield done[0], future.result(), done[2]
            while waiting:
                done, future = waiting.popleft()
                yield done[0], future.result(), done[2]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _features(model: VisionLanguageModel, batch: Batch) -> Tensor | None:
    return None if batch[1] is None else model.encode_image(batch[1]).float().cpu()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _refuse_bad_features(
    model: VisionLanguageModel, source: ImageSet, indices: list[int], features: Tensor
) -> None:
    """Half precision overflows to infinity, which becomes NaN at unit length."""
    if features.ndim != 2 or features.shape != (len(indices), model.dim):
        raise ValueError(
            f"{model.name}: gave features of shape {tuple(features.shape)} for {len(indices)} images; "
            f"must be ({len(indices)}, {model.dim})"
        )
    bad = ~torch.isfinite(features).all(dim=1) | (features == 0).all(dim=1)
    if bad.any():
        names = [source.names[indices[row]] for row in bad.nonzero().squeeze(1).tolist()]
        listed = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
        precision = getattr(model, "effective_precision", "unknown")
        raise ValueError(
            f"{source.name}: {model.name} gave NaN, infinite or all-zero features for {len(names)} "
            f"image(s) of a batch, in precision {precision}: {listed}. Nothing of them was written; if "
            "the precision is fp16 it overflowed, so use bf16 or fp32; otherwise its weights are damaged"
        )
