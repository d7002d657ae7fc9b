"""The images or features behind a set of a benchmark."""

from __future__ import annotations

import inspect
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaneg_openood.benchmark.definition import ImageSet as SetDefinition
from adaneg_openood.data import ImageSet
from adaneg_openood.text.classnames import ClassNames

_WORLD = "demo-world-1"  # the number goes up when the drawings change


@dataclass(frozen=True, eq=False)
class Stored:
    """Features that exist already: (N, D) float, and (N,) int64 labels or None."""

    features: Tensor
    labels: Tensor | None
    file: Path


def open_set(
    item: SetDefinition, cache_folder: Path, classes: ClassNames | None = None
) -> ImageSet | Stored:
    """Open a set; images are listed, not decoded.

    Args:
        item: the set.
        cache_folder: where the drawn demo images are kept.
        classes: names of the labels, which folders and datasets are matched with.

    Raises:
        FileNotFoundError: a list, folder or file is not there.
        ValueError, TypeError: it holds something else than it should.
        ImportError: the dataset's library is missing.
    """
    if item.kind == "features":
        return _stored(item)
    root: Path | None = None
    place: Any = Path(item.location)
    if item.kind in ("torchvision", "huggingface"):
        place = _torchvision(item) if item.kind == "torchvision" else _huggingface(item)
    elif item.kind == "demo":
        world = draw_world(cache_folder)
        place = world / "benchmark_imglist" / "demo" / f"test_{item.location}.txt"
        if not place.is_file():
            known = ", ".join(sorted(path.stem[5:] for path in place.parent.glob("test_*.txt")))
            raise ValueError(f"{item.title}: the demo draws no {item.location!r}; it draws {known}")
        root = world / "images"
    else:
        root = item.root
        exists = place.is_dir() if item.kind == "folder" else place.is_file()
        if not exists:
            what = "folder of images" if item.kind == "folder" else "imglist"
            raise FileNotFoundError(f"{item.title}: no such {what}: {place}")
    return ImageSet.of(
        place,
        root=root,
        labelled=item.labelled,
        limit=item.limit,
        classes=classes if item.labelled else None,
    )


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


def _stored(item: SetDefinition) -> Stored:
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


def _torchvision(item: SetDefinition) -> Any:
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


def _huggingface(item: SetDefinition) -> Any:
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


def labels_of(item: SetDefinition, opened: ImageSet | Stored, n_id: int) -> Tensor:
    """(N,) int64 ID labels of an ID or csid set.

    Raises:
        ValueError: it has none, or some outside [0, n_id).
    """
    if isinstance(opened, ImageSet):
        opened.check_labels(n_id)
        return torch.tensor(opened.labels, dtype=torch.int64)
    if opened.labels is None:
        raise ValueError(f"{opened.file}: needs the key labels, because ID images have classes")
    labels = opened.labels.long()
    bad = ((labels < 0) | (labels >= n_id)).nonzero().squeeze(1).tolist()
    if bad:
        raise ValueError(
            f"{item.title}: {len(bad)} label(s) outside [0, {n_id}), for {n_id} classes; "
            f"the first is {int(labels[bad[0]])} of image {bad[0]}"
        )
    return labels
