"""What the benchmarks share: features with CLIP's cosines, filled detectors, timing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from adaneg_openood import MCM, AdaNeg, AdaNegConfig, FeatureBank, NegLabel

# the released implementation's names of the scores
_SCORE = {
    "combine": "combine",
    "adaonly": "adaptive",
    "vanillaonly": "neglabel",
    "multiply": "multiply",
}
METHODS = ("MCM", "NegLabel", "AdaNeg (task)", "AdaNeg (sample)")


def make(method: str, text: Tensor, n_id: int, memory_length: int = 10) -> Any:
    if method == "MCM":
        return MCM(text, n_id)
    if method == "NegLabel":
        return NegLabel(text, n_id)
    proxy = "sample" if "sample" in method else "task"
    return AdaNeg(text, n_id, config=AdaNegConfig(proxy=proxy, memory_length=memory_length))


def text_rows(n: int, dim: int, generator: torch.Generator) -> Tensor:
    return normalize(torch.randn(n, dim, generator=generator), dim=1)


def images_near(text: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Unit vectors at a cosine of about 0.3 to their row, as CLIP images are to their caption."""
    noise = normalize(torch.randn(len(rows), text.shape[1], generator=generator), dim=1)
    return normalize(text[rows] * 0.31 + noise * 0.95, dim=1)


def some_rows(
    n: int, n_id: int, per_side: tuple[int, int], capacity: int, generator: torch.Generator
) -> Tensor:
    """n rows, half of them ID, each at most ``capacity`` times, over the first rows of each side."""
    sides = []
    for first, n_rows in ((0, per_side[0]), (n_id, per_side[1])):
        slots = torch.arange(first, first + n_rows).repeat_interleave(capacity)
        sides.append(slots[torch.randperm(len(slots), generator=generator)[: n // 2]])
    return torch.cat(sides)


def fill(bank: FeatureBank, rows: Tensor, text: Tensor, generator: torch.Generator) -> None:
    """Cache images near their rows in batches, as a stream does, so that it has its spare room."""
    images, entropies = images_near(text, rows, generator), torch.rand(len(rows), generator=generator)
    for part in torch.arange(len(rows)).split(256):
        bank.add(rows[part], images[part], entropies[part], text[rows[part]])


def snapshot(bank: FeatureBank) -> dict[str, Any]:
    """Everything a bank holds, with its spare room."""
    buffers = {name: buffer.clone() for name, buffer in bank.named_buffers()}
    return {**buffers, "n_cached": bank.n_cached, "n_active": bank.n_active}


def restore(bank: FeatureBank, saved: Mapping[str, Any]) -> None:
    for name, value in saved.items():
        setattr(bank, name, value.clone() if isinstance(value, Tensor) else value)


def best_ms(run: Callable[[], object], repeats: int = 9) -> float:
    """Shortest time of a call, in milliseconds, after two that warm up."""
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times[2:])


def golden_config(case: Mapping[str, Any], **changed: Any) -> AdaNegConfig:
    """A case's arguments, in the released implementation's names, as a configuration."""
    args = case["args"]
    return AdaNegConfig.released(
        gamma=args["thres"],
        gap=args["gap"],
        memory_length=args["memleng"],
        lam=args["lambdaval"],
        beta=args["beta"],
        groups=args["group_num"],
        permute=args["random_permute"],
        proxy="sample" if args["samada"] else "task",
        score=_SCORE[args["in_score"]],
        adagap=case["cls"] == "adagap",
        **changed,
    )
