"""Features of a run of images in a file of their own, so that an interruption costs little."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from adaneg_openood.io.digests import tensor_digest
from adaneg_openood.io.files import atomic_path

_HEADER = "adaneg_part"
_DAMAGES = (KeyError, TypeError, AttributeError, ValueError, RecursionError)  # of metadata


@dataclass(frozen=True)
class Part:
    """A run of images that is encoded at a time.

    Attributes:
        start, stop: indices of its images.
        key: what its features are found by.
    """

    start: int
    stop: int
    key: str

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, eq=False)
class PartFeatures:
    """What is known of a part's images.

    Attributes:
        features: (n, D) float32.
        kept: (n,) int64 places of the images in the part, rising.
        broken: place -> error of the images that cannot be read.
    """

    features: Tensor
    kept: Tensor
    broken: Mapping[int, str]


def write_part(file: Path, part: PartFeatures, about: Mapping[str, Any]) -> None:
    """Write a part's file.

    Args:
        file: ``<key>.safetensors``.
        part: its content.
        about: what it was made of, JSON values.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors.torch import save_file

    broken = {str(place): error for place, error in part.broken.items()}
    told = json.dumps({**about, "key": file.stem, "broken": broken})
    tensors = {"features": part.features.contiguous(), "kept": part.kept}
    with atomic_path(file) as temporary:
        # one entry, because safetensors writes several in any order
        save_file(tensors, temporary, {_HEADER: f"{_digest(told, part)} {told}"})


def read_part(file: Path, n_images: int | None = None) -> PartFeatures:
    """What a part holds, checked.

    Args:
        file: what :func:`write_part` wrote.
        n_images: how many images it is of; None takes any number.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: damaged, or of other images; the message names the file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            digest, told = _header(opened.metadata())
            about = json.loads(told)
            broken = {int(place): str(error) for place, error in about["broken"].items()}
            part = PartFeatures(opened.get_tensor("features"), opened.get_tensor("kept"), broken)
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, *_DAMAGES) as error:
        raise ValueError(f"{file}: damaged, {error}") from error
    if _digest(told, part) != digest:
        raise ValueError(f"{file}: damaged, it does not have its checksum")
    if about["key"] != file.stem or n_images not in (None, len(part.kept) + len(broken)):
        raise ValueError(f"{file}: damaged, it is of other images than its name says")
    return part


def read_about(file: Path) -> dict[str, Any]:
    """What a part says of itself; its features are not read.

    Raises:
        ValueError: damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            about = json.loads(_header(opened.metadata())[1])
        return {**about, "set": str(about["set"]), "images": int(about["images"])}
    except (SafetensorError, OSError, *_DAMAGES) as error:
        raise ValueError(f"{file}: damaged, {error}") from error


def _header(metadata: dict[str, str] | None) -> tuple[str, str]:
    """Checksum, and what it is of besides the tensors."""
    digest, _, told = (metadata or {})[_HEADER].partition(" ")
    return digest, told


def _digest(told: str, part: PartFeatures) -> str:
    text = f"{told}{tensor_digest(part.features)}{tensor_digest(part.kept)}"
    return hashlib.sha256(text.encode()).hexdigest()
