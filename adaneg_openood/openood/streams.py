"""The replay of an OOD set's stream with the ID images, from features that were computed once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from adaneg_openood.evaluation.streams import Detector, run_stream, stream_order
from adaneg_openood.openood.images import EncodedSet


class MixedStream:
    """Scores of one OOD set and any ID sets, as one stream; computed when first asked for.

    Args:
        make_detector: gives a detector with this evaluation's settings.
        ood: the OOD set.
        order: of :func:`~adaneg_openood.evaluation.streams.stream_order`.
        seed: of the shuffle.
        batch_size: images a batch.
    """

    def __init__(
        self,
        make_detector: Callable[[], Detector],
        ood: EncodedSet,
        order: str,
        seed: int,
        batch_size: int,
    ) -> None:
        self._make_detector = make_detector
        self._ood, self._order, self._seed, self._batch_size = ood, order, seed, batch_size
        self._done: dict[tuple[int, ...], dict[str, np.ndarray]] = {}
        self._lock = threading.Lock()

    def values(self, kind: str, id_sets: tuple[EncodedSet, ...]) -> np.ndarray:
        """(N_id + N_ood,) ``"conf"`` float64 or ``"pred"`` int64: ID sets in the order given, OOD."""
        key = tuple(id(id_set) for id_set in id_sets)
        with self._lock:
            if key not in self._done:
                self._done[key] = self._run(id_sets)
            return self._done[key][kind]

    def _run(self, id_sets: tuple[EncodedSet, ...]) -> dict[str, np.ndarray]:
        features = torch.cat([self._ood.features, *(id_set.features for id_set in id_sets)])
        n_ood = len(self._ood.features)
        order = stream_order(n_ood, len(features) - n_ood, self._seed, self._order)
        scores = run_stream(self._make_detector(), features, order, self._batch_size)
        return {
            "conf": _id_first(scores.conf.astype(np.float64), n_ood),
            "pred": _id_first(scores.pred, n_ood),
        }


def _id_first(values: Any, n_ood: int) -> np.ndarray:
    return np.concatenate([values[n_ood:], values[:n_ood]])
