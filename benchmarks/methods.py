"""Every method's step against NegLabel's, in one run: ``python -m benchmarks.methods``.

At two sizes: 10,000 negatives, and a whole corpus of 70,000 candidates. Beside TANL's step stands what
one product with all text rows and its exponentials takes. Streams are mixed, so that half of the images
are OOD-like and TANL's queues, OODD's queue and SmoothedNegLabel's window are full before timing starts.
Methods alternate, and the fastest step of each is taken.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch

from adaneg_openood.detectors import DETECTORS, make_detector
from benchmarks.common import best_ms, images_near, text_rows
from benchmarks.step import _high_water

BATCH, N_ID, DIM = 256, 1000, 512
SIZES = {"10,000 negatives": 10_000, "70,000 candidates": 70_000}


def measure(n_negatives: int, steps: int, warm: int = 10, batch: int = BATCH) -> dict[str, Any]:
    """Milliseconds of a step, the fastest of ``steps``, and the ratios to NegLabel's."""
    generator = torch.Generator().manual_seed(0)
    text = text_rows(N_ID + n_negatives, DIM, generator)
    noise = text_rows(15, DIM, generator)
    detectors = {}
    for name, kind in DETECTORS.items():
        further = {"noise_features": noise} if "noise_features" in kind.input_names() else {}
        detectors[kind.info.title] = make_detector(name, text, N_ID, **further)
    times: dict[str, list[float]] = {title: [] for title in detectors}
    for _ in range(warm + steps):
        rows = N_ID + torch.randint(n_negatives // 3, (batch,), generator=generator)
        rows[::2] = torch.randint(N_ID, (len(rows[::2]),), generator=generator)
        images = images_near(text, rows, generator)
        for title, detector in detectors.items():
            start = time.perf_counter()
            detector.score(images)
            times[title].append(time.perf_counter() - start)
    best = {title: 1e3 * min(values[warm:]) for title, values in times.items()}
    best["product and exponentials"] = best_ms(lambda: (images @ text.T).exp_(), max(steps // 3, 3))
    return {
        "ms": {title: round(value, 2) for title, value in best.items()},
        "to NegLabel": {title: round(value / best["NegLabel"], 3) for title, value in best.items()},
        "TANL to product and exponentials": round(best["TANL"] / best["product and exponentials"], 3),
    }


def memory(n_images: int = 100_000, n_negatives: int = 2000) -> dict[str, dict[str, int]]:
    """Bytes that each method holds, and the process's peak, at a tenth of a stream and at its end."""
    generator = torch.Generator().manual_seed(0)
    text = text_rows(N_ID + n_negatives, 64, generator)
    found = {}
    for name, kind in DETECTORS.items():
        if not kind.info.keeps_state:
            continue
        further = {"noise_features": text[:15]} if "noise_features" in kind.input_names() else {}
        detector = make_detector(name, text, N_ID, **further)
        told = {}
        for number in range(0, n_images, BATCH):
            rows = torch.randint(len(text), (BATCH,), generator=generator)
            detector.score(images_near(text, rows, generator))
            if number // BATCH in (n_images // BATCH // 10, (n_images - 1) // BATCH):
                held = sum(value.numel() * value.element_size() for value in detector.buffers())
                told[f"{number:,} images"] = {"held": held, "peak MiB": round(_high_water())}
        found[kind.info.title] = told
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--memory", action="store_true", help="stream 100,000 images past each method")
    parser.add_argument("--json", help="write the numbers here")
    args = parser.parse_args()
    result: dict[str, Any] = {"threads": torch.get_num_threads()}
    for title, n_negatives in SIZES.items():
        result[title] = measure(n_negatives, args.steps)
    if args.memory:
        result["memory"] = memory()
    text = json.dumps(result, indent=2)
    print(text)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
