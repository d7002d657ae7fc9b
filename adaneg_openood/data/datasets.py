"""Map-style datasets of (PIL image, label), such as torchvision's and Hugging Face's."""

from __future__ import annotations

import hashlib
import operator
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Callable

import numpy as np
from torch import Tensor

from adaneg_openood.data.image_files import OOD_LABEL, to_eight_bit

if TYPE_CHECKING:
    from PIL.Image import Image


def opened_dataset(
    dataset: Any, limit: int | None, exif: bool
) -> tuple[list[str], tuple[str, ...] | str, Callable[[int], Image]]:
    """Image names, the names of its classes or why there are none, and index -> image.

    Raises:
        TypeError: it cannot be indexed, or its items are no images.
    """
    from PIL import Image as images

    kind = type(dataset).__name__
    try:
        n = len(dataset)
        first = dataset[0] if n else None
    except (TypeError, KeyError) as error:
        raise TypeError(
            f"{kind}: must be a folder, an imglist, or a map-style dataset with len() and [index]"
        ) from error
    key: str | int = 0
    if isinstance(first, dict):  # Hugging Face datasets
        key = "image" if "image" in first else "img"
    if n and (first is None or not isinstance(first[key], images.Image)):
        raise TypeError(
            f"{kind}: its items must be (PIL image, label), with no transform set, because the "
            "model brings its own preprocessing"
        )
    n = n if limit is None else min(n, limit)
    samples = getattr(dataset, "samples", None)
    names = [os.path.abspath(samples[i][0]) if samples else f"{kind}[{i}]" for i in range(n)]
    return names, _class_names(dataset), _DatasetOpener(dataset, key, exif)


class _DatasetOpener:
    """A class, not a closure, so that spawned workers can receive it."""

    def __init__(self, dataset: Any, key: str | int, exif: bool) -> None:
        self.dataset, self.key, self.exif = dataset, key, exif

    def __call__(self, index: int) -> Image:
        return to_eight_bit(self.dataset[index][self.key], self.exif)


def dataset_labels(dataset: Any, n: int) -> list[int]:
    """The labels of the first n images; -1 is OOD.

    Raises:
        ValueError: one is no whole number, or below -1.
    """
    labels = _held_labels(dataset, n)
    found = []
    for index in range(n):
        try:
            found.append(operator.index(labels[index]))
        except TypeError:
            found.append(OOD_LABEL - 1)
        if found[-1] < OOD_LABEL:
            raise ValueError(
                f"{type(dataset).__name__}: the label of image {index} must be a whole number of 0 or "
                f"more, or -1 for OOD, got {labels[index]!r}"
            )
    return found


def _held_labels(dataset: Any, n: int) -> Sequence[Any]:
    # torchvision keeps labels as a list, so that they can be had without decoding every image
    for name in ("targets", "labels"):
        if getattr(dataset, name, None) is not None:
            return getattr(dataset, name)  # type: ignore[no-any-return]
    first = dataset[0] if n else None
    if isinstance(first, dict):
        return dataset["label" if "label" in first else "fine_label"]  # type: ignore[no-any-return]
    return [dataset[index][1] for index in range(n)]


def _class_names(dataset: Any) -> tuple[str, ...] | str:
    names = getattr(dataset, "classes", None)
    features = getattr(dataset, "features", None)
    if names is None and isinstance(features, dict):
        names = getattr(features.get("label", features.get("fine_label")), "names", None)
    if names is None:
        return "its data set names no classes"
    # torchvision's ImageNet has a tuple of synonyms for each
    return tuple(name if isinstance(name, str) else ", ".join(map(str, name)) for name in names)


def dataset_content(dataset: Any, rows: range) -> bytes | None:
    """What stands for some of the images, where that is cheaper than to decode them."""
    fingerprint = getattr(dataset, "_fingerprint", None)  # Hugging Face's own content hash
    if isinstance(fingerprint, str):
        return fingerprint.encode()
    whole = getattr(dataset, "data", None)  # torchvision's sets that live in memory
    if isinstance(whole, (np.ndarray, Tensor)) and len(whole) == len(dataset):
        part = np.ascontiguousarray(whole[rows.start : rows.stop])
        return hashlib.sha256(part.tobytes()).digest()
    return None
