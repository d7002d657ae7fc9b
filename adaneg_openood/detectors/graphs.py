"""Steps of fixed shape as CUDA graphs: one launch per batch in place of a hundred."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_WARM_UPS = 3  # eager steps of a shape before it is captured; libraries set themselves up in them
_MOST_GRAPHS = 2  # shapes kept: each holds the memory of its step's intermediate values

Step = Callable[[Tensor], "tuple[Tensor | None, ...]"]


class GraphedStep:
    """A step that is replayed as a CUDA graph for batches of a shape that comes often.

    The first batches of a shape run eagerly, which warms libraries up; then the step is captured, which
    runs nothing, and replayed from there on. Other shapes, such as a stream's last batch, and other
    devices than CUDA run eagerly, and give the same numbers.

    Args:
        step: (B, D) features -> tensors, or None where there is none. It must be of fixed shape: no
            value of a tensor may be read by the host, no shape may depend on one, and state must be
            written in place.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._seen: dict[Any, int] = {}
        self._captured: dict[Any, tuple[Any, Tensor, tuple[Tensor | None, ...]]] = {}

    def forget(self) -> None:
        """Drop the graphs, because the state's addresses have changed."""
        self._seen.clear()
        self._captured.clear()

    def __call__(self, features: Tensor) -> tuple[Tensor | None, ...]:
        key = (tuple(features.shape), features.dtype, features.device)
        if features.device.type != "cuda" or torch.cuda.is_current_stream_capturing():
            return self._step(features)
        if key not in self._captured:
            self._seen[key] = self._seen.get(key, 0) + 1
            if self._seen[key] <= _WARM_UPS or len(self._captured) >= _MOST_GRAPHS:
                return self._step(features)
            self._captured[key] = self._capture(features)
        graph, given, made = self._captured[key]
        given.copy_(features)
        graph.replay()
        # the next replay writes over its own
        return tuple(value if value is None else value.clone() for value in made)

    def _capture(self, features: Tensor) -> tuple[Any, Tensor, tuple[Tensor | None, ...]]:
        given = features.clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(features.device), torch.cuda.graph(graph):
            made = self._step(given)
        return graph, given, made

    # a copy captures anew: a graph belongs to the addresses it was made of

    def __deepcopy__(self, memo: Any) -> None:
        raise TypeError("a GraphedStep is bound to one detector; its owner makes a new one")
