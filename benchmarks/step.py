"""Time of one step against NegLabel's, in one run: ``python benchmarks/step.py``.

B 256, C 1000, M 10,000, D 512, 5,000 images cached in the bank. Half of a batch's images lie near ID
names and half near negatives, so most of them are cached and the bank works as it does in a stream.
The bank is put back before every timed step. Methods alternate, so that a slow moment of the machine
meets all of them, and the ratio of medians is what counts.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from adaneg_openood import MCM, AdaNeg, AdaNegConfig, FeatureBank, NegLabel

B, C, M, D, CACHED = 256, 1000, 10_000, 512, 5000
METHODS = ("MCM", "NegLabel", "AdaNeg (task)", "AdaNeg (sample)")
OCCUPANCY = {  # how many rows of each side hold the images
    "stream": (1000, 1000),
    "spread": (1000, 9000),
}


def make(method: str, text: torch.Tensor) -> MCM | NegLabel | AdaNeg:
    if method == "MCM":
        return MCM(text, C)
    if method == "NegLabel":
        return NegLabel(text, C)
    return AdaNeg(text, C, config=AdaNegConfig(proxy="sample" if "sample" in method else "task"))


def images_near(text: torch.Tensor, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Unit vectors at a cosine of about 0.3 to their row, as CLIP images are to their caption."""
    noise = normalize(torch.randn(len(rows), D, generator=generator), dim=1)
    return normalize(text[rows] * 0.31 + noise * 0.95, dim=1)


def some_rows(n: int, per_side: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """n rows, half of them ID, each at most 9 times, over the first rows of each side."""
    sides = []
    for first, n_rows in ((0, per_side[0]), (C, per_side[1])):
        slots = torch.arange(first, first + n_rows).repeat_interleave(9)
        sides.append(slots[torch.randperm(len(slots), generator=generator)[: n // 2]])
    return torch.cat(sides)


def snapshot(bank: FeatureBank) -> dict[str, Any]:
    """Everything a bank holds, with its spare room."""
    buffers = {name: buffer.clone() for name, buffer in bank.named_buffers()}
    return {**buffers, "n_cached": bank.n_cached, "n_active": bank.n_active}


def restore(bank: FeatureBank, saved: dict[str, Any]) -> None:
    for name, value in saved.items():
        setattr(bank, name, value.clone() if isinstance(value, torch.Tensor) else value)


def measure(occupancy: str, steps: int, threads: int) -> dict[str, object]:
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    text = normalize(torch.randn(C + M, D, generator=generator), dim=1)
    rows = some_rows(CACHED, OCCUPANCY[occupancy], generator)
    cached, entropies = images_near(text, rows, generator), torch.rand(CACHED, generator=generator)
    detectors = {method: make(method, text) for method in METHODS}
    full = {}
    for method, detector in detectors.items():
        if isinstance(detector, AdaNeg):
            for part in torch.arange(CACHED).split(B):  # as a stream does: with its spare room
                detector.bank.add(rows[part], cached[part], entropies[part], text[rows[part]])
            full[method] = snapshot(detector.bank)
    times: dict[str, list[float]] = {method: [] for method in METHODS}
    entered = 0
    for _ in range(steps + 2):
        batch = images_near(text, some_rows(B, OCCUPANCY[occupancy], generator), generator)
        for method, detector in detectors.items():
            if isinstance(detector, AdaNeg):
                restore(detector.bank, full[method])
            start = time.perf_counter()
            detector.score(batch)
            times[method].append(time.perf_counter() - start)
            if isinstance(detector, AdaNeg):
                entered = int(detector.bank.progress) - CACHED
    median = {method: statistics.median(values[2:]) for method, values in times.items()}
    return {
        "rows holding images": full[METHODS[2]]["n_active"],
        "images offered by a step": entered,
        "ms": {method: round(1e3 * value, 2) for method, value in median.items()},
        "ratio to NegLabel": {
            method: round(value / median["NegLabel"], 3) for method, value in median.items()
        },
    }


def peak_memory(method: str, answer: multiprocessing.Queue[float]) -> None:
    """MiB that building a detector, 5,000 images and ten steps add at most, in a fresh process."""
    generator = torch.Generator().manual_seed(0)
    text = normalize(torch.randn(C + M, D, generator=generator), dim=1)
    rows = some_rows(CACHED, OCCUPANCY["stream"], generator)
    cached, batch = images_near(text, rows, generator), images_near(text, rows[:B], generator)
    (batch @ batch.T).sum()  # the matmul library's own buffers belong to no method
    before = high_water()
    detector = make(method, text)
    if isinstance(detector, AdaNeg):
        detector.bank.add(rows, cached, torch.rand(CACHED, generator=generator), text[rows])
    for _ in range(10):
        detector.score(batch)
    answer.put(high_water() - before)


def high_water() -> float:
    """MiB this process ever held (Linux); getrusage's figure would start from the parent's."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", help="write the numbers here")
    args = parser.parse_args()
    result: dict[str, object] = {
        "B, C, M, D, cached": [B, C, M, D, CACHED],
        "threads": args.threads,
        **{name: measure(name, args.steps, args.threads) for name in OCCUPANCY},
    }
    spawn = multiprocessing.get_context("spawn")
    memory = {}
    for method in METHODS:
        answer: multiprocessing.Queue[float] = spawn.Queue()
        process = spawn.Process(target=peak_memory, args=(method, answer))
        process.start()
        memory[method] = round(answer.get(), 1)
        process.join()
    result["peak MiB added"] = memory
    text = json.dumps(result, indent=2)
    print(text)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
