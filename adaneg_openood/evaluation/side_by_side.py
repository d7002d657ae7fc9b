"""Several detectors over one stream, at less than the price of several streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from adaneg_openood.detectors import AdaNeg, Scores
from adaneg_openood.detectors.base import TextReading
from adaneg_openood.evaluation.streams import Detector, run_stream


class _Together:
    """Detectors as one: scores of all, side by side; AdaNegs that read the same share one reading."""

    def __init__(self, detectors: Sequence[Detector]) -> None:
        self.detectors = detectors
        self.scores: list[list[Any]] = [[] for _ in detectors]
        # what decides a reading, beside the text that all detectors of one feature set share
        self.kinds = [
            (detector.groups, detector.permute, detector.text_features.dtype)
            if isinstance(detector, AdaNeg)
            else None
            for detector in detectors
        ]
        # the last one of a kind may use its reading's memory up
        self.last = {kind: place for place, kind in enumerate(self.kinds)}

    def reset(self) -> None:
        for detector in self.detectors:
            detector.reset()

    def score(self, features: torch.Tensor) -> Any:
        readings: dict[Any, TextReading] = {}
        for place, (detector, kind) in enumerate(zip(self.detectors, self.kinds)):
            if not isinstance(detector, AdaNeg):
                self.scores[place].append(detector.score(features))
                continue
            if kind not in readings:
                readings[kind] = detector.read(features)
            keep = self.last[kind] != place
            self.scores[place].append(detector.score_reading(readings[kind], keep=keep))
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
