"""How cost grows: ``python -m benchmarks.scale``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from adaneg_openood import AdaNeg
from benchmarks.common import fill, images_near, make, text_rows
from benchmarks.step import MAIN, measure

_FOUR_BYTES = 4


def grid(steps: int = 7) -> dict[str, dict[str, Any]]:
    """Step times as one size changes."""
    settings = {
        "B 64": replace(MAIN, batch=64),
        "B 256 (main)": MAIN,
        "B 1024": replace(MAIN, batch=1024),
        "K 21,000": replace(MAIN, n_negatives=20_000),
        "K 41,000": replace(MAIN, n_negatives=40_000),
        "K 80,000": replace(MAIN, n_negatives=79_000),
        "D 768": replace(MAIN, dim=768),
        "D 1,152": replace(MAIN, dim=1152),
        "bfloat16": replace(MAIN, dtype=torch.bfloat16),
        "L 2": replace(MAIN, memory_length=2, cached=2000, rows=(1000, 1000)),
        "L 50": replace(MAIN, memory_length=50),
        "1,000 cached": replace(MAIN, cached=1000),
        "20,000 cached": replace(MAIN, cached=20_000, rows=(1000, 4000)),
        "50,000 cached": replace(MAIN, cached=18_000 + 32_000, memory_length=26, rows=(1000, 9000)),
    }
    return {name: measure(setting, steps) for name, setting in settings.items()}


def replay(n_images: int = 100_000) -> dict[str, float]:
    """Images a second over a stream, from an empty bank, and AdaNeg's rate over NegLabel's."""
    generator = torch.Generator().manual_seed(0)
    text = text_rows(MAIN.n_id + MAIN.n_negatives, MAIN.dim, generator)
    # one pool of images, streamed again and again: making 100,000 would need 200 MB more
    # OOD images are of fewer kinds than there are negatives
    rows = MAIN.n_id + torch.randint(3000, (20_000,), generator=generator)
    rows[::2] = torch.randint(MAIN.n_id, (10_000,), generator=generator)
    pool = images_near(text, rows, generator)
    detectors = {name: make(name, text, MAIN.n_id) for name in ("NegLabel", "AdaNeg (task)")}
    seconds = dict.fromkeys(detectors, 0.0)
    for start in range(0, n_images, MAIN.batch):
        batch = pool[torch.arange(start, start + MAIN.batch) % len(pool)]
        for name, detector in detectors.items():
            begun = time.perf_counter()
            detector.score(batch)
            seconds[name] += time.perf_counter() - begun
    rates = {name: n_images / value for name, value in seconds.items()}
    cached = detectors["AdaNeg (task)"].bank.n_cached
    return {
        **{f"{name} images/s": round(rate) for name, rate in rates.items()},
        "ratio of rates": round(rates["AdaNeg (task)"] / rates["NegLabel"], 3),
        "cached at the end": cached,
        "rows holding images": detectors["AdaNeg (task)"].bank.n_active,
    }


def bank_memory(n_images: int = 50_000) -> dict[str, float]:
    """Bytes of a bank over the bytes of the features it holds."""
    generator = torch.Generator().manual_seed(0)
    detector = AdaNeg(text_rows(11_000, 512, generator), 1000)
    text = detector.text_features
    rows = torch.arange(11_000).repeat_interleave(9)
    rows = rows[torch.randperm(len(rows), generator=generator)[:n_images]]
    fill(detector.bank, rows, text, generator)
    bank = detector.bank
    total = sum(buffer.numel() * buffer.element_size() for buffer in bank.buffers())
    features = bank.n_cached * 512 * _FOUR_BYTES
    return {
        "cached": bank.n_cached,
        "rows": bank.n_active,
        "bytes over features": round(total / features, 3),
    }


def import_seconds() -> dict[str, float]:
    """Time to import the package in a fresh process, beside torch alone."""
    found = {}
    for module in ("torch", "adaneg_openood"):
        code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
        runs = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(3)]
        found[module] = round(min(runs), 2)
    return found


def encodes() -> dict[str, int]:
    """Image encodes for one table of four methods and three stream orders, and distinct images."""
    from adaneg_openood.benchmark.definition import read_benchmark
    from adaneg_openood.benchmark.opening import open_benchmark
    from adaneg_openood.benchmark.run import EncodeOptions, run_benchmark
    from adaneg_openood.vlm.open_clip import OpenClip

    counted = 0
    encode = OpenClip.encode_image

    def counting(self: OpenClip, pixels: torch.Tensor) -> torch.Tensor:
        nonlocal counted
        counted += len(pixels)
        return encode(self, pixels)

    OpenClip.encode_image = counting  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as cache:
            opened = open_benchmark(read_benchmark("demo").changed(cache=Path(cache)))
            run, _ = run_benchmark(opened, EncodeOptions(workers=0))
    finally:
        OpenClip.encode_image = encode  # type: ignore[method-assign]
    table = run.table("NegLabel")
    distinct = int(table["n_id"].iloc[0]) + int(table.loc[["nearood", "farood"], "n_ood"].sum())
    return {"encodes": counted, "distinct images": distinct}
