"""Encoding images into a feature file, by one process or by several."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from adaneg_openood.data.headers import (
    HEADER_KEY,
    read_feature_header,
    refuse_mixing,
    refuse_other_rows,
)
from adaneg_openood.data.image_lists import OOD_LABEL
from adaneg_openood.data.image_set import ImageSet
from adaneg_openood.data.parts import Part, encode_part, parts_folder, plan_parts, prepare, read_part
from adaneg_openood.io.digests import tensor_digest
from adaneg_openood.io.files import atomic_path
from adaneg_openood.io.locks import first_holds
from adaneg_openood.io.processes import ALONE, Group
from adaneg_openood.vlm import VisionLanguageModel, describe

logger = logging.getLogger(__name__)

ON_ERROR = ("raise", "skip")
# safetensors allows a header of 100 MB, and the names are in it; some room for the rest
_MOST_NAME_BYTES = 90_000_000


def encode_images(
    model: VisionLanguageModel,
    source: ImageSet,
    output: str | os.PathLike[str],
    *,
    batch_size: int = 256,
    workers: int = 4,
    on_error: str = "raise",
    part_size: int = 4096,
    overwrite: bool = False,
    progress: bool = False,
    group: Group = ALONE,
) -> Path:
    """Encode images into a feature file.

    The file holds ``features`` (N, D) float32 of unit length and, unless every label is -1,
    ``labels`` (N,) int64; names, source and provenance are in its header
    (:func:`read_feature_header`). Placed as ``id.safetensors``, ``near/<name>.safetensors`` or
    ``far/<name>.safetensors`` of one folder, files are what ``load_features`` reads.

    Work is kept in ``<output>.parts`` as it is done, and taken up there after an interruption;
    with the same ``batch_size`` the result is the same bytes. Workers, threads and the number of
    processes change nothing. On a CPU several threads call ``model.encode_image`` at a time.

    Args:
        model: the image tower.
        source: see :meth:`ImageSet.of`.
        output: a ``.safetensors`` file.
        batch_size: images a forward pass.
        workers: decoding processes; 0 decodes in this one.
        on_error: ``"raise"`` stops at broken images and names them; ``"skip"`` leaves them out,
            with a warning, and lists them in the header.
        part_size: images kept at a time, rounded up to whole batches.
        overwrite: replace a finished file; otherwise it is left as it is if it is this very work.
        progress: show a bar.
        group: processes that share the work, see
            :func:`~adaneg_openood.io.processes.process_group`. All of them call this, with the same
            arguments and a folder that all of them see; rank 0 writes the file.

    Returns:
        ``output``.

    Raises:
        ValueError: broken images; features that are no numbers; a finished or half-finished file, or
            another file of the same benchmark folder, made with another backbone, weights or
            preprocessing (or the file itself in another precision); a bad argument.
        BlockingIOError: another process is writing the same file.
        OSError: it cannot be written, or a decoding process died.
    """
    target = Path(output)
    header = _same_everywhere(
        group, lambda: _checked_header(model, source, target, batch_size, workers, on_error, part_size)
    )
    # released on every way out; the other ranks work under rank 0's lock
    with first_holds(group, target):
        if group.first(lambda: _is_finished(target, header, overwrite)):
            return target
        parts = plan_parts(target, len(source), batch_size, part_size)
        missing = group.first(lambda: prepare(target, header, parts, len(source)))
        images = sum(part.stop - part.start for part in parts)
        to_do = [parts[number] for number in missing]
        done = images - sum(part.stop - part.start for part in to_do)
        with _bar(progress and group.is_first, target.stem, images, done) as bar:
            group.share(to_do, lambda part: encode_part(model, source, header, part, workers, bar))
        group.first(lambda: _join(target, source, header, parts))
    return target


def encode_to_file(
    images: Any,
    output: str | os.PathLike[str],
    *,
    model: str | VisionLanguageModel = "open_clip:ViT-B-16/openai",
    root: str | os.PathLike[str] | None = None,
    labelled: bool | None = None,
    limit: int | None = None,
    preprocessing: str = "model",
    device: str = "cpu",
    precision: str = "auto",
    batch_size: int = 256,
    workers: int = 4,
    on_error: str = "raise",
    overwrite: bool = False,
    progress: bool = True,
    part_size: int = 4096,
    group: Group = ALONE,
) -> Path:
    """What the command line calls: a folder, imglist or dataset to a feature file.

    Args:
        images, root, labelled, limit: see :meth:`ImageSet.of`.
        output, batch_size, workers, on_error, overwrite, progress, part_size, group: see
            :func:`encode_images`.
        model: a name, see :func:`~adaneg_openood.vlm.load_model`, or a loaded model.
        preprocessing: ``"model"`` or ``"paper"``, of a model given by name.
        device, precision: of a model given by name.

    Raises:
        ValueError, TypeError, OSError, ImportError: with a message for people.
    """
    # the images first: a wrong path should not wait for a model to load
    source = group.local(lambda: ImageSet.of(images, root=root, labelled=labelled, limit=limit))

    def loaded() -> VisionLanguageModel:
        from adaneg_openood.vlm import load_model

        if not isinstance(model, str):
            return model
        return load_model(model, device=device, precision=precision, preprocessing=preprocessing)

    return encode_images(
        group.local(loaded, first_alone=True),  # so that a download happens once
        source,
        output,
        batch_size=batch_size,
        workers=workers,
        on_error=on_error,
        part_size=part_size,
        overwrite=overwrite,
        progress=progress,
        group=group,
    )


def _checked_header(
    model: VisionLanguageModel,
    source: ImageSet,
    target: Path,
    batch_size: int,
    workers: int,
    on_error: str,
    part_size: int,
) -> dict[str, Any]:
    if target.suffix != ".safetensors":
        raise ValueError(f"{target}: features are saved as .safetensors, so the name must end in it")
    if batch_size < 1 or part_size < 1:
        raise ValueError(f"batch_size and part_size must be at least 1, got {batch_size}, {part_size}")
    if workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    if on_error not in ON_ERROR:
        raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
    _refuse_many_names(source)
    return {
        **describe(model),
        "source": source.name,
        "images_sha256": _digest(source),
        "batch_size": batch_size,
        "on_error": on_error,
    }


def _refuse_many_names(source: ImageSet) -> None:
    """Said before hours of work, and not by safetensors after them."""
    if sum(map(len, source.names)) * 14 < _MOST_NAME_BYTES:  # a character takes 13 bytes at most
        return
    length = sum(len(json.dumps(json.dumps(name))) for name in source.names)
    if length > _MOST_NAME_BYTES:
        share = len(source) * _MOST_NAME_BYTES // length
        raise ValueError(
            f"{source.name}: the names of its {len(source)} images take {length / 1e6:.0f} MB, and a "
            f"feature file has room for {_MOST_NAME_BYTES / 1e6:.0f}; encode lists of at most about "
            f"{share} images into files of their own"
        )


def _same_everywhere(group: Group, make: Any) -> dict[str, Any]:
    headers = group.each(make)
    for rank, header in enumerate(headers):
        for key in headers[0]:
            # each rank sees this, because each has all headers
            if header.get(key) != headers[0][key]:
                raise ValueError(
                    f"rank {rank} has {key} {header.get(key)!r}, but rank 0 has {headers[0][key]!r}; "
                    "all processes must encode the same images with the same model"
                )
    return dict(headers[0])


def _is_finished(target: Path, header: dict[str, Any], overwrite: bool) -> bool:
    refuse_mixing(target, header)
    if not target.exists() or overwrite:
        return False
    known = read_feature_header(target)
    refuse_other_rows(target, header, target, known)
    if known.get("images_sha256") != header["images_sha256"]:
        raise ValueError(
            f"{target}: is there already, with other images (from {known.get('source')}); "
            "name another file, or ask to overwrite"
        )
    logger.info("%s: is there already, made with the same model from the same images", target)
    return True


def _digest(source: ImageSet) -> str:
    digest = hashlib.sha256()
    for name, label in zip(source.names, source.labels):
        digest.update(f"{label} {name}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


@contextmanager
def _bar(shown: bool, title: str, images: int, done: int) -> Iterator[Any]:
    if not shown:
        yield None
        return
    from tqdm.auto import tqdm

    with tqdm(total=images, initial=done, desc=title, unit="image") as bar:
        yield bar


def _join(target: Path, source: ImageSet, header: dict[str, Any], parts: list[Part]) -> None:
    from safetensors.torch import save_file

    made = [read_part(part) for part in parts]
    skipped = {name: error for part in made for name, error in part.skipped.items()}
    rows = torch.cat([part.rows for part in made])
    if not len(rows):
        raise ValueError(f"{source.name}: every image is broken, nothing to save")
    tensors = {"features": torch.cat([part.features for part in made])}
    labels = torch.tensor([int(label) for label in source.labels], dtype=torch.int64)[rows]
    if (labels != OOD_LABEL).any():
        tensors["labels"] = labels
    about = {
        **header,
        "names": [source.names[index] for index in rows.tolist()],
        "skipped": skipped,
        "features_sha256": tensor_digest(tensors["features"]),
    }
    for left in target.parent.glob(f".{target.name}.*.tmp"):
        left.unlink(missing_ok=True)  # of a run that was killed here; the lock is ours
    with atomic_path(target) as temporary:
        save_file(tensors, temporary, {HEADER_KEY: json.dumps(about)})
    shutil.rmtree(parts_folder(target))
