"""Steps of fixed shape as CUDA graphs: one launch per batch in place of a hundred."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_WARM_UPS = 3  # eager steps of a shape before it is captured; libraries set themselves up in them
_MOST_GRAPHS = 2  # shapes kept: each holds the memory of its step's intermediate values

Step = Callable[[Tensor], "tuple[Tensor | None, ...]"]


class GraphedStep:
    """A step that is replayed as a CUDA graph for batches of a shape that comes often.

    The first batches of a shape run eagerly, which warms libraries up; then the step is captured, which
    runs nothing, and replayed from there on. Other shapes, such as a stream's last batch, and other
    devices than CUDA run eagerly, and give the same numbers. So does a step that cannot be captured.

    Args:
        step: a method, (B, D) features -> tensors, or None where there is none. It must be of fixed
            shape: no value of a tensor may be read by the host, no shape may depend on one, and state
            must be written in place.
    """

    def __init__(self, step: Step) -> None:
        # weak, so that a detector is freed when nobody holds it, and not by the garbage collector: a
        # graph that is freed while another is captured spoils the other
        self._method = weakref.WeakMethod(step)
        self._seen: dict[Any, int] = {}
        self._captured: dict[Any, tuple[Any, Tensor, tuple[Tensor | None, ...]]] = {}
        self._fails = False

    def forget(self) -> None:
        """Drop the graphs, because the state's addresses have changed."""
        self._seen.clear()
        self._captured.clear()

    def __call__(self, features: Tensor) -> tuple[Tensor | None, ...]:
        step = self._method()
        assert step is not None  # its detector is what calls
        key = (tuple(features.shape), features.dtype, features.device)
        if key not in self._captured:
            self._seen[key] = self._seen.get(key, 0) + 1
            if not self._may_capture(features) or self._seen[key] <= _WARM_UPS:
                return step(features)
            try:
                self._captured[key] = _captured(step, features)
            except RuntimeError as error:
                self._fails = True
                logger.warning("no CUDA graph, the steps run one kernel at a time: %s", error)
                return step(features)
        graph, given, made = self._captured[key]
        given.copy_(features)
        graph.replay()
        # the next replay writes over its own
        return tuple(value if value is None else value.clone() for value in made)

    def _may_capture(self, features: Tensor) -> bool:
        return (
            features.device.type == "cuda"
            and not self._fails
            and len(self._captured) < _MOST_GRAPHS
            and not torch.cuda.is_current_stream_capturing()
        )


def _captured(step: Step, features: Tensor) -> tuple[Any, Tensor, tuple[Tensor | None, ...]]:
    given = features.clone()
    graph = torch.cuda.CUDAGraph()
    collects = gc.isenabled()
    gc.disable()  # see GraphedStep.__init__
    try:
        # other threads, such as one that pins memory, may go on meanwhile
        with torch.cuda.device(features.device):
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                made = step(given)
    finally:
        if collects:
            gc.enable()
    return graph, given, made
