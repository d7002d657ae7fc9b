"""The wheel alone: YAMLs inside, nothing from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("openood.evaluation_api", reason="OpenOOD is not installed")
pytest.importorskip("setuptools", reason="setuptools builds the wheel")

from openood_tiny import NEGATIVES

ROOT = Path(__file__).parents[2]

# the unpacked wheel comes first on the path; for its requirements, this environment has to do
USE = """
import sys, adaneg_openood
from pathlib import Path
wheel, data, negatives, tests = sys.argv[1:]
assert Path(adaneg_openood.__file__).is_relative_to(wheel), adaneg_openood.__file__
sys.path.append(tests)
from openood_tiny import TinyModel, names_of, refuse_network
import socket
socket.socket.connect = refuse_network(socket.socket.connect)
from openood.evaluation_api import Evaluator
from openood.evaluation_api.postprocessor import get_postprocessor
for name in ("adaneg", "neglabel", "mcm"):
    path = get_postprocessor("./configs", name, "cifar10").config_path
    assert Path(path).is_relative_to(wheel), path
from adaneg_openood.openood import CLIPNetwork
net = CLIPNetwork(TinyModel(), names_of("cifar10"))
run = Evaluator(net, "cifar10", data, postprocessor_name="mcm", num_workers=0)
print(run.eval_ood(progress=False).loc["farood", "AUROC"])
"""


def test_wheel_holds_all_it_needs(benchmarks: Path, tmp_path: Path, negatives_file: Path) -> None:
    source = tmp_path / "source"
    # built from a copy, so that no build folder is left in the checkout
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        text=True,
        capture_output=True,
    ).stdout.splitlines()
    if not names:
        pytest.skip("no git checkout to build from")
    for name in names:
        if name.startswith(("adaneg_openood/", "configs/")) or "/" not in name:
            if (ROOT / name).is_file():
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--no-deps",
            "--no-build-isolation",
            "--quiet",
            "--disable-pip-version-check",
            "--no-index",
            "--wheel-dir",
            str(tmp_path),
            str(source),
        ],
        check=True,
        timeout=120,
    )
    (wheel,) = tmp_path.glob("*.whl")
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
        for name in archive.namelist():
            assert name.startswith("adaneg_openood"), f"{name} would land beside the package"
            assert str(ROOT).encode() not in archive.read(name), f"{name} holds an absolute path"
    for kind in ("postprocessors", "networks"):
        packed = {path.name for path in (unpacked / "adaneg_openood" / "configs" / kind).glob("*.yml")}
        assert packed == {path.name for path in (ROOT / "configs" / kind).glob("*.yml")}
    env = dict(os.environ, PYTHONPATH=str(unpacked), OMP_NUM_THREADS="1")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            USE,
            str(unpacked),
            str(benchmarks),
            str(negatives_file),
            str(Path(__file__).parent),
        ],
        cwd=tmp_path,
        env=env,
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) > 50
    assert len(NEGATIVES) > 0
