"""Image sets of OpenOOD's loaders: checked before the first image, each image encoded once."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from adaneg_openood.data import ImageSet
from adaneg_openood.data.image_lists import parse_entries
from adaneg_openood.openood.benchmark_files import WHERE_TO_GET

logger = logging.getLogger(__name__)

_NAMED = 8  # files an error lists for one image set


@dataclass(frozen=True, eq=False)
class EncodedSet:
    """Features of one image set, in the order of its list.

    Attributes:
        name: for messages.
        features: (N, D), where they are scored.
        labels: (N,) int64, -1 for OOD.
        skipped: images that could not be read and were left out, by path.
    """

    name: str
    features: Tensor
    labels: np.ndarray
    skipped: tuple[str, ...] = ()


class ImageList(Dataset[Any]):
    """The images of OpenOOD's ``ImglistDataset``, read as this package reads all images.

    OpenOOD's own reading transforms every image twice (``data_aux``), cuts names at their first space,
    fills what is missing of a truncated image with grey and says nothing of the file when an image is
    broken. An item is (index, tensor, error): one of the last two is None.
    """

    def __init__(self, dataset: Any) -> None:
        self.transform = dataset.transform_image
        self.preprocessor = getattr(dataset, "preprocessor", None)
        self.name, self.images = str(dataset.name), images_of(dataset)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, Tensor | None, str | None]:
        path = os.path.join(self.images.base or "", self.images.names[index])
        try:
            prepare = getattr(self.preprocessor, "setup", None)
            if prepare is not None:
                label = str(self.images.labels[index])
                prepare(name=self.name, path=path, tokens=[path, label])
            return index, self.transform(self.images.open(index)), None
        except Exception as error:  # a broken file may raise anything
            return index, None, f"{path} ({type(error).__name__}: {error})"


def images_of(dataset: Any) -> ImageSet:
    """The images of an ``ImglistDataset``.

    Raises:
        ValueError: no image, a line without a label, or a path that leaves the data set's folder.
    """
    where = f"the image list of {dataset.name}"
    entries = parse_entries(dataset.imglist[: len(dataset)], where)
    return ImageSet.from_entries(where, entries, dataset.data_dir)


def is_image_list(dataset: Any) -> bool:
    """Whether :class:`ImageList` can stand in for a dataset."""
    from openood.datasets.imglist_dataset import ImglistDataset

    return type(dataset) is ImglistDataset and not dataset.dummy_read and dataset.dummy_size is None


def check_files(loaders: Iterable[tuple[str, Any]], *, skip_broken: bool) -> None:
    """Look for every image of every set before the first one is encoded.

    Args:
        loaders: (name, loader) pairs; those that are no image lists are not looked at.
        skip_broken: missing and empty files are only warned of.

    Raises:
        FileNotFoundError: one error for all sets, which lists what is missing and where to get it.
        ValueError: a list without images.
    """
    problems = []
    for name, loader in loaders:
        if not is_image_list(loader.dataset):
            continue
        images = images_of(loader.dataset)
        bad = images.missing()
        if bad:
            listed = "".join(f"\n    {path} ({why})" for path, why in bad[:_NAMED])
            more = f"\n    ... and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
            problems.append(f"  {name}: {len(bad)} of {len(images)} images{listed}{more}")
    if problems:
        report = "images are missing or empty:\n" + "\n".join(problems)
        if not skip_broken:
            raise FileNotFoundError(
                f"{report}\nGet them from {WHERE_TO_GET}; or set skip_broken: True to leave them out."
            )
        logger.warning("%s\nThey are left out (skip_broken).", report)


@torch.no_grad()
def encode(
    loader: Any,
    name: str,
    encode_image: Callable[[Tensor], Tensor],
    device: torch.device,
    *,
    keep_on: torch.device | None = None,
    skip_broken: bool = False,
    progress: bool = True,
) -> EncodedSet:
    """Encode a loader's images, each once.

    Args:
        loader: OpenOOD's; its batch size and workers are used. Where its batches carry ``index``, the
            result is in the order of the list even if the loader shuffles.
        name: of the set, for messages.
        encode_image: (B, 3, H, W) -> (B, D).
        device: where pixels are moved to.
        keep_on: where features are kept; None leaves them where they are made.
        skip_broken: leave out images that cannot be read.
        progress: show a bar on stderr.

    Raises:
        ValueError: an image cannot be read (it is named), no image is left, or features that are not
            one row an image.
    """
    from tqdm.auto import tqdm

    source = ImageList(loader.dataset) if is_image_list(loader.dataset) else None
    if source is None:
        batches: Iterable[Any] = loader
    else:
        size = loader.batch_size or 256
        batches = DataLoader(
            source,
            batch_size=size,
            # no more workers than there are batches: each takes a moment to start
            num_workers=min(loader.num_workers, -(-len(source) // size)),
            collate_fn=_collate,
            pin_memory=bool(getattr(loader, "pin_memory", False)),
        )
    features, labels, indices, skipped = [], [], [], []
    for batch in tqdm(batches, desc=name, disable=not progress, leave=False):
        if source is None:
            pixels, label = batch["data"], torch.as_tensor(batch["label"])
            index = batch.get("index")
        else:
            pixels, index, errors = batch
            if errors and not skip_broken:
                raise ValueError(_broken(name, errors))
            skipped += errors
            if pixels is None:
                continue
            label = torch.tensor(source.images.labels)[index]
        encoded = encode_image(pixels.to(device))
        if encoded.ndim != 2 or len(encoded) != len(pixels):
            raise ValueError(
                f"{name}: the network gave features of shape {tuple(encoded.shape)} for {len(pixels)} "
                "images; one row an image is needed"
            )
        features.append(encoded.detach() if keep_on is None else encoded.detach().to(keep_on))
        labels.append(label.cpu().long())
        if index is not None:
            indices.append(torch.as_tensor(index).cpu().long())
    if not features:
        raise ValueError(f"{name}: no image could be read" if skipped else f"{name}: no image")
    if skipped:
        logger.warning("%s: %d image(s) left out: %s", name, len(skipped), _listed(skipped))
    return _in_list_order(name, torch.cat(features), torch.cat(labels), indices, tuple(skipped))


def _collate(
    items: Sequence[tuple[int, Tensor | None, str | None]],
) -> tuple[Tensor | None, Tensor, list[str]]:
    """-> pixels (None if no image could be read), (B,) list positions, errors."""
    good = [(index, pixels) for index, pixels, _ in items if pixels is not None]
    errors = [error for _, _, error in items if error is not None]
    index = torch.tensor([index for index, _ in good], dtype=torch.long)
    return (torch.stack([pixels for _, pixels in good]) if good else None), index, errors


def _in_list_order(
    name: str, features: Tensor, labels: Tensor, indices: list[Tensor], skipped: tuple[str, ...]
) -> EncodedSet:
    if indices and sum(map(len, indices)) == len(features):
        index = torch.cat(indices)
        if len(index.unique()) == len(index):  # a sampler with repetition keeps its own order
            order = torch.argsort(index)
            if not torch.equal(order, torch.arange(len(order))):
                features, labels = features[order.to(features.device)], labels[order]
    return EncodedSet(name, features, labels.numpy().astype(np.int64), skipped)


def _broken(name: str, errors: Sequence[str]) -> str:
    return (
        f"{name}: {len(errors)} image(s) cannot be read: {_listed(errors)}. Replace them, or set "
        "skip_broken: True in the YAML to leave them out."
    )


def _listed(values: Sequence[str]) -> str:
    return "; ".join(values[:_NAMED]) + ("; ..." if len(values) > _NAMED else "")


def content_key(loader: Any) -> Any:
    """Equal for loaders of the same images, labels and transform; None where that is not known."""
    dataset = loader.dataset
    if not is_image_list(dataset):
        return None
    return images_of(dataset).digest(), _transform_key(dataset.transform_image)


def _transform_key(value: Any) -> Any:
    """Equal for transforms of one kind with the same settings; anything unknown counts by identity."""
    if isinstance(value, (list, tuple)):
        return tuple(_transform_key(item) for item in value)
    if type(value).__module__.startswith("openood.") and hasattr(value, "__dict__"):
        settings = sorted(vars(value).items())
        return type(value).__qualname__, tuple((name, _transform_key(item)) for name, item in settings)
    if isinstance(getattr(value, "key", None), str):  # ModelTransform
        return value.key
    if hasattr(value, "transforms"):
        return type(value).__qualname__, _transform_key(value.transforms)
    text = repr(value)
    return id(value) if " at 0x" in text else text
