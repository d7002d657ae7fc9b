"""Image features by what they were made of: the only place that encodes, so an image is encoded once."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from adaneg_openood.data.batches import progress_bar, worker_deaths_named
from adaneg_openood.data.encoding import broken_images, encode_parts, listed_broken
from adaneg_openood.data.image_files import OOD_LABEL
from adaneg_openood.data.image_set import ImageSet
from adaneg_openood.data.parts import Part, PartFeatures, read_part, write_part
from adaneg_openood.io.checks import check_choice, check_int
from adaneg_openood.io.digests import digest_of
from adaneg_openood.io.locks import first_holds
from adaneg_openood.io.processes import ALONE, Group
from adaneg_openood.vlm import VisionLanguageModel, describe

logger = logging.getLogger(__name__)

DECODERS = ("cpu", "gpu")
_FORMAT = 2
_KEY = 32  # hex digits
# of describe(): what an image's features depend on
_IDENTITY = ("model", "weights", "dim", "preprocessing", "precision")


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """Features of an image set, in its order.

    Attributes:
        features: (N, D) float32 of unit length.
        labels: (N,) int64; None where every image is OOD.
        names: N image names.
        skipped: name -> error of the broken images that were left out.
        fresh: whether any was encoded now.
        about: what they were made with: model, weights, preprocessing, precision, way of decoding.
    """

    features: Tensor
    labels: Tensor | None
    names: tuple[str, ...]
    skipped: Mapping[str, str]
    fresh: bool
    about: Mapping[str, Any]


class FeatureStore:
    """A folder of image features.

    Images are kept in parts. A part is found by a hash of its images' names, sizes and times of change,
    and of the model's name, weights, width, preprocessing, precision and way of decoding: replaced
    images or weights are noticed, and an image that is mended costs one part. Each part is written once,
    when it is done, with a checksum: an interruption costs a part or two, and a damaged one is made
    again.

    Args:
        folder: made when the first part is written; where nothing is missing it may be read-only.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).expanduser()

    def get(
        self,
        images: ImageSet,
        model: VisionLanguageModel,
        *,
        batch_size: int = 256,
        workers: int | None = None,
        skip_broken: bool = False,
        decode: str = "cpu",
        part_size: int = 4096,
        progress: bool = False,
        group: Group = ALONE,
    ) -> ImageFeatures:
        """Features of an image set, from the store or encoded now.

        They are the same bytes whatever the number of workers, threads and processes. On a CPU several
        threads call ``model.encode_image`` at a time. Of a model that does not tell its weights apart
        (no ``describe()`` with ``weights``) nothing is kept.

        Args:
            images: see :meth:`ImageSet.of`.
            model: the image tower.
            batch_size: images in one forward pass.
            workers: decoding processes; 0 decodes in this one, None takes as many as there are cores.
            skip_broken: leave broken images out, with a warning; otherwise they are an error.
            decode: ``"cpu"``, or ``"gpu"``: JPEGs are decoded and resized on the CUDA device, which
                changes features a little; a warning tells by how much.
            part_size: images that are kept and shared out at a time.
            progress: show a bar.
            group: processes that share the work, see
                :func:`~adaneg_openood.io.processes.process_group`. All of them call this, with the same
                arguments and a folder that all of them see.

        Raises:
            ValueError: broken images, images that change meanwhile, features that are no numbers, or a
                bad argument.
            OSError: a part cannot be written, or a decoding process died.
        """
        check_int("batch_size", batch_size)
        check_int("part_size", part_size)
        check_int("workers", workers or 0, 0)
        check_choice("decode", decode, DECODERS)
        known = group.local(lambda: describe(model))
        own = {key: known[key] for key in _IDENTITY if key in known}
        about: dict[str, Any] = {"format": _FORMAT, **own, "decode": decode}
        parts = group.local(lambda: _plan(images, about, part_size))
        whole = digest_of([part.key for part in parts], _KEY)
        refuse_other_ranks(group, {**about, "images": whole})
        held: dict[str, PartFeatures] = {}
        with self._keeper(about, group) as keeper:
            missing = group.first(lambda: keeper._missing(parts, held))
            if missing:
                if decode == "gpu":
                    from adaneg_openood.data.gpu_decoding import decoding_difference

                    about["difference"] = group.first(lambda: decoding_difference(images, model))
                told = {**about, "set": whole, "source": images.name, "images": len(images)}
                lock = first_holds(group, keeper.folder / whole, wait=True)
                with worker_deaths_named(images.name), lock:
                    # another process may have made some of them meanwhile
                    numbers = group.first(lambda: keeper._missing(parts, held, warn=True))
                    jobs = [parts[number] for number in numbers]
                    group.first(lambda: keeper._clear(jobs))
                    done = len(images) - sum(map(len, jobs))
                    shown = progress and group.is_first
                    with progress_bar(shown, images.name, len(images), done) as bar:

                        def work(mine: Iterator[Part]) -> Iterator[None]:
                            made = encode_parts(
                                images, model, mine, batch_size=batch_size, workers=workers,
                                stop_at_broken=not skip_broken, decode=decode, bar=bar,
                            )  # fmt: skip
                            for part, encoded in made:
                                write_part(keeper._file(part), encoded, told)
                                held[part.key] = encoded
                                yield None

                        group.share_stream(jobs, work)
            loaded = group.local(lambda: [held.get(part.key) or keeper._read(part) for part in parts])
        return _joined(images, parts, loaded, skip_broken, bool(missing), about)

    @contextmanager
    def _keeper(self, about: Mapping[str, Any], group: Group) -> Iterator[FeatureStore]:
        """This store, or one for this time only, of a model that does not tell its weights apart."""
        if "weights" in about:
            yield self
        elif group.size == 1:
            with TemporaryDirectory() as once:
                yield FeatureStore(once)
        else:  # in a folder that all processes see
            shared = self.folder / f"once-{group.first(lambda: os.urandom(8).hex())}"
            try:
                yield FeatureStore(shared)
            finally:
                if group.is_first:
                    shutil.rmtree(shared, ignore_errors=True)

    def _file(self, part: Part) -> Path:
        return self.folder / f"{part.key}.safetensors"

    def _missing(
        self, parts: Sequence[Part], held: dict[str, PartFeatures], warn: bool = False
    ) -> list[int]:
        """Numbers of the parts that are not there; ``held`` gets the others."""
        for part in parts:
            found = None if part.key in held else self._read(part, warn)
            if found is not None:
                held[part.key] = found
        return [number for number, part in enumerate(parts) if part.key not in held]

    def _clear(self, jobs: Sequence[Part]) -> None:
        """Remove what runs that were killed while they wrote these parts have left."""
        for part in jobs:
            for left in self.folder.glob(f".{part.key}.safetensors.*.tmp"):
                left.unlink(missing_ok=True)

    def _read(self, part: Part, warn: bool = False) -> PartFeatures | None:
        try:
            found = read_part(self._file(part), len(part))
        except FileNotFoundError:
            return None
        except ValueError as error:
            if warn:
                logger.warning("%s; it is encoded again", error)
            return None
        with suppress(OSError):  # a folder of others
            os.utime(self._file(part))  # when it was last used
        return found


def refuse_other_ranks(group: Group, about: Mapping[str, Any]) -> None:
    """Raise a ValueError, on every rank, unless all have the same."""
    told = group.each(lambda: dict(about))
    for rank, other in enumerate(told):
        for key in told[0]:
            if other.get(key) != told[0][key]:
                raise ValueError(
                    f"rank {rank} has {key} {other.get(key)!r}, but rank 0 has {told[0][key]!r}; all "
                    "processes must encode the same images with the same model"
                )


def _plan(images: ImageSet, about: Mapping[str, Any], part_size: int) -> list[Part]:
    """The parts of a set, the same however many processes there are."""
    parts = []
    for start in range(0, len(images), part_size):
        rows = range(start, min(start + part_size, len(images)))
        key = digest_of({**about, "images": images.images_digest(rows)}, _KEY)
        parts.append(Part(rows.start, rows.stop, key))
    return parts


def _joined(
    images: ImageSet,
    parts: Sequence[Part],
    loaded: Sequence[PartFeatures | None],
    skip_broken: bool,
    fresh: bool,
    about: Mapping[str, Any],
) -> ImageFeatures:
    whole = [part for part in loaded if part is not None]
    if len(whole) < len(parts):
        raise FileNotFoundError(f"{images.name}: features were removed meanwhile; run it again")
    broken = {p.start + at: why for p, made in zip(parts, whole) for at, why in made.broken.items()}
    if broken and not skip_broken:
        raise ValueError(broken_images(images, broken))
    if len(broken) == len(images):
        raise ValueError(f"{images.name}: every image is broken")
    if broken:
        logger.warning("%s. They are left out", listed_broken(images, broken))
    rows = torch.cat([made.kept + part.start for part, made in zip(parts, whole)])
    labels = torch.tensor(images.labels, dtype=torch.int64)[rows]
    # one part alone stays memory-mapped
    features = whole[0].features if len(whole) == 1 else torch.cat([part.features for part in whole])
    return ImageFeatures(
        features,
        labels if (labels != OOD_LABEL).any() else None,
        tuple(images.names[index] for index in rows.tolist()),
        {images.names[index]: error for index, error in broken.items()},
        fresh,
        about,
    )
