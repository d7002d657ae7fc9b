"""A long stream: memory and a step's time stay flat, and sums stay right. ``python -m benchmarks.soak``.

A stream of 1,000,000 images of width 16 among 300 labels, and one of 200,000 images of width 512 among
1,000 ID names and 10,000 negatives, each with every method that remembers its stream. Its memory is
filled before, with images of every label in turn, so that the first and the last tenth do the same work,
which is also the most that a step can cost. Times are of the processor, on one thread: other programs
of the machine change them least. AdaNeg's running sums are compared with sums made anew from the images
that it holds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from adaneg_openood.detectors import DETECTORS, TextDetector, make_detector
from adaneg_openood.detectors.fixed_bank import as_pooled
from benchmarks.common import images_near, text_rows

_PAGE = """\
# A long stream

Written by `python -m benchmarks.soak --out docs/benchmarks_soak.md`; torch {torch}, one thread of a CPU.

Each method that keeps a memory reads a stream of 1,000,000 images of width 16 among 300 labels, and one
of 200,000 images of width 512 among 1,000 ID names and 10,000 negatives. Its memory is filled before the
stream, so that the first and the last tenth of the stream do the same work.

- Times are medians of the processor's milliseconds per step (500 images of width 16, 256 of width 512).
- Memory is all of the process's, in MiB.
- Held are the images in AdaNeg's memory.
- AdaNeg keeps running sums of the images that it holds. The error is the largest difference between an
  element of these sums at the end and the same element summed anew in float64.

| method | stream | ms: first tenth | last tenth | MiB: first | last | held: first | last | error |
|---|---|--:|--:|--:|--:|--:|--:|--:|
{table}
"""
_SHOWN = ("CPU ms per step", "MiB", "images held")
STREAMS = {"width 16": (1_000_000, 100, 200, 16, 500), "width 512": (200_000, 1000, 10_000, 512, 256)}


def soak(name: str, n_images: int, n_id: int, n_neg: int, dim: int, batch: int) -> dict[str, Any]:
    """Figures of one method over one stream."""
    generator = torch.Generator().manual_seed(0)
    text = text_rows(n_id + n_neg, dim, generator)
    detector = make_detector(name, text, n_id)

    def step(rows: torch.Tensor) -> float:
        images = images_near(text, rows, generator)
        begun = time.thread_time()
        detector.score(images)
        return time.thread_time() - begun

    for _ in range(0, n_images, len(text)):  # if it takes as many images as the stream
        for rows in torch.randperm(len(text), generator=generator).split(batch):
            step(rows)
        held = _cached(detector)
        if held is None or held == detector.config.memory_length * len(text):
            break
    steps = n_images // batch
    times, found = [], {}
    for number in range(steps):
        times.append(step(torch.randint(0, len(text), (batch,), generator=generator)))
        if number in (steps // 10, steps - 1):
            found["last" if found else "first"] = _state(detector)
    for tenth, part in (("first", times[: steps // 10]), ("last", times[-(steps // 10) :])):
        found[tenth] = {"CPU ms per step": round(1e3 * statistics.median(part), 3), **found[tenth]}
    bank = getattr(detector, "bank", None)
    if bank is not None:
        found["largest error of a sum"] = _sum_error(as_pooled(bank), text)
    return found


def _state(detector: TextDetector) -> dict[str, Any]:
    return {"MiB": round(_resident_mib()), "images held": _cached(detector)}


def _cached(detector: TextDetector) -> int | None:
    """Images in a bank; None of a method without one: a round of images fills its window or queue."""
    bank = getattr(detector, "bank", None)
    return None if bank is None else int(bank.counts.sum())


def _sum_error(bank: Any, text: torch.Tensor) -> float:
    rows = bank.active_rows[: bank.n_active]
    slots = bank.slot_of_row[bank.rows[: bank.n_cached]]
    exact = text[rows].double().index_add(0, slots, bank.features[: bank.n_cached].double())
    return float((bank.sums[: bank.n_active].double() - exact).abs().max())


def _resident_mib() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def _cell(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.1e}" if value < 1e-3 else f"{value:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--methods", nargs="*", default=[n for n, d in DETECTORS.items() if d.info.keeps_state]
    )
    parser.add_argument("--streams", nargs="*", default=list(STREAMS))
    parser.add_argument("--out", type=Path, help="write the page here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for stream in args.streams:
        for name in args.methods:
            found = soak(name, *STREAMS[stream])
            print(stream, name, json.dumps(found), flush=True)
            told = [found[tenth][key] for key in _SHOWN for tenth in ("first", "last")]
            told.append(found.get("largest error of a sum"))
            cells = ["" if value is None else _cell(value) for value in told]
            rows.append([DETECTORS[name].info.title, stream, *cells])
    if args.out:
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        args.out.write_text(_PAGE.format(torch=torch.__version__, table=table), encoding="utf-8")


if __name__ == "__main__":
    main()
