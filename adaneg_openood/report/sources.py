"""What a report can be made of: the demo world, feature files, and the images behind them."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaneg_openood.report.collect import collect
from adaneg_openood.report.record import RunRecord

if TYPE_CHECKING:
    import torch

    from adaneg_openood.data import ImageSet

logger = logging.getLogger(__name__)

DEMO = "demo"


def demo_record(device: torch.device | str = "cpu", **settings: Any) -> RunRecord:
    """A run of the standard methods on the demo world, with example images; nothing is downloaded.

    Args:
        device: where it runs.
        settings: of :func:`~adaneg_openood.report.collect`.
    """
    from adaneg_openood.data import ImageSet
    from adaneg_openood.demo.run import BATCH_SIZE, demo_features
    from adaneg_openood.demo.world import write_benchmark

    data = demo_features(device)
    with tempfile.TemporaryDirectory(prefix="adaneg-demo-") as folder:
        root = Path(folder)
        write_benchmark(root)
        lists = root / "benchmark_imglist" / "demo"
        names = {"id": "demo", **{name: name for name in (*data.near, *data.far)}}
        images = {
            part: ImageSet.of(lists / f"test_{name}.txt", root=root / "images")
            for part, name in names.items()
        }
        settings = {"batch_size": BATCH_SIZE, **settings}
        return collect(data, device=device, images=images, **settings)


def benchmark_record(
    source: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    cache: Path | None = None,
    device: str = "cpu",
    images: Mapping[str, ImageSet] | None = None,
    images_root: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> RunRecord:
    """A run of a benchmark's methods, with example images where it knows its images.

    Args:
        source: an npz file or folder of features, a YAML definition, or a shipped one's name.
        data: root of a definition's image sets.
        cache: folder of the feature cache; None is the user's.
        device: where it is encoded and runs.
        images: those the caller names; they go first.
        images_root: what the paths of imglists are relative to.
        settings: of :func:`~adaneg_openood.report.collect`, over the benchmark's own protocol.

    Raises:
        ValueError, OSError, ImportError: with a message for people.
    """
    from adaneg_openood.benchmark.check import refuse_missing
    from adaneg_openood.benchmark.definition import open_benchmark
    from adaneg_openood.benchmark.run import Settings, encode_benchmark

    benchmark = open_benchmark(source, data=data)
    refuse_missing(benchmark, cache)
    encoding = encode_benchmark(benchmark, Settings(device=device, cache=cache))
    found = {} if benchmark.features is None else remembered_images(benchmark.features, images_root)
    sizes = {"id": len(encoding.data.id_features)}
    for title, names in encoding.names.items():
        part, root = title.rpartition("/")[2], encoding.roots.get(title)
        # with covariate-shifted images in it, the ID part is more than its own image set
        whole = sizes.get(part, len(names)) == len(names)
        if root is not None and whole and (root / names[0]).is_file():
            found[part] = _named_files(root, list(names))
    return collect(
        encoding.data,
        {spec.name: spec.build(encoding.data) for spec in benchmark.methods},
        device=device,
        features=benchmark.features,
        images={**found, **(images or {})},
        about=encoding.provenance,
        **{**benchmark.protocol, **settings},
    )


def given_images(
    given: Mapping[str, str | os.PathLike[str]], root: str | os.PathLike[str] | None = None
) -> dict[str, ImageSet]:
    """Images named by the caller: ``"id"`` or an OOD set -> a folder or an imglist.

    Raises:
        FileNotFoundError, ValueError: as :func:`adaneg_openood.data.ImageSet.of`.
    """
    from adaneg_openood.data import ImageSet

    return {part: ImageSet.of(path, root=root) for part, path in given.items()}


def remembered_images(
    features: str | os.PathLike[str], root: str | os.PathLike[str] | None = None
) -> dict[str, ImageSet]:
    """Images that the feature files of a folder name, as far as they still lie where they were.

    Args:
        features: a folder that ``adaneg-openood encode`` filled; of anything else nothing is known.
        root: what the paths of imglists are relative to.
    """
    from adaneg_openood.data import read_feature_header

    folder = Path(features)
    found: dict[str, ImageSet] = {}
    if not folder.is_dir():
        return found
    files = [
        folder / "id.safetensors",
        *folder.glob("near/*.safetensors"),
        *folder.glob("far/*.safetensors"),
    ]
    for file in files:
        header = read_feature_header(file) if file.is_file() else {}
        names, source = header.get("names"), Path(str(header.get("source", "")))
        base = source if source.is_dir() else source.parent if root is None else Path(root)
        if not names:
            continue
        if not (base / names[0]).is_file():
            logger.info("%s: its images are not at %s, so there are no examples of them", file, base)
            continue
        found[file.stem] = _named_files(base, names)
    return found


def _named_files(base: Path, names: list[str]) -> ImageSet:
    from adaneg_openood.data import ImageSet

    return ImageSet.from_entries(str(base), [(name, -1) for name in names], base)
