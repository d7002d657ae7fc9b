"""Kills runs at random moments; a process of its own, so that tests need not fork pytest.

``python kill_sweep.py FOLDER``: FOLDER holds small.yml. Prints one JSON line: seconds of a whole run,
when each run was killed, and what each killed run had written down.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

from adaneg_openood import AdaNegConfig
from adaneg_openood.benchmark.definition import load_benchmark
from adaneg_openood.benchmark.run import Settings, encode_benchmark
from adaneg_openood.evaluation.sweep import sweep

GRID = {"gamma": [0.3, 0.4, 0.5, 0.6, 0.7], "gap": [0, 0.1, 0.5], "proxy": ["task", "sample"]}
KILLS = 10


def work(root: Path, name: str) -> None:
    """Encode, then sweep 30 configurations: all that a run leaves lies in ``root/name``."""
    out = root / name
    settings = Settings(workers=0, batch_size=4, cache=out / "cache", text_cache=out / "text")
    data = encode_benchmark(load_benchmark(root / "small.yml"), settings).data
    base = AdaNegConfig(groups=2, memory_length=4)
    sweep(data, GRID, base=base, seeds=(0,), batch_sizes=(8,), folder=out / "sweep")


def start(root: Path, name: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work(root, name)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def finish(pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    if status:
        raise SystemExit(f"a run ended with status {status}")


def main(root: Path) -> None:
    torch.set_num_threads(1)  # threads do not survive a fork
    work(root, "warm")  # in this process, so that what it imports is there in every fork
    begun = time.monotonic()
    finish(start(root, "whole"))
    whole = time.monotonic() - begun
    rng = random.Random(11)  # moments spread over the length of a run, one a tenth
    moments, written = [], []
    for number in range(KILLS):
        name = f"killed{number}"
        moments.append(whole * (number + rng.random()) / KILLS)
        pid = start(root, name)
        time.sleep(moments[-1])
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        journal = root / name / "sweep" / "journal.jsonl"
        written.append(journal.read_bytes().count(b"\n") if journal.exists() else 0)
        finish(start(root, name))
    told = {"whole": whole, "moments": moments, "written": written}
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
