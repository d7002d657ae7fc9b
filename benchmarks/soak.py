"""A long stream: memory and a step's time stay flat, and sums stay right. ``python -m benchmarks.soak``.

A stream of 1,000,000 images of width 16 among 300 labels, and one of 200,000 images of width 512 among
1,000 ID names and 10,000 negatives, each with every method that remembers its stream. A step's time is
compared between the second and the last tenth of the stream, whose work is the same. AdaNeg's running
sums are compared with sums made anew from the images it holds. One thread is used, as small steps on
several threads measure the other work of the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from adaneg_openood.detectors import DETECTORS, make_detector
from adaneg_openood.detectors.fixed_bank import as_pooled
from benchmarks.common import images_near, text_rows

STREAMS = {"width 16": (1_000_000, 100, 200, 16, 500), "width 512": (200_000, 1000, 10_000, 512, 256)}


def soak(name: str, n_images: int, n_id: int, n_neg: int, dim: int, batch: int) -> dict[str, Any]:
    """Figures of one method over one stream."""
    generator = torch.Generator().manual_seed(0)
    text = text_rows(n_id + n_neg, dim, generator)
    detector = make_detector(name, text, n_id)
    steps, times, resident = n_images // batch, [], []
    for number in range(steps):
        rows = torch.randint(0, n_id + n_neg // 3, (batch,), generator=generator)
        images = images_near(text, rows, generator)
        start = time.perf_counter()
        detector.score(images)
        times.append(time.perf_counter() - start)
        if number % max(1, steps // 20) == 0:
            resident.append(_resident_mib())
    tenth = steps // 10
    found = {
        "ms per step, second tenth": round(1e3 * statistics.median(times[tenth : 2 * tenth]), 3),
        "ms per step, last tenth": round(1e3 * statistics.median(times[-tenth:]), 3),
        "MiB, second tenth": round(resident[3]),
        "MiB, end": round(_resident_mib()),
    }
    bank = getattr(detector, "bank", None)
    if bank is not None:
        found["largest error of a sum"] = _sum_error(as_pooled(bank), text)
    return found


def _sum_error(bank: Any, text: torch.Tensor) -> float:
    rows = bank.active_rows[: bank.n_active]
    slots = bank.slot_of_row[bank.rows[: bank.n_cached]]
    exact = text[rows].double().index_add(0, slots, bank.features[: bank.n_cached].double())
    return float((bank.sums[: bank.n_active].double() - exact).abs().max())


def _resident_mib() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--methods", nargs="*", default=[n for n, d in DETECTORS.items() if d.info.keeps_state]
    )
    parser.add_argument("--streams", nargs="*", default=list(STREAMS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    for stream in args.streams:
        for name in args.methods:
            print(stream, name, json.dumps(soak(name, *STREAMS[stream])), flush=True)


if __name__ == "__main__":
    main()
