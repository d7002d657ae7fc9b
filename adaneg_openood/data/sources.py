"""Images in one order, from folders, imglists and datasets."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaneg_openood.data.image_lists import (
    OOD_LABEL,
    class_folders,
    list_folder,
    read_imglist,
    refuse_outside,
)

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class ImageSource:
    """Images in one order, with a label and a name each.

    Attributes:
        name: where they come from, for provenance and messages.
        names: N image names.
        labels: N labels; -1 is OOD.
        open: index -> PIL image of any mode; runs in worker processes.
    """

    name: str
    names: Sequence[str]
    labels: Sequence[int]
    open: Callable[[int], Image]

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError(f"{self.name}: holds no image")
        if len(self.names) != len(self.labels):
            raise ValueError(f"{self.name}: {len(self.names)} names but {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.names)


def image_source(
    source: Any,
    *,
    root: str | os.PathLike[str] | None = None,
    labelled: bool | None = None,
    limit: int | None = None,
) -> ImageSource:
    """Images of a folder, an imglist or a dataset.

    Args:
        source: a folder; an OpenOOD imglist (``path label`` lines); or a map-style dataset of
            (PIL image, label), such as torchvision's and Hugging Face's.
        root: what an imglist's paths are relative to, and must stay inside of; None is the imglist's
            own folder.
        labelled: True takes a folder's first-level folders for its classes, in sorted order; False
            gives every image -1, for an OOD set; None gives -1 to a folder's images, and those of
            imglists and datasets the labels they bring.
        limit: take the first so many images; None takes all.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: no images, a bad line in the imglist, or a path that leads out of the root.
        TypeError: the dataset's items are not (PIL image, label).
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 or None, got {limit}")
    if not isinstance(source, (str, os.PathLike)):
        return _of_dataset(source, labelled, limit)
    path = Path(source)
    if path.is_dir():
        items = list_folder(path, class_folders(path) if labelled else None)
        base = path
    elif path.is_file():
        items = read_imglist(path)
        base = path.parent if root is None else Path(root)
        refuse_outside(path, base, items)
    else:
        raise FileNotFoundError(f"{path}: no such folder of images or imglist")
    items = items[:limit]
    names = [image for image, _ in items]
    labels = [OOD_LABEL if labelled is False else label for _, label in items]
    return ImageSource(str(path), names, labels, _FileOpener(base, names))


class _FileOpener:
    """A class, not a closure, so that spawned workers can receive it."""

    def __init__(self, base: Path, names: Sequence[str]) -> None:
        self.base = base
        self.names = names

    def __call__(self, index: int) -> Image:
        return load_image(self.base / self.names[index])


class _DatasetOpener:
    def __init__(self, dataset: Any, image_key: str | int) -> None:
        self.dataset = dataset
        self.image_key = image_key

    def __call__(self, index: int) -> Image:
        return to_eight_bit(self.dataset[index][self.image_key])


def _of_dataset(dataset: Any, labelled: bool | None, limit: int | None) -> ImageSource:
    from PIL import Image as images

    kind = type(dataset).__name__
    try:
        n = len(dataset)
        first = dataset[0] if n else None
    except (TypeError, KeyError) as error:
        raise TypeError(
            f"{kind}: must be a folder, an imglist, or a map-style dataset with len() and [index]"
        ) from error
    n = n if limit is None else min(n, limit)
    image_key: str | int = 0
    label_key: str | int = 1
    if isinstance(first, dict):  # Hugging Face datasets
        image_key = "image" if "image" in first else "img"
        label_key = "label" if "label" in first else "fine_label"
    if n and (first is None or not isinstance(first[image_key], images.Image)):  # type: ignore[index]
        raise TypeError(
            f"{kind}: its items must be (PIL image, label), with no transform set, because the "
            "model brings its own preprocessing"
        )
    # torchvision keeps labels as a list, so that they can be had without decoding every image
    labels = getattr(dataset, "targets", None)
    if labelled is False:
        labels = [OOD_LABEL] * n
    if labels is None:
        labels = getattr(dataset, "labels", None)
    if labels is None and isinstance(first, dict):
        labels = dataset[label_key]
    if labels is None:
        labels = [dataset[index][label_key] for index in range(n)]
    samples = getattr(dataset, "samples", None)
    names = [str(samples[i][0]) if samples else f"{kind}[{i}]" for i in range(n)]
    return ImageSource(
        kind, names, [int(labels[i]) for i in range(n)], _DatasetOpener(dataset, image_key)
    )


def load_image(path: str | os.PathLike[str]) -> Image:
    """Open and decode an image file.

    Raises:
        OSError, ValueError: it is missing, empty, damaged or no image.
    """
    from PIL import Image as images
    from PIL import ImageFile

    file = Path(path)
    if file.is_file() and file.stat().st_size == 0:
        raise ValueError("the file has 0 bytes")
    # OpenOOD makes Pillow fill truncated images with grey, for the whole process
    lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with images.open(file) as image:
            image.load()
            return to_eight_bit(image)
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def to_eight_bit(image: Image) -> Image:
    """An RGB image of the same look.

    Alpha is dropped, as OpenOOD does; palettes, grey and CMYK are converted. 16-bit grey, which
    X-ray images come in, is scaled down, because Pillow's own conversion clips it to white.
    """
    if image.mode.startswith("I"):
        import numpy as np
        from PIL import Image as images

        values = np.asarray(image).astype(np.int64)
        # 32-bit "I" is how Pillow opens some 16-bit files; 8-bit values in it stay as they are
        wide = image.mode.startswith("I;16") or values.max(initial=0) > 255
        image = images.fromarray((values >> 8 if wide else values).clip(0, 255).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")
