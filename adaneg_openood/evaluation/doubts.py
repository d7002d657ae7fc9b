"""Where a run's numbers say less than they seem to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from adaneg_openood.evaluation.metrics import FEW_IMAGES, RankedScores
from adaneg_openood.evaluation.stream_result import StreamResult
from adaneg_openood.evaluation.streams import Protocol

_TIED = 0.05  # of the images of either side, as much as an FPR@95 gives away
_FEW_HITS = 10  # that guessing would get, below which chance explains an accuracy


def doubts(streams: Mapping[tuple[str, str, int], StreamResult], protocol: Protocol) -> tuple[str, ...]:
    """One line per kind of trouble and method.

    Args:
        streams: (method, OOD set, seed) -> scores.
        protocol: that they were made by.
    """
    met: dict[tuple[str, str], list[tuple[str, str]]] = {}
    few: dict[str, int] = {}
    for (method, dataset, _), result in streams.items():
        if min(result.n_id, result.n_ood) < FEW_IMAGES:
            few[dataset] = min(result.n_id, result.n_ood)
        several = len(protocol.seeds) > 1 and (method, dataset, protocol.seeds[1]) in streams
        told: dict[str, str] = {}
        if several and protocol.order == "mixed" and len(result.label) <= protocol.batch_size:
            told["one batch"] = (
                f"{len(result.label)} images are one batch of at most {protocol.batch_size}, so the "
                f"{len(protocol.seeds)} orders hardly differ and their spread says nothing; take a "
                "smaller batch size"
            )
        told.update(_of_scores(result))
        told.update((result.diagnosis or {}).get("warnings", {}))
        for kind, text in told.items():
            met.setdefault((method, kind), []).append((dataset, text))
    lines = []
    if few:
        sets = ", ".join(f"{dataset}: {number}" for dataset, number in few.items())
        lines.append(
            f"few images of ID or of OOD ({sets}): of fewer than {FEW_IMAGES}, one alone decides "
            "the threshold of an FPR@95 and moves AUROC by points"
        )
    for (method, kind), found in met.items():
        n_streams = f"{len(found)} stream{'s' * (len(found) > 1)}"
        lines.append(f"{method}, {kind} ({', '.join(dict(found))}; {n_streams}): {found[0][1]}")
    return tuple(lines)


def _of_scores(result: StreamResult) -> Iterator[tuple[str, str]]:
    """Kind and text of what the scores of a stream do not say."""
    if np.ptp(result.conf) == 0:
        yield (
            "all scores equal",
            f"every image has the score {result.conf[0]:g}, so AUROC is 50 and both FPR@95 are 100 "
            "whatever the images",
        )
    else:
        counts = RankedScores(result.conf, result.label == -1).counts()
        shares = np.stack([counts.n_id / result.n_id, counts.n_ood / result.n_ood])
        tied_id, tied_ood = shares[:, shares.min(axis=0).argmax()]
        if min(tied_id, tied_ood) >= _TIED:
            yield (
                "ties",
                f"{tied_id:.0%} of the ID and {tied_ood:.0%} of the OOD images have the same score, so "
                "FPR@95 may rest on ties",
            )
    n_classes, right = int(result.label.max()) + 1, int((result.pred == result.label).sum())
    if result.n_id >= _FEW_HITS * n_classes and right < 0.5 * result.n_id / n_classes:
        yield (
            "accuracy below chance",
            f"{right} of {result.n_id} ID images get their class, fewer than by guessing; the labels "
            "may be in another order than the class names",
        )
