"""Time of one step against NegLabel's, in one run: ``python -m benchmarks.step``.

Half of a batch's images lie near ID names and half near negatives, so most of them are cached and the
bank works as it does in a stream. It is put back before every timed step; a bank is put back before the
steps of methods without one too, so that all start from the same processor caches. Methods alternate, so
that a slow moment of the machine meets all of them; the fastest step of each is taken, as other work on
the machine only ever adds time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from adaneg_openood import AdaNeg, FeatureBank
from benchmarks.common import METHODS, fill, images_near, make, restore, snapshot, some_rows, text_rows


@dataclass(frozen=True)
class Setting:
    """A step's sizes; images are cached in ``rows`` = (ID rows, negative rows).

    With ``duplicates`` a batch holds ten images that are cached, again and again with a little noise:
    what fits one label hardly fits another, so exponentials lie as far apart as they can.
    """

    batch: int = 256
    n_id: int = 1000
    n_negatives: int = 10_000
    dim: int = 512
    cached: int = 5000
    memory_length: int = 10
    rows: tuple[int, int] = (1000, 1000)
    dtype: torch.dtype = torch.float32
    duplicates: bool = False


MAIN = Setting()
SPREAD = Setting(rows=(1000, 9000))
DUPLICATES = Setting(duplicates=True)


def measure(setting: Setting, steps: int = 15, methods: tuple[str, ...] = METHODS) -> dict[str, Any]:
    """Milliseconds per step, the fastest of ``steps``, and their ratios to NegLabel's and to the floor.

    The floor is what a step must compute, measured in turn with the steps: one product with every text
    row, for AdaNeg a second one with every row that holds images (task) or every cached image (sample),
    and an exponential of each result.
    """
    generator = torch.Generator().manual_seed(0)
    capacity = setting.memory_length - 1
    text = text_rows(setting.n_id + setting.n_negatives, setting.dim, generator)
    rows = some_rows(setting.cached, setting.n_id, setting.rows, capacity, generator)
    detectors = {
        name: make(name, text, setting.n_id, setting.memory_length).to(setting.dtype) for name in methods
    }
    full, offered, active = {}, 0, 0
    for name, detector in detectors.items():
        if isinstance(detector, AdaNeg):
            fill(detector.bank, rows, text, generator)
            full[name] = snapshot(detector.bank)
            active = detector.bank.n_active
    spare, some = FeatureBank(1, 1, 1), next(iter(full.values()), {})
    more = {"NegLabel": 0, "AdaNeg (task)": active, "AdaNeg (sample)": setting.cached}
    floors = {
        name: [part.to(setting.dtype) for part in (text, text_rows(more[name], setting.dim, generator))]
        for name in methods
        if name in more
    }
    times: dict[str, list[float]] = {name: [] for name in methods}
    at_least: dict[str, list[float]] = {name: [] for name in floors}
    for _ in range(steps + 2):
        near = some_rows(setting.batch, setting.n_id, setting.rows, capacity, generator)
        batch = images_near(text, near, generator)
        if setting.duplicates:
            noise = text_rows(len(batch), setting.dim, generator)
            batch = normalize(batch[torch.arange(len(batch)) % 10] + 0.02 * noise, dim=1)
            for name in full:  # they are cached already
                restore(detectors[name].bank, full[name])
                detectors[name].score(batch)
                full[name] = snapshot(detectors[name].bank)
        batch = batch.to(setting.dtype)
        for name, detector in detectors.items():
            restore(getattr(detector, "bank", spare), full.get(name, some))
            start = time.perf_counter()
            detector.score(batch)
            times[name].append(time.perf_counter() - start)
            if isinstance(detector, AdaNeg):
                offered = int(detector.bank.progress) - int(full[name]["progress"])
            if name in floors:
                start = time.perf_counter()
                for part in floors[name]:
                    (batch @ part.T).exp_()
                at_least[name].append(time.perf_counter() - start)
    best = {name: min(values[2:]) for name, values in times.items()}
    floor = {name: min(values[2:]) for name, values in at_least.items()}
    return {
        "rows holding images": active,
        "images offered by a step": offered,
        "ms": {name: round(1e3 * value, 2) for name, value in best.items()},
        "ratio": {name: round(value / best["NegLabel"], 3) for name, value in best.items()},
        "floor ms": {name: round(1e3 * value, 2) for name, value in floor.items()},
        "over the floor": {name: round(best[name] / value, 2) for name, value in floor.items()},
    }


def peak_memory(method: str) -> float:
    """MiB that building a detector, filling it and ten steps add at most, in a fresh process (Linux)."""
    spawn = multiprocessing.get_context("spawn")
    answer = spawn.Queue()
    process = spawn.Process(target=_peak_memory, args=(method, answer))
    process.start()
    added = float(answer.get())
    process.join()
    return round(added, 1)


def _peak_memory(method: str, answer: multiprocessing.Queue[float]) -> None:
    generator = torch.Generator().manual_seed(0)
    text = text_rows(MAIN.n_id + MAIN.n_negatives, MAIN.dim, generator)
    rows = some_rows(MAIN.cached, MAIN.n_id, MAIN.rows, MAIN.memory_length - 1, generator)
    batch = images_near(text, rows[: MAIN.batch], generator)
    images_near(text, rows, generator)  # what filling needs for its inputs belongs to no method
    (batch @ batch.T).sum()  # nor do the matmul library's own buffers
    before = _high_water()
    detector = make(method, text, MAIN.n_id)
    if isinstance(detector, AdaNeg):
        fill(detector.bank, rows, text, generator)
    for _ in range(10):
        detector.score(batch)
    answer.put(_high_water() - before)


def _high_water() -> float:
    """MiB this process ever held; getrusage's figure would start from the parent's."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--json", help="write the numbers here")
    args = parser.parse_args()
    result = {
        "threads": torch.get_num_threads(),
        "in few rows": measure(MAIN, args.steps),
        "spread": measure(SPREAD, args.steps),
        "near-duplicates": measure(DUPLICATES, args.steps),
        "peak MiB added": {name: peak_memory(name) for name in METHODS},
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.json:
        Path(args.json).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
