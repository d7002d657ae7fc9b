"""Several detectors over one stream, at less than the price of several streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaneg_openood.detectors import AdaNeg
from adaneg_openood.evaluation import run_stream
from adaneg_openood.evaluation.streams import Detector, StreamScores


class _Readings:
    """The current batch, compared with the labels' text once a kind of text."""

    def __init__(self) -> None:
        self.batch: Tensor | None = None
        self.by_text: dict[Any, Any] = {}

    def score(self, detector: AdaNeg, batch: Tensor) -> Any:
        if batch is not self.batch:
            self.batch, self.by_text = batch, {}
        # what decides a reading, beside the text that all trials on one feature set share
        key = (detector.groups, detector.permute, detector.text_features.dtype)
        if key not in self.by_text:
            self.by_text[key] = detector.read(batch)
        return detector.score_reading(self.by_text[key], keep=True)


class _Together:
    """Detectors as one: scores of all, side by side."""

    def __init__(self, detectors: Sequence[Detector]) -> None:
        self.detectors = detectors
        self.readings = _Readings()
        self.scores: list[list[Any]] = [[] for _ in detectors]

    def reset(self) -> None:
        for detector in self.detectors:
            detector.reset()

    def score(self, features: Tensor) -> Any:
        for detector, kept in zip(self.detectors, self.scores):
            if isinstance(detector, AdaNeg):
                kept.append(self.readings.score(detector, features))
            else:
                kept.append(detector.score(features))
        return self.scores[0][-1]


def run_side_by_side(
    detectors: Sequence[Detector], features: Tensor, order: np.ndarray, batch_size: int
) -> list[StreamScores]:
    """What :func:`~adaneg_openood.evaluation.run_stream` gives for each detector alone.

    Args:
        detectors: each is reset first; AdaNegs of one feature set share the text logits.
        features: (N, D), concat(OOD, ID).
        order: (N,) a permutation.
        batch_size: images a batch.

    Raises:
        ValueError: as ``run_stream``.
    """
    if not detectors:
        return []
    together = _Together(detectors)
    run_stream(together, features, order, batch_size)
    found = []
    for scores in together.scores:
        conf = torch.cat([part.conf for part in scores]).cpu().numpy()
        pred = torch.cat([part.pred for part in scores]).cpu().numpy()
        placed = StreamScores(np.empty_like(pred), np.empty_like(conf))
        placed.pred[order], placed.conf[order] = pred, conf
        found.append(placed)
    return found
