"""A run that is killed, at any moment, goes on to the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmark_fakes import write_small_benchmark

HERE = Path(__file__).parent


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_ten_killed_runs_end_as_an_undisturbed_one(tmp_path: Path) -> None:
    write_small_benchmark(tmp_path)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, str(HERE / "kill_sweep.py"), str(tmp_path)],
        env=environment,
        text=True,
        capture_output=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    whole = files_of(tmp_path / "whole")
    assert {"sweep/results.csv", "sweep/summary.csv", "sweep/journal.jsonl"} <= set(whole)
    assert sum(name.startswith("cache/") and name.endswith(".safetensors") for name in whole) == 3
    assert whole["sweep/results.csv"].count(b"\n") == 1 + 30 * 2
    for number in range(10):
        assert files_of(tmp_path / f"killed{number}") == whole, told["moments"][number]
    # moments fell before, in and after the sweep's runs
    assert len(told["written"]) == 10 and len(set(told["written"])) > 1, told


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".tmp" not in path.name  # what a kill leaves of an unfinished write
    }
