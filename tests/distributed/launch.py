"""Starts ranks.py as torchrun would, and collects what each rank wrote down."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("ranks.py")
GUARD = 120  # seconds until a hang is called one


def start(size, images, out, *names):
    out.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(images), str(out), *names],
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
                "GLOO_SOCKET_IFNAME": "lo",
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def outcomes(processes, out):
    try:
        for process in processes:
            _, stderr = process.communicate(timeout=GUARD)
            assert process.returncode == 0, stderr
    finally:
        for process in processes:
            process.kill()
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(len(processes))]
