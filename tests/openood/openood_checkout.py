"""OpenOOD's source folder, whose scripts and configurations are not part of what pip installs."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest


def checkout() -> Path | None:
    """Where it is: OPENOOD_SOURCE, what pip was given, or nowhere."""
    named = os.environ.get("OPENOOD_SOURCE")
    places = [Path(named)] if named else []
    record = importlib.metadata.distribution("openood").read_text("direct_url.json")
    if record:
        places.append(Path(unquote(urlparse(json.loads(record)["url"]).path)))
    return next((place for place in places if (place / "main.py").is_file()), None)


def classic(configs: Sequence[object], cwd: Path, *more: str) -> str:
    """What OpenOOD's ``main.py`` prints, run by this package on the CPU."""
    script = str(checkout() / "main.py")  # type: ignore[operator]
    command = [sys.executable, "-m", "adaneg_openood", script, "--config", *map(str, configs)]
    env = dict(os.environ, OMP_NUM_THREADS="1")
    done = subprocess.run(
        [*command, "--num_gpus", "0", *more],
        cwd=cwd,
        env=env,
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


needs_checkout = pytest.mark.skipif(
    checkout() is None, reason="no checkout of OpenOOD: set OPENOOD_SOURCE to its folder"
)
