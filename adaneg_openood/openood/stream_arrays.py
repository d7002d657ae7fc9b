"""Scores that belong to a stream, in the arrays that OpenOOD passes around.

Under the mixed protocol an ID image has one score for every OOD set, because each OOD set is scored as
one shuffled stream with the ID images. OpenOOD's evaluators hold one array of ID scores, and join it
with an OOD set's by ``np.concatenate([id_conf, ood_conf])`` right before they compute the metrics.
Therefore the array of an OOD set keeps the scores of its whole stream, the array of an ID set holds NaN
and says which set it stands for, and numpy's protocol for array subclasses (``__array_function__``) lets
that one concatenation return the stream's scores, ID images first. So the metrics are those of the
stream, ties included. ID arrays that are joined with each other (full-spectrum evaluation) stand for
all their sets, and a stream is computed for the sets that it is joined with. A pickled array keeps its
streams, ``np.savez`` writes the ID scores beside the OOD set's own, and scores that were saved with
other ID sets or settings are refused.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable

import numpy as np


@dataclass(frozen=True)
class IDSet:
    """An ID set as a stream knows it: name, number of images, digest of their features."""

    name: str
    size: int
    digest: str


# ID sets -> {"conf": (N_id + N_ood,) floats, "pred": (N_id + N_ood,) int64}, ID sets first, in order
Run = Callable[[tuple[IDSet, ...]], "dict[str, np.ndarray]"]
_postprocessors: weakref.WeakSet[Any] = weakref.WeakSet()


class Stream:
    """The scores of one OOD set together with ID sets; computed when first asked for, and kept.

    Args:
        name: of the OOD set, for messages.
        owner: what gives the scores beside the images: settings and text features.
        run: computes the scores; None for a stream that was loaded.
        done: ID sets -> scores that are there already.
    """

    def __init__(self, name: str, owner: str, run: Run | None, done: Any = ()) -> None:
        self.name, self.owner, self._run = name, owner, run
        self._done: dict[tuple[IDSet, ...], dict[str, np.ndarray]] = dict(done)

    def values(self, kind: str, id_sets: tuple[IDSet, ...]) -> np.ndarray:
        """(N_id + N_ood,) ``"conf"`` or ``"pred"``: the ID sets in the order given, then the OOD set.

        Raises:
            ValueError: a loaded stream that has other ID sets, or other settings than this process.
        """
        if self._run is None:
            self._refuse_others(id_sets)
        elif id_sets not in self._done:
            self._done[id_sets] = self._run(id_sets)
        return self._done[id_sets][kind]

    def id_scores(self, kind: str) -> np.ndarray:
        """(N_id,) ``"conf"`` or ``"pred"`` of the ID sets it was last computed with."""
        id_sets = next(reversed(self._done))
        return self._done[id_sets][kind][: _count(id_sets)]

    def _refuse_others(self, id_sets: tuple[IDSet, ...]) -> None:
        living = [postprocessor.owner() for postprocessor in _postprocessors]
        if living and self.owner not in living:
            trouble = "were made with other settings or text features than this run's"
        elif id_sets not in self._done:
            made = " or ".join(_named(known) for known in self._done)
            trouble = f"belong to a stream with {made}, and are joined with {_named(id_sets)} now"
        else:
            return
        raise ValueError(
            f"the saved scores of {self.name} {trouble}. Remove the file of saved scores, or "
            "evaluate as it was made: the same settings, the same images, with or without --fsood."
        )

    def __reduce__(self) -> Any:
        return Stream, (self.name, self.owner, None, self._done)


@dataclass(frozen=True)
class Origin:
    """What an array stands for: ID sets, or the OOD set of a stream; its kind is "conf" or "pred"."""

    kind: str
    owner: str
    id_sets: tuple[IDSet, ...] = ()
    stream: Stream | None = None


class StreamArray(np.ndarray):
    """A 1-d array with an :class:`Origin`; made by :func:`id_array` and :func:`ood_array`."""

    origin: Origin | None

    def __array_finalize__(self, source: Any) -> None:
        self.origin = None  # a slice or a result of arithmetic stands for nothing

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func is np.concatenate and len(args) == 1 and kwargs in ({}, {"axis": 0}):
            joined = _joined(list(args[0]))
            if joined is not None:
                return joined
        if func in (np.savez, np.savez_compressed):
            origins = {name: _origin(array) for name, array in kwargs.items()}
            of_id = {
                f"id_{name}": origin.stream.id_scores(origin.kind)
                for name, origin in origins.items()
                if origin is not None and origin.stream is not None
            }
            kwargs = {**of_id, **kwargs}
        return func(*_plain(args), **_plain(kwargs))

    def __reduce_ex__(self, protocol: Any) -> Any:
        plain = self.view(np.ndarray)
        if self.origin is None:
            return plain.__reduce_ex__(protocol)
        return _array, (plain, self.origin)


def id_array(values: np.ndarray, kind: str, owner: str, id_set: IDSet) -> np.ndarray:
    """The array of an ID set; ``values`` are seen where it is not joined with an OOD set's."""
    return _array(values, Origin(kind, owner, (id_set,)))


def ood_array(stream: Stream, kind: str, id_sets: tuple[IDSet, ...]) -> np.ndarray:
    """The array of an OOD set: (N_ood,) of its stream with ``id_sets``."""
    values = stream.values(kind, id_sets)[_count(id_sets) :]
    return _array(values, Origin(kind, stream.owner, (), stream))


def announce(postprocessor: Any) -> None:
    """Let loaded scores be compared with ``postprocessor.owner()``, while it lives."""
    _postprocessors.add(postprocessor)


def _array(values: np.ndarray, origin: Origin) -> np.ndarray:
    array = np.array(values).view(StreamArray)
    array.origin = origin
    return array


def _origin(value: Any) -> Any:
    return value.origin if isinstance(value, StreamArray) else None


def _joined(arrays: Sequence[Any]) -> np.ndarray | None:
    """The concatenation of ID arrays, or of them and an OOD set's; None for anything else."""
    origins = [_origin(array) for array in arrays]
    if None in origins or any(origin.stream is not None for origin in origins[:-1]):
        return None
    id_sets = tuple(id_set for origin in origins for id_set in origin.id_sets)
    last: Origin = origins[-1]
    if not id_sets or len({origin.kind for origin in origins}) > 1:
        return None
    if len({origin.owner for origin in origins}) > 1:
        raise ValueError(
            f"scores of {_named(id_sets)} are joined with scores of other settings or text features. "
            "Where some come from a file, remove it."
        )
    if last.stream is not None:
        return last.stream.values(last.kind, id_sets).copy()
    values = np.concatenate([np.asarray(array) for array in arrays])
    return _array(values, Origin(last.kind, last.owner, id_sets))


def _count(id_sets: tuple[IDSet, ...]) -> int:
    return sum(id_set.size for id_set in id_sets)


def _named(id_sets: tuple[IDSet, ...]) -> str:
    return " + ".join(f"{id_set.name} ({id_set.size} images)" for id_set in id_sets)


def _plain(value: Any) -> Any:
    """Stream arrays as plain ones, inside sequences and mappings too."""
    if isinstance(value, StreamArray):
        return value.view(np.ndarray)
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
