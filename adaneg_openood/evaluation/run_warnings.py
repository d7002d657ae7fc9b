"""Where a number says less than it seems to, in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from adaneg_openood.evaluation.stream_result import StreamResult


def run_warnings(
    streams: Mapping[tuple[str, str, int], StreamResult],
    seeds: Sequence[int],
    batch_size: int,
    order: str,
) -> tuple[str, ...]:
    """One line per method and kind of trouble, with the sets and the number of streams it was met in.

    Args:
        streams: by method, OOD set and seed.
        seeds, batch_size, order: of the run's protocol.
    """
    first: dict[tuple[str, str], str] = {}
    met: dict[tuple[str, str], list[str]] = {}
    for method, kind, dataset, text in _found(streams, seeds, batch_size, order):
        first.setdefault((method, kind), text)
        met.setdefault((method, kind), []).append(dataset)
    lines = []
    for (method, kind), text in first.items():
        sets = ", ".join(dict.fromkeys(met[method, kind]))
        times = len(met[method, kind])
        lines.append(f"{method}, {kind} ({sets}; {times} stream{'s' * (times > 1)}): {text}")
    return tuple(lines)


def _found(
    streams: Mapping[tuple[str, str, int], StreamResult], seeds: Sequence[int], size: int, order: str
) -> Iterator[tuple[str, str, str, str]]:
    """Method, kind, OOD set and text of everything that is met, stream by stream."""
    n_seeds = len(seeds)
    for (method, dataset, _), result in streams.items():
        n = len(result.label)
        several = n_seeds > 1 and (method, dataset, seeds[1]) in streams
        if several and n <= size and order == "mixed":
            yield (
                method,
                "one batch",
                dataset,
                f"{n} images are one batch of at most {size}, so the {n_seeds} orders hardly differ and "
                f"their spread says nothing; take a smaller batch size",
            )
        if np.ptp(result.conf) == 0:
            yield (
                method,
                "all scores equal",
                dataset,
                f"every image has the score {result.conf[0]:g}, so AUROC is 50 and both FPR@95 are 100 "
                "whatever the images",
            )
        for kind, text in (result.diagnosis or {}).get("warnings", {}).items():
            yield method, kind, dataset, text
