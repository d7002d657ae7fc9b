"""The image lists and folders of OpenOOD's benchmarks: which are read, and which are not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch.utils.data import Dataset

WHERE_TO_GET = (
    "OpenOOD's data: https://github.com/Jingkang50/OpenOOD#data, "
    "or bash scripts/download/download.sh in its checkout"
)


def image_lists(id_name: str) -> Iterator[tuple[str, dict[str, str]]]:
    """(name, entry of OpenOOD's ``DATA_INFO``) of every image list of a benchmark."""
    from openood.evaluation_api.datasets import DATA_INFO

    if id_name not in DATA_INFO:
        raise ValueError(f"id_name must be one of {', '.join(DATA_INFO)}, got {id_name!r}")
    info: dict[str, Any] = DATA_INFO[id_name]
    for split, entry in info["id"].items():
        yield f"id {split}", entry
    for name in info["csid"]["datasets"]:
        yield f"csid {name}", info["csid"][name]
    yield "ood val", info["ood"]["val"]
    for split in ("near", "far"):
        for name in info["ood"][split]["datasets"]:
            yield f"{split} {name}", info["ood"][split][name]


def is_always_read(name: str) -> bool:
    """Whether every evaluation reads the list that :func:`image_lists` calls ``name``.

    Training and validation lists are for methods that fit or search, covariate-shifted ones for
    full-spectrum evaluation.
    """
    return name == "id test" or name.startswith(("near ", "far "))


def missing_files(data_root: str | os.PathLike[str], id_name: str) -> list[str]:
    """One line for every list that is always read and not there, and for every empty image folder."""
    from openood.evaluation_api.datasets import benchmarks_dict, dir_dict

    root = Path(data_root)
    missing = [
        f"image list of {name}: {root / entry['imglist_path']}"
        for name, entry in image_lists(id_name)
        if is_always_read(name) and not (root / entry["imglist_path"]).is_file()
    ]
    for dataset in benchmarks_dict[id_name]:
        folder = root / next(key for key, members in dir_dict.items() if dataset in members) / dataset
        if not folder.is_dir() or not any(folder.iterdir()):
            missing.append(f"images of {dataset}: {folder}")
    return missing


def refuse_missing(data_root: str | os.PathLike[str], id_name: str) -> None:
    """Raise one error that lists everything :func:`missing_files` finds, and where to get it.

    Raises:
        FileNotFoundError: something is missing.
        ValueError: no such benchmark.
    """
    missing = missing_files(data_root, id_name)
    if missing:
        listed = "".join(f"\n  {line}" for line in missing)
        raise FileNotFoundError(
            f"the {id_name} benchmark is not complete under {data_root}:{listed}\n"
            f"Get it from {WHERE_TO_GET}"
        )


class AbsentList(Dataset[Any]):
    """Stands in for an image list that is not there; reading it says so."""

    def __init__(self, path: str, name: str) -> None:
        self.path, self.name = path, name

    def __len__(self) -> int:
        return 1  # which data loaders want to know when they are made

    def __getitem__(self, index: int) -> Any:
        raise FileNotFoundError(
            f"{self.name}: this method reads the image list {self.path}, which is not there. Get it "
            f"from {WHERE_TO_GET}"
        )


@contextmanager
def absent_lists_may_stay_away(
    datasets: ModuleType, id_name: str, data_root: str | os.PathLike[str]
) -> Iterator[None]:
    """Within the block, OpenOOD's loaders are made without the lists that need not be read.

    OpenOOD opens every list of a benchmark before it knows which are read. ``datasets`` is its module
    ``openood.evaluation_api.datasets``.
    """
    needed = {
        os.path.join(data_root, entry["imglist_path"])
        for name, entry in image_lists(id_name)
        if is_always_read(name)
    }
    open_list = datasets.ImglistDataset

    def dataset(*, name: str, imglist_pth: str, **kwargs: Any) -> Any:
        if imglist_pth not in needed and not os.path.isfile(imglist_pth):
            return AbsentList(imglist_pth, name)
        return open_list(name=name, imglist_pth=imglist_pth, **kwargs)

    datasets.ImglistDataset = dataset  # type: ignore[attr-defined]
    try:
        yield
    finally:
        datasets.ImglistDataset = open_list  # type: ignore[attr-defined]
