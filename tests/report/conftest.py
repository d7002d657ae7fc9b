"""A small run, and the page of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from adaneg_openood.data import ImageSet
from adaneg_openood.evaluation import FeatureSet
from adaneg_openood.report import RunRecord, collect, write_report


def plain_images(n: int, first: int) -> ImageSet:
    """n images that need no disk; the i-th is called i, and its grey is ``first + i``."""
    names = [f"{index:03d}.png" for index in range(n)]
    return ImageSet(
        "made", names, [-1] * n, lambda index: Image.new("RGB", (120, 60), (first + index,) * 3)
    )


@pytest.fixture(scope="session")
def record(small: FeatureSet) -> RunRecord:
    first = {"id": (100, 0), "tools": (50, 100), "textures": (50, 150)}
    images = {part: plain_images(*made) for part, made in first.items()}
    return collect(small, seeds=(0, 1), batch_size=32, images=images)


@pytest.fixture(scope="session")
def page(record: RunRecord, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "report.html"
    write_report(record, out, title="A <run> & more")
    return out
