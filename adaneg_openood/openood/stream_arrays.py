"""Arrays of scores that remember their streams, so that an evaluator's concatenation is exact.

OpenOOD's evaluators join ID and OOD scores by ``np.concatenate([id_conf, ood_conf])`` right before the
metrics are computed. Their values are aligned (see :mod:`alignment`) and exact but for one case: ID
images tied in one stream and not in another. No fixed vector of ID scores can serve both. Therefore the
arrays also know which image sets they stand for, and numpy's own protocol for array subclasses
(``__array_function__``) lets that one concatenation return the scores of the set's own mixed stream. The
same holds for predictions, and for full-spectrum evaluation, where covariate-shifted ID sets are
concatenated to the ID set first. Everything else - slices, arithmetic, saving, pickling - sees a plain
array of the aligned scores.
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple, Optional

import numpy as np

Parts = tuple[Any, ...]
# (keys of the ID sets) -> (N_id + N_ood,) array, ID sets first, in the order given
Replay = Callable[[Parts], np.ndarray]


class Origin(NamedTuple):
    """What an array stands for.

    Attributes:
        owner: arrays of different owners (evaluations, conf and pred) are never joined.
        parts: keys of the ID sets, in order; empty for OOD scores.
        replay: for OOD scores, gives the stream's values.
    """

    owner: Any
    parts: Parts = ()
    replay: Optional[Replay] = None  # noqa: UP045 - evaluated at run time on Python 3.9


class StreamArray(np.ndarray):
    """A 1-d array with an :class:`Origin`; made by :func:`stream_array`."""

    _origin: Origin | None

    def __array_finalize__(self, source: Any) -> None:
        self._origin = None  # a slice or a result of arithmetic stands for nothing

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func is np.concatenate and len(args) == 1 and kwargs in ({}, {"axis": 0}):
            joined = _joined(list(args[0]))
            if joined is not None:
                return joined
        return func(*_plain(args), **_plain(kwargs))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.view(np.ndarray).__reduce_ex__(protocol)  # a saved array remembers nothing


def stream_array(values: np.ndarray, origin: Origin) -> np.ndarray:
    """``values`` as a :class:`StreamArray` of that origin."""
    array = np.array(values).view(StreamArray)
    array._origin = origin
    return array


def _joined(arrays: list[Any]) -> np.ndarray | None:
    """The concatenation, if all arrays belong together and at most the last holds OOD scores."""
    origins: list[Origin] = [
        array._origin for array in arrays if isinstance(array, StreamArray) and array._origin is not None
    ]
    if not origins or len(origins) < len(arrays) or len({origin.owner for origin in origins}) > 1:
        return None
    *id_origins, last = origins
    if any(origin.replay is not None for origin in id_origins):
        return None
    parts = tuple(part for origin in origins for part in origin.parts)
    if last.replay is not None:
        return last.replay(parts) if parts else None
    values = np.concatenate([np.asarray(array) for array in arrays])
    return stream_array(values, Origin(last.owner, parts))


def _plain(value: Any) -> Any:
    """Stream arrays as plain ones, inside sequences and mappings too."""
    if isinstance(value, StreamArray):
        return value.view(np.ndarray)
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        # a named tuple (numpy returns some) is left to itself
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
