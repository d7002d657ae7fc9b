"""What a report can be made of: the demo world, feature files, and the images behind them."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaneg_openood.data import ImageSet, read_feature_header
from adaneg_openood.report.collect import collect
from adaneg_openood.report.record import RunRecord

if TYPE_CHECKING:
    from adaneg_openood.benchmark.definition import Benchmark

logger = logging.getLogger(__name__)

DEMO = "demo"


def benchmark_record(
    benchmark: Benchmark,
    *,
    device: str = "cpu",
    images: Mapping[str, ImageSet] | None = None,
    images_root: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> RunRecord:
    """A run of a benchmark's methods, with pictures where it knows its images.

    Args:
        benchmark: see :func:`~adaneg_openood.benchmark.definition.read_benchmark`.
        device: where it is encoded and runs.
        images: those the caller names; they go first.
        images_root: what the paths of imglists are relative to.
        settings: further arguments of :func:`~adaneg_openood.report.collect`.

    Raises:
        ValueError, OSError, ImportError: with a message for people.
    """
    from adaneg_openood.benchmark.opening import open_benchmark
    from adaneg_openood.benchmark.run import EncodeOptions, encode_benchmark

    made = encode_benchmark(open_benchmark(benchmark), EncodeOptions(device))
    found = {} if benchmark.features is None else remembered_images(benchmark.features, images_root)
    for title, own in made.images.items():
        part = title.rpartition("/")[2]
        # with covariate-shifted images in it, the ID part is more than its own image set
        whole = title != "id" or len(own) == len(made.data.id_features)
        if whole and not title.startswith("csid/"):
            found[part] = own
    return collect(
        made.data,
        made.detectors(benchmark.methods),
        device=device,
        features=benchmark.features,
        images={**found, **(images or {})},
        about=made.provenance,
        seeds=benchmark.seeds,
        batch_size=benchmark.batch_size,
        order=benchmark.order,
        **settings,
    )


def given_images(
    given: Mapping[str, str | os.PathLike[str]], root: str | os.PathLike[str] | None = None
) -> dict[str, ImageSet]:
    """Images named by the caller: ``"id"`` or an OOD set -> a folder or an imglist.

    Raises:
        FileNotFoundError, ValueError: as :func:`adaneg_openood.data.ImageSet.of`.
    """
    return {part: ImageSet.of(path, root=root) for part, path in given.items()}


def remembered_images(
    features: str | os.PathLike[str], root: str | os.PathLike[str] | None = None
) -> dict[str, ImageSet]:
    """Images that the feature files of a folder name, as far as they still lie where they were.

    Args:
        features: a folder that ``adaneg-openood encode`` filled; of anything else nothing is known.
        root: what the paths of imglists are relative to.
    """
    folder = Path(features)
    found = {}
    for file in (
        file for place in ("id", "near/*", "far/*") for file in folder.glob(f"{place}.safetensors")
    ):
        header = read_feature_header(file)
        names, source = header.get("names"), Path(str(header.get("source", "")))
        base = source if source.is_dir() else source.parent if root is None else Path(root)
        if not names:
            continue
        if not (base / names[0]).is_file():
            logger.info("%s: its images are not at %s, so none of them is shown", file, base)
            continue
        found[file.stem] = ImageSet.from_entries(str(base), [(name, -1) for name in names], base)
    return found
