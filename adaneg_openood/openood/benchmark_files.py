"""Which lists and folders of a benchmark OpenOOD would look for, and which of them are not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WHERE_TO_GET = (
    "OpenOOD's data: https://github.com/Jingkang50/OpenOOD#data, "
    "or bash scripts/download/download.sh in its checkout"
)


def image_lists(id_name: str) -> Iterator[tuple[str, dict[str, str]]]:
    """(name, entry of OpenOOD's ``DATA_INFO``) of every image list of a benchmark.

    Raises:
        ValueError: no such benchmark.
    """
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


def missing_files(data_root: str | os.PathLike[str], id_name: str) -> list[str]:
    """One line for every list that is not there and every image folder that is missing or empty.

    Raises:
        ValueError: no such benchmark.
    """
    from openood.evaluation_api.datasets import benchmarks_dict, dir_dict

    root = Path(data_root)
    missing = [
        f"image list of {name}: {root / entry['imglist_path']}"
        for name, entry in image_lists(id_name)
        if not (root / entry["imglist_path"]).is_file()
    ]
    for dataset in benchmarks_dict[id_name]:
        parent = next((key for key, members in dir_dict.items() if dataset in members), None)
        if parent is None:
            continue
        folder = root / parent / dataset
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
