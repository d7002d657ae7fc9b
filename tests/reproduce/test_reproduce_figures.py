"""The figures of ``reproduce``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from adaneg_openood.cli import app
from adaneg_openood.evaluation import FeatureSet, save_features


@pytest.mark.parametrize("target", ["bimcv", "samples", "ratio", "isor", "tsne"])
def test_every_kind_of_target_is_drawn(target: str, small: FeatureSet, tmp_path: Path) -> None:
    """Bars, lines, lines over a logarithmic axis, measures, and a plane."""
    save_features(tmp_path / "bench.npz", small)
    picture = tmp_path / "picture.png"
    options = ["--features", str(tmp_path / "bench.npz"), "--seeds", "1", "--plot", str(picture)]
    done = CliRunner().invoke(app, ["reproduce", target, *options])
    assert done.exit_code == 0, done.output
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels[0, 0] == 255 and (pixels < 128).mean() > 0.003
