"""Cost of N configurations: as N runs, and as one sweep. ``python -m benchmarks.sweep``.

Random features of ImageNet's shape (C 1000, M 10,000, D 512) stand for the cache; half of the images
lie near ID names and half near negatives, so that banks fill as in a stream. The sweep is compared with
as many calls of ``evaluate`` on the same features, and must give the same numbers. A run without a cache
would encode the images too, which takes longer by far and is not timed here.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch.nn.functional import normalize

from adaneg_openood import AdaNeg
from adaneg_openood.evaluation import FeatureSet, Protocol, replay
from adaneg_openood.evaluation.sweep import grid_configs, sweep

C, M, D = 1000, 10_000, 512
GRID = {"gamma": [0.3, 0.4, 0.5, 0.6, 0.7], "gap": [0.0, 0.1, 0.5], "proxy": ["task", "sample"]}


def make_data(n_images: int) -> FeatureSet:
    generator = torch.Generator().manual_seed(0)

    def unit(values: torch.Tensor) -> torch.Tensor:
        return normalize(values, dim=1)

    text = unit(torch.randn(C + M, D, generator=generator))
    half = n_images // 2
    labels = torch.randint(C, (half,), generator=generator)

    def near(rows: torch.Tensor) -> torch.Tensor:
        noise = unit(torch.randn(len(rows), D, generator=generator))
        return unit(0.31 * text[rows] + 0.95 * noise)

    ood = near(C + torch.randint(M, (half,), generator=generator))
    return FeatureSet(text, C, near(labels), labels, far={"ood": ood})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = make_data(arguments.images)
    configs = grid_configs(GRID)
    told = {"configurations": len(configs), "images": arguments.images, "threads": arguments.threads}

    # one untimed step each, so that lazy imports and first allocations count for neither
    small = make_data(256)
    sweep(small, {}, seeds=(0,))
    replay(small, {"x": AdaNeg(small.text_features, C)}, Protocol(seeds=(0,)), progress=False)

    begun = time.perf_counter()
    result = sweep(data, GRID, seeds=(0,))
    told["sweep_s"] = time.perf_counter() - begun
    begun = time.perf_counter()
    alone = []
    for config in configs:
        detector = AdaNeg(data.text_features, C, config=config)
        alone.append(
            replay(data, {"x": detector}, Protocol(seeds=(0,)), progress=False).records["AUROC"][0]
        )
    told["single_runs_s"] = time.perf_counter() - begun
    assert alone == list(result.records["AUROC"]), "a sweep must equal single runs"
    detector = AdaNeg(data.text_features, C)
    images = torch.cat([data.far["ood"], data.id_features])
    begun = time.perf_counter()
    for batch in images.split(256):
        detector.compare_text(batch)
    told["one_reading_s"] = time.perf_counter() - begun
    told["ratio"] = told["single_runs_s"] / told["sweep_s"]
    for key, value in told.items():
        print(f"{key:<16} {value:.3g}" if isinstance(value, float) else f"{key:<16} {value}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(told, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
