"""Arrays that know their streams: one concatenation is special, everything else is plain numpy."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from adaneg_openood.openood.stream_arrays import Origin, StreamArray, stream_array


def arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Any]]:
    asked: list[Any] = []

    def replay(parts: tuple[Any, ...]) -> np.ndarray:
        asked.append(parts)
        return np.array([100.0 * len(parts)])

    first = stream_array(np.array([1.0, 2.0]), Origin("one", ("a",)))
    second = stream_array(np.array([3.0]), Origin("one", ("b",)))
    ood = stream_array(np.array([0.5]), Origin("one", (), replay))
    return first, second, ood, asked


@pytest.mark.parametrize("axis", [{}, {"axis": 0}])
def test_joined_sets_give_their_stream(axis: dict[str, int]) -> None:
    first, second, ood, asked = arrays()
    assert np.concatenate([first, ood], **axis).tolist() == [100.0]
    joined = np.concatenate((first, second), **axis)
    assert joined.tolist() == [1.0, 2.0, 3.0]
    result = np.concatenate([joined, ood], **axis)
    assert result.tolist() == [200.0]
    assert type(result) is np.ndarray
    assert asked == [("a",), ("a", "b")]


def test_everything_else_sees_plain_values() -> None:
    first, _, ood, asked = arrays()
    other = stream_array(np.array([9.0]), Origin("another", ("a",)))
    for joined in (
        np.concatenate([first[:], ood]),
        np.concatenate([first + 0, ood]),
        np.concatenate([np.asarray(first), ood]),
        np.concatenate([first.copy(), ood]),
    ):
        assert type(joined) is np.ndarray
        assert joined.tolist() == [1.0, 2.0, 0.5]
    assert np.concatenate([ood, first]).tolist() == [0.5, 1.0, 2.0]
    assert np.concatenate([other, ood]).tolist() == [9.0, 0.5]
    assert np.concatenate([ood]).tolist() == [0.5]
    assert np.concatenate([first, ood], dtype=np.float32).dtype == np.float32
    assert np.stack([first, first]).shape == (2, 2)
    assert np.unique(first).tolist() == [1.0, 2.0]
    assert (first == np.array([1.0, 0.0])).sum() == 1
    assert copy.deepcopy(first).tolist() == [1.0, 2.0]
    assert not asked


def test_values_are_a_copy() -> None:
    values = np.array([1.0])
    array = stream_array(values, Origin("one", ("a",)))
    array[0] = 5.0
    assert isinstance(array, StreamArray)
    assert values[0] == 1.0
