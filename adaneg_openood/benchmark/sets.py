"""The images or features behind a set of a benchmark."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

from torch import Tensor

from adaneg_openood.benchmark.definition import BenchmarkSet, SetDefinition
from adaneg_openood.benchmark.labels import drawn_world
from adaneg_openood.data import ImageSet
from adaneg_openood.data.class_matching import refuse_other_classes
from adaneg_openood.data.feature_files import read_feature_header, read_rows
from adaneg_openood.io.checks import hint, is_installed
from adaneg_openood.text import ClassNames


@dataclass(frozen=True, eq=False)
class StoredFeatures:
    """Features that exist already.

    Attributes:
        features: (N, D) float.
        labels: (N,) int64, or None.
        file: where they were read.
        header: what the file says of itself; empty where it says nothing.
    """

    features: Tensor
    labels: Tensor | None
    file: Path
    header: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.features)

    def id_labels(self, n_id: int) -> Tensor:
        """(N,) int64 labels of an ID set.

        Raises:
            ValueError: it has none, or some outside [0, n_id).
        """
        if self.labels is None:
            raise ValueError(f"{self.file}: needs the key labels, because ID images have classes")
        bad = ((self.labels < 0) | (self.labels >= n_id)).nonzero().squeeze(1).tolist()
        if bad:
            raise ValueError(
                f"{self.file}: {len(bad)} label(s) outside [0, {n_id}), for {n_id} classes; the first "
                f"is {int(self.labels[bad[0]])} of image {bad[0]}"
            )
        return self.labels


Opened = Union[ImageSet, StoredFeatures]


def open_set(part: BenchmarkSet, classes: ClassNames | None, cache: Path | None) -> Opened:
    """Open a set; images are listed, not decoded.

    Args:
        part: the set.
        classes: names of the labels, which folders and data sets are matched with.
        cache: where the demo's images are drawn; None is the user's.

    Raises:
        FileNotFoundError: a list, folder or file is not there.
        ValueError, TypeError: it holds something else than it should.
        ImportError: the data set's library is missing.
    """
    own = part.definition
    if own.features is not None:
        features, labels = read_rows(own.features)
        header = read_feature_header(own.features) if own.features.suffix == ".safetensors" else {}
        if part.labelled and labels is not None and classes is not None:
            refuse_other_classes(str(own.features), header, labels.tolist(), classes)
        rows = slice(None, own.limit)
        return StoredFeatures(
            features[rows], None if labels is None else labels[rows], own.features, header
        )
    options: dict[str, Any] = {"labelled": part.labelled, "limit": own.limit}
    if part.labelled:
        options["classes"] = classes
    if own.demo is not None:
        return drawn_world().image_set(own.demo, cache, **options)
    if own.torchvision is not None:
        return ImageSet.of(_torchvision(own), **options)
    if own.huggingface is not None:
        return ImageSet.of(_huggingface(own), **options)
    if own.folder is not None and not own.folder.is_dir():
        raise FileNotFoundError(f"no such folder of images: {own.folder}")
    if own.imglist is not None and not own.imglist.is_file():
        raise FileNotFoundError(f"no such imglist: {own.imglist}")
    return ImageSet.of(own.folder or own.imglist, root=own.root, **options)


def fetched_later(own: SetDefinition) -> str:
    """Why looking at a set now would fetch it; empty if it would not."""
    if own.torchvision is not None and own.args.get("download"):
        return f"torchvision fetches {own.torchvision} unless it is in {own.root}"
    if own.huggingface is not None and not Path(own.huggingface).is_dir() and is_installed("datasets"):
        return f"{own.huggingface}, fetched from the Hugging Face hub unless it is cached"
    return ""


def _torchvision(own: SetDefinition) -> Any:
    from torchvision import datasets

    name = str(own.torchvision)
    maker = getattr(datasets, name, None)
    if not inspect.isclass(maker):
        raise ValueError(f"torchvision has no dataset {name!r}{hint(name, datasets.__all__)}")
    arguments = dict(own.args)
    parameters = inspect.signature(maker).parameters
    if "root" in parameters:
        arguments.setdefault("root", str(own.root))
    wrong = [key for key in arguments if key not in parameters and "kwargs" not in parameters]
    if wrong:
        raise ValueError(
            f"torchvision's {name} takes no {', '.join(wrong)}; it takes {', '.join(parameters)}"
        )
    try:
        return maker(**arguments)
    except RuntimeError as error:  # what torchvision says of files that are not there
        raise FileNotFoundError(f"torchvision's {name} in {own.root}: {error}") from error


def _huggingface(own: SetDefinition) -> Any:
    name, arguments = str(own.huggingface), dict(own.args)
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "a Hugging Face data set needs the package datasets: pip install datasets"
        ) from error
    if arguments.get("trust_remote_code"):
        raise ValueError(
            "trust_remote_code would run code that comes with the data; load such a data set yourself, "
            "save it with save_to_disk, and name that folder"
        )
    renamed = {arguments.pop(key, key): key for key in ("image", "label") if key in arguments}
    if Path(name).is_dir():
        split = arguments.pop("split", None)
        loaded = datasets.load_from_disk(name, **arguments)
        loaded = loaded if split is None else loaded[split]
    else:
        loaded = datasets.load_dataset(name, **arguments)
    if isinstance(loaded, dict):
        raise ValueError(
            f"{name} has several splits ({', '.join(loaded)}); name one in args: {{split: ...}}"
        )
    for column, key in renamed.items():
        if column != key:
            loaded = loaded.rename_column(column, key)
    return loaded
