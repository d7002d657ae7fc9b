"""The images or features behind a set of a benchmark."""

from __future__ import annotations

import hashlib
import inspect
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaneg_openood.benchmark.definition import ImageSet
from adaneg_openood.data import ImageSource, image_source
from adaneg_openood.data.image_lists import class_folders, read_imglist
from adaneg_openood.text.classnames import ClassNames, classes_of_folders

_WORLD = "demo-world-1"  # the number goes up when the drawings change


@dataclass(frozen=True, eq=False)
class Images:
    """Images to encode.

    Attributes:
        source: what :func:`~adaneg_openood.data.encode_images` takes.
        base: folder of the image files, None if they lie in no files of their own.
        dataset: the dataset of a torchvision or Hugging Face set, otherwise None.
    """

    source: ImageSource
    base: Path | None = None
    dataset: Any = None

    @property
    def files(self) -> list[Path]:
        """The image files in order; empty for a dataset without files."""
        return [] if self.base is None else [self.base / name for name in self.source.names]


@dataclass(frozen=True, eq=False)
class Stored:
    """Features that exist already: (N, D) float, and (N,) int64 labels or None."""

    features: Tensor
    labels: Tensor | None
    file: Path


def open_set(item: ImageSet, cache_folder: Path) -> Images | Stored:
    """Open a set; images are listed, not decoded.

    Args:
        item: the set.
        cache_folder: where the drawn demo images are kept.

    Raises:
        FileNotFoundError: a list, folder or file is not there.
        ValueError, TypeError: it holds something else than it should.
        ImportError: the dataset's library is missing.
    """
    if item.kind == "features":
        return _stored(item)
    if item.kind in ("torchvision", "huggingface"):
        dataset = _torchvision(item) if item.kind == "torchvision" else _huggingface(item)
        labelled = None if item.labelled else False
        return Images(image_source(dataset, labelled=labelled, limit=item.limit), dataset=dataset)
    if item.kind == "demo":
        world = draw_world(cache_folder)
        place = world / "benchmark_imglist" / "demo" / f"test_{item.location}.txt"
        if not place.is_file():
            known = ", ".join(sorted(path.stem[5:] for path in place.parent.glob("test_*.txt")))
            raise ValueError(f"{item.title}: the demo draws no {item.location!r}; it draws {known}")
        root = world / "images"
    else:
        place = Path(item.location)
        root = place if item.kind == "folder" else (item.root or place.parent)
        exists = place.is_dir() if item.kind == "folder" else place.is_file()
        if not exists:
            what = "folder of images" if item.kind == "folder" else "imglist"
            raise FileNotFoundError(f"{item.title}: no such {what}: {place}")
    source = image_source(place, root=root, labelled=item.labelled, limit=item.limit)
    return Images(source, base=root)


def images_digest(images: Images) -> str:
    """SHA-256 that changes with the list, the labels or any image, 64 hex digits.

    Files count with their size and time of change; images of a dataset with their content.

    Raises:
        FileNotFoundError: an image file is missing.
    """
    digest = hashlib.sha256()
    source = images.source
    for label, name in zip(source.labels, source.names):
        digest.update(f"{label} {name}\n".encode("utf-8", "surrogateescape"))
    if images.base is not None:
        for file in images.files:
            found = os.stat(file)
            digest.update(f"{found.st_size} {found.st_mtime_ns}\n".encode())
        return digest.hexdigest()
    fingerprint = getattr(images.dataset, "_fingerprint", None)  # Hugging Face's own content hash
    if isinstance(fingerprint, str):
        digest.update(fingerprint.encode())
        return digest.hexdigest()
    whole = getattr(images.dataset, "data", None)  # torchvision's sets that live in memory
    if isinstance(whole, (np.ndarray, Tensor)) and len(whole) == len(images.dataset):
        digest.update(np.ascontiguousarray(whole).data)
        return digest.hexdigest()
    for index, name in enumerate(source.names):
        file = Path(name)
        if file.is_file():  # torchvision's sets of files give their paths as names
            found = os.stat(file)
            digest.update(f"{found.st_size} {found.st_mtime_ns}\n".encode())
            continue
        image = source.open(index)
        digest.update(f"{image.mode} {image.size}".encode())
        digest.update(image.tobytes())
    return digest.hexdigest()


def classes_of_imglist(path: str | os.PathLike[str]) -> ClassNames:  # until the views move
    """Class names from an OpenOOD imglist, whose images lie in one folder per class.

    Raises:
        ValueError: a label with several folders, labels that are not 0..C-1, or no folders.
    """
    folders: dict[int, str] = {}
    for image, label in read_imglist(path):
        folder = Path(image).parent.name
        if label >= 0 and folders.setdefault(label, folder) != folder:
            raise ValueError(
                f"{path}: label {label} has images in the folders {folders[label]!r} and "
                f"{folder!r}, so the folders are not its class's name; give a file of names"
            )
    return classes_of_folders(str(path), folders)


def class_names_of(item: ImageSet, opened: Images | Stored | None) -> tuple[str, ...] | None:
    """Class names that an ID set brings itself, or None."""
    if item.kind == "folder":
        return tuple(class_folders(item.location))
    if isinstance(opened, Images) and opened.dataset is not None:
        names = getattr(opened.dataset, "classes", None)
        features = getattr(opened.dataset, "features", None)
        if names is None and isinstance(features, dict):
            names = getattr(features.get("label"), "names", None)
        if names is not None:
            return tuple(str(name).replace("_", " ") for name in names)
    return None


def draw_world(cache_folder: Path) -> Path:
    """The demo's images, drawn once into the cache folder."""
    world = cache_folder / _WORLD
    if not (world / "benchmark_imglist").is_dir():
        from adaneg_openood.demo.world import write_benchmark

        cache_folder.mkdir(parents=True, exist_ok=True)
        temporary = cache_folder / f".{_WORLD}.{os.getpid()}-{os.urandom(4).hex()}.tmp"
        try:
            write_benchmark(temporary)
            try:
                os.replace(temporary, world)
            except OSError:  # another process was faster
                if not (world / "benchmark_imglist").is_dir():
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return world


def _stored(item: ImageSet) -> Stored:
    from adaneg_openood.data.feature_files import _read, _tensor

    file = Path(item.location)
    if not file.is_file():
        raise FileNotFoundError(f"{item.title}: no such feature file: {file}")
    if file.suffix not in (".npz", ".npy", ".safetensors"):
        raise ValueError(f"{file}: a feature file must be .npz, .npy or .safetensors")
    values = _read(file)
    features = values.get("features", values.get(""))
    if features is None:
        raise ValueError(f"{file}: needs the key features, found {', '.join(sorted(values))}")
    labels = values.get("labels")
    rows = slice(None, item.limit)
    return Stored(
        _tensor(f"{file} [features]", features)[rows],
        None if labels is None else _tensor(f"{file} [labels]", labels)[rows],
        file,
    )


def _torchvision(item: ImageSet) -> Any:
    from torchvision import datasets

    maker = getattr(datasets, item.location, None)
    if not inspect.isclass(maker):
        import difflib

        near = difflib.get_close_matches(item.location, datasets.__all__, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{item.title}: torchvision has no dataset {item.location!r}{hint}")
    arguments = dict(item.options)
    parameters = inspect.signature(maker).parameters
    if "root" in parameters:
        arguments.setdefault("root", str(item.root))
    wrong = [key for key in arguments if key not in parameters and "kwargs" not in parameters]
    if wrong:
        raise ValueError(
            f"{item.title}: torchvision's {item.location} takes no {', '.join(wrong)}; it takes "
            f"{', '.join(parameters)}"
        )
    try:
        return maker(**arguments)
    except RuntimeError as error:  # what torchvision says of files that are not there
        raise FileNotFoundError(
            f"{item.title}: torchvision's {item.location} in {item.root}: {error}"
        ) from error


def _huggingface(item: ImageSet) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"{item.title}: a Hugging Face dataset needs the package datasets: pip install datasets"
        ) from error
    arguments = dict(item.options)
    if arguments.get("trust_remote_code"):
        raise ValueError(
            f"{item.title}: trust_remote_code would run code that comes with the data; load such a data "
            "set yourself, save it with save_to_disk, and name that folder"
        )
    renamed = {arguments.pop(key, key): key for key in ("image", "label") if key in arguments}
    if Path(item.location).is_dir():
        split = arguments.pop("split", None)
        loaded = datasets.load_from_disk(item.location, **arguments)
        loaded = loaded if split is None else loaded[split]
    else:
        loaded = datasets.load_dataset(item.location, **arguments)
    if isinstance(loaded, dict):
        raise ValueError(
            f"{item.title}: {item.location} has several splits ({', '.join(loaded)}); name one "
            "in args: {split: ...}"
        )
    for column, name in renamed.items():
        if column != name:
            loaded = loaded.rename_column(column, name)
    return loaded


def labels_of(item: ImageSet, opened: Images | Stored, n_id: int) -> Tensor:
    """(N,) int64 ID labels of an ID or csid set.

    Raises:
        ValueError: it has none, or some outside [0, n_id).
    """
    if isinstance(opened, Stored):
        if opened.labels is None:
            raise ValueError(f"{opened.file}: needs the key labels, because ID images have classes")
        labels = opened.labels.long()
    else:
        labels = torch.tensor([int(label) for label in opened.source.labels], dtype=torch.int64)
    bad = ((labels < 0) | (labels >= n_id)).nonzero().squeeze(1).tolist()
    if bad:
        raise ValueError(
            f"{item.title}: {len(bad)} label(s) outside [0, {n_id}), for {n_id} classes; "
            f"the first is {int(labels[bad[0]])} of image {bad[0]}"
        )
    return labels
