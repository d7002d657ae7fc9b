"""Several detectors over one stream, at less than the price of several streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from adaneg_openood.detectors import AdaNeg, Scores
from adaneg_openood.detectors.grouped import TextLogits
from adaneg_openood.evaluation.streams import Detector, run_stream


class _Together:
    """Detectors as one: scores of all, side by side; AdaNegs that compare alike share one comparison."""

    def __init__(self, detectors: Sequence[Detector]) -> None:
        self.detectors = detectors
        self.scores: list[list[Any]] = [[] for _ in detectors]
        # what decides a comparison, beside the text that all detectors of one feature set share
        self.kinds = [
            (detector.groups, detector.permute, detector.text_features.dtype)
            if isinstance(detector, AdaNeg)
            else None
            for detector in detectors
        ]

    def reset(self) -> None:
        for detector in self.detectors:
            detector.reset()

    def score(self, features: torch.Tensor) -> Any:
        compared: dict[Any, TextLogits] = {}
        for place, (detector, kind) in enumerate(zip(self.detectors, self.kinds)):
            if not isinstance(detector, AdaNeg) or self.kinds.count(kind) == 1:
                self.scores[place].append(detector.score(features))
                continue
            if kind not in compared:
                compared[kind] = detector.compare_text(features)
            self.scores[place].append(detector.score(features, compared[kind]))
        return self.scores[0][-1]


def run_side_by_side(
    detectors: Sequence[Detector], features: torch.Tensor, order: np.ndarray, batch_size: int
) -> list[Scores]:
    """What each detector gives alone on a stream.

    Args:
        detectors: of one feature set, at least one. Each is reset first, and left with the stream's
            state.
        features: (N, D), concat(OOD, ID).
        order: (N,) a permutation.
        batch_size: images a batch.

    Returns:
        (N,) scores of each detector on the CPU, entry i belonging to ``features[i]``.

    Raises:
        ValueError: as :func:`~adaneg_openood.evaluation.run_stream`.
    """
    together = _Together(detectors)
    run_stream(together, features, order, batch_size)
    index = torch.from_numpy(np.asarray(order, dtype=np.int64))
    return [
        Scores(*(_placed(parts, name, index) for name in ("pred", "conf", "s_neglabel", "s_adaptive")))
        for parts in together.scores
    ]


def _placed(parts: Sequence[Any], name: str, index: torch.Tensor) -> Any:
    values: list[Any] = [getattr(part, name, None) for part in parts]
    if values[0] is None:
        return None
    streamed = torch.cat(values).cpu()
    placed = torch.empty_like(streamed)
    placed[index] = streamed
    return placed
