"""OpenOOD's data loaders: what each is for, and the features of its images."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from adaneg_openood.data import FeatureStore, ImageSet
from adaneg_openood.data.feature_set import DEFAULT_LOGIT_SCALE, FeatureSet
from adaneg_openood.data.image_files import OOD_LABEL, parse_entries
from adaneg_openood.io.digests import tensor_digest
from adaneg_openood.io.files import cache_folder
from adaneg_openood.openood.benchmark_files import WHERE_TO_GET
from adaneg_openood.openood.network_model import NetworkModel
from adaneg_openood.openood.stream_arrays import IDSet
from adaneg_openood.text import LabelFeatures

logger = logging.getLogger(__name__)

TEST, VAL = "test", "val"
_NAMED = 8  # files an error lists for one image set


@dataclass(frozen=True, eq=False)
class Role:
    """What a loader was handed to ``setup`` for."""

    kind: str  # "id", "csid" or "ood"
    split: str  # "test" or "val"; an OOD set is evaluated against the ID set of its split
    name: str
    loader: Any  # kept alive, because it is told apart from others by identity


class Roles:
    """The roles of all loaders known so far.

    Args:
        id_loaders: OpenOOD's ``{"train", "val", "test": loader}``.
        ood_loaders: ``{"val": loader, "near"/"nearood": {name: loader}, ...}``; the classic pipeline's
            also hold ``"csid"``.
    """

    def __init__(self, id_loaders: Mapping[str, Any] | None, ood_loaders: Mapping[str, Any] | None):
        self._by_loader: dict[int, Role] = {}
        for split in (TEST, VAL):
            if id_loaders and id_loaders.get(split) is not None:
                self._add("id", split, f"id {split}", id_loaders[split])
        for split, loaders in (ood_loaders or {}).items():
            if isinstance(loaders, Mapping):
                for name, loader in loaders.items():
                    self._add("csid" if split == "csid" else "ood", TEST, str(name), loader)
            elif loaders is not None:
                self._add("ood", VAL if split == VAL else TEST, f"ood {split}", loaders)

    def _add(self, kind: str, split: str, name: str, loader: Any) -> Role:
        # the first role stays if one loader has several: an ID loader is never taken for an OOD one
        return self._by_loader.setdefault(id(loader), Role(kind, split, name, loader))

    def __iter__(self) -> Iterator[Role]:
        return iter(self._by_loader.values())

    def of(self, loader: Any) -> Role:
        """The role of a loader; one that ``setup`` did not get is a covariate-shifted ID set, or, if all
        its labels are -1, an OOD set."""
        known = self._by_loader.get(id(loader))
        if known is not None:
            return known
        images = image_set(loader)
        is_ood = images is not None and all(label == OOD_LABEL for label in images.labels)
        kind = "ood" if is_ood else "csid"
        name = str(getattr(loader.dataset, "name", "")) or f"{kind} {len(self._by_loader)}"
        return self._add(kind, TEST, name, loader)

    def id_role(self, split: str) -> Role:
        """The ID set of a split; a ValueError if ``setup`` got none."""
        for role in self:
            if role.kind == "id" and role.split == split:
                return role
        raise ValueError(
            f"setup got no ID loader called {split!r}: there is nothing to evaluate OOD images against"
        )


def image_set(loader: Any) -> ImageSet | None:
    """The images of OpenOOD's ``ImglistDataset`` behind a loader; None for any other dataset.

    Raises:
        ValueError: a bad line, a path that leaves the dataset's folder, or no image.
    """
    from openood.datasets.imglist_dataset import ImglistDataset

    dataset = loader.dataset
    if type(dataset) is not ImglistDataset or dataset.dummy_read or dataset.dummy_size is not None:
        return None
    entries = parse_entries(dataset.imglist[: len(dataset)], f"the image list of {dataset.name}")
    return ImageSet.from_entries(str(dataset.name), entries, dataset.data_dir or ".")


def refuse_missing_images(roles: Iterable[Role], *, skip_broken: bool) -> None:
    """Look for every image of every image list before the first one is encoded.

    Raises:
        FileNotFoundError: one error for all sets, which lists what is missing and where to get it; with
            ``skip_broken`` it is a warning.
        ValueError: see :func:`image_set`.
    """
    problems = []
    for role in roles:
        images = image_set(role.loader)
        bad = [] if images is None else images.missing()
        if images is not None and bad:
            told = [f"{path} ({why})" for path, why in bad[:_NAMED]]
            told += [f"... and {len(bad) - _NAMED} more"] if len(bad) > _NAMED else []
            head = f"  {role.name}: {len(bad)} of {len(images)} images"
            problems.append("\n    ".join([head, *told]))
    if problems:
        report = "images are missing or empty:\n" + "\n".join(problems)
        if not skip_broken:
            raise FileNotFoundError(
                f"{report}\nGet them from {WHERE_TO_GET}; or set skip_broken: True to leave them out."
            )
        logger.warning("%s\nThey are left out (skip_broken).", report)


@dataclass(frozen=True, eq=False)
class Encoded:
    """Features of one loader's images, in the order of its list.

    Attributes:
        features: (N, D) float32, where they are scored.
        labels: (N,) int64, -1 for OOD.
    """

    name: str
    features: Tensor
    labels: np.ndarray

    @cached_property
    def id_set(self) -> IDSet:
        """What stands for it in streams."""
        return IDSet(self.name, len(self.labels), tensor_digest(self.features))


def feature_set(
    labels: LabelFeatures,
    ids: Sequence[Encoded],
    near: Mapping[str, Encoded] = MappingProxyType({}),
    far: Mapping[str, Encoded] = MappingProxyType({}),
) -> FeatureSet:
    """Text rows, the ID sets one after the other, and the OOD sets."""
    return FeatureSet(
        text_features=labels.features,
        n_id=labels.n_id,
        id_features=torch.cat([part.features for part in ids]),
        id_labels=torch.from_numpy(np.concatenate([part.labels for part in ids])),
        near={name: part.features for name, part in near.items()},
        far={name: part.features for name, part in far.items()},
        logit_scale=float(labels.logit_scale or DEFAULT_LOGIT_SCALE),
    )


class Encoder:
    """Encodes the images of loaders, each image once.

    Args:
        model: of the network.
        cache: folder in which features are kept; None is the user's.
        skip_broken: leave out images that cannot be read.
    """

    def __init__(
        self, model: NetworkModel, cache: Path | None = None, skip_broken: bool = False
    ) -> None:
        self.model, self.skip_broken = model, skip_broken
        self.store = FeatureStore(cache_folder("features", cache))
        self._by_loader: dict[int, tuple[Any, Encoded]] = {}  # the loader is kept, for its id
        self._by_content: dict[Any, Encoded] = {}

    def encode(self, loader: Any, name: str, progress: bool = True) -> Encoded:
        """The features of a loader's images, encoded the first time only.

        Raises:
            ValueError: images that cannot be read.
        """
        if isinstance(loader, FeatureLoader):
            return loader.encoded()
        if id(loader) not in self._by_loader:
            images = image_set(loader)
            made = (
                self._batches(loader, name) if images is None else self._images(loader, images, progress)
            )
            self._by_loader[id(loader)] = loader, Encoded(name, made.features, made.labels)
        return self._by_loader[id(loader)][1]

    def _images(self, loader: Any, images: ImageSet, progress: bool) -> Encoded:
        model = self.model.seen_through(loader.dataset.transform_image)
        content = images.digest(), model.describe().get("preprocessing", id(model.transform))
        if content not in self._by_content:
            found = self.store.get(
                images,
                model,
                batch_size=loader.batch_size or 256,
                workers=loader.num_workers,
                skip_broken=self.skip_broken,
                progress=progress,
            )
            none = np.full(len(found.features), OOD_LABEL, dtype=np.int64)
            labels = none if found.labels is None else found.labels.numpy()
            features = found.features.to(self.model.device)
            self._by_content[content] = Encoded(images.name, features, labels)
        return self._by_content[content]

    def _batches(self, loader: Any, name: str) -> Encoded:
        """Of a dataset that is no image list: what its loader gives."""
        features, labels = [], []
        for batch in loader:
            features.append(self.model.encode_image(batch["data"]))
            labels.append(torch.as_tensor(batch["label"]).cpu().long())
        if not features:
            raise ValueError(f"{name}: no image")
        return Encoded(name, torch.cat(features), torch.cat(labels).numpy())


class FeatureLoader:
    """Stands in for a loader: its batches hold features instead of pixels, encoded when first read."""

    def __init__(self, loader: Any, encoder: Encoder) -> None:
        self.dataset, self.batch_size = loader.dataset, loader.batch_size or 256
        self._loader, self._encoder = loader, encoder

    def encoded(self) -> Encoded:
        """All features."""
        return self._encoder.encode(self._loader, str(self.dataset.name))

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        found = self.encoded()
        labels = torch.from_numpy(found.labels)
        batches: Any = [
            {"data": found.features[rows], "label": labels[rows], "index": rows}
            for rows in torch.arange(len(labels)).split(self.batch_size)
        ]
        return iter(DataLoader(batches, batch_size=None))  # some methods ask an iterator for its length


def feature_loaders(loaders: Any, encoder: Encoder) -> Any:
    """OpenOOD's nested loaders, each as a :class:`FeatureLoader`."""
    if isinstance(loaders, Mapping):
        return {name: feature_loaders(part, encoder) for name, part in loaders.items()}
    return FeatureLoader(loaders, encoder)
