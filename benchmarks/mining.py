"""Memory and time of mining 70,000 candidates against 1,000 ID names: ``python benchmarks/mining.py``.

D 512, M 10,000. Candidates come in parts, as they do from a text tower, so the 70,000 x 1,000 cosines
are never held. Prints JSON; exits with 1 if the process ever took 1 GB. Run it in a fresh process: the
peak is the whole process's, torch included, and what torch alone takes is told apart.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time

import torch
from torch.nn.functional import normalize

from adaneg_openood.text import NegativeMiner

N, C, M, D, PART = 70_000, 1_000, 10_000, 512, 4096
LIMIT_MB = 1000


def peak_mb() -> float:
    """Highest resident memory so far; ru_maxrss is in KiB on Linux, in bytes on macOS."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    generator = torch.Generator().manual_seed(0)
    ids = normalize(torch.randn(C, D, generator=generator), dim=1)
    before, seconds = peak_mb(), 0.0
    miner = NegativeMiner(ids, M)
    for start in range(0, N, PART):
        part = normalize(torch.randn(min(PART, N - start), D, generator=generator), dim=1)
        begun = time.perf_counter()
        miner.update(part)
        seconds += time.perf_counter() - begun
    peak = peak_mb()
    result = {
        "candidates": miner.n_seen,
        "id_names": C,
        "kept": len(miner.indices),
        "seconds": round(seconds, 2),
        "peak_mb": round(peak),
        "of_which_before_mining_mb": round(before),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    return int(peak > LIMIT_MB)


if __name__ == "__main__":
    sys.exit(main())
