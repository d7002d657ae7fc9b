"""Arrays that keep their streams: one concatenation is special, everything else is plain numpy."""

from __future__ import annotations

import copy
import gc
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaneg_openood.openood.stream_arrays import (
    IDSet,
    Stream,
    StreamArray,
    announce,
    id_array,
    ood_array,
)

A, B = IDSet("a", 2, "digest of a"), IDSet("b", 1, "digest of b")


def arrays(owner: str = "one") -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Any]]:
    asked: list[Any] = []

    def run(id_sets: tuple[IDSet, ...]) -> dict[str, np.ndarray]:
        asked.append(id_sets)
        conf = np.array([10.0 * len(id_sets) + k for k in range(sum(part.size for part in id_sets) + 1)])
        return {"conf": conf, "pred": conf.astype(np.int64)}

    nan = np.full(2, np.nan)
    first, second = id_array(nan, "conf", owner, A), id_array(nan[:1], "conf", owner, B)
    return first, second, ood_array(Stream("odd", owner, run), "conf", (A,)), asked


@pytest.mark.parametrize("axis", [{}, {"axis": 0}])
def test_joined_sets_give_their_stream(axis: dict[str, int]) -> None:
    first, second, ood, asked = arrays()
    assert ood.tolist() == [12.0]
    assert np.concatenate([first, ood], **axis).tolist() == [10.0, 11.0, 12.0]
    joined = np.concatenate((first, second), **axis)
    result = np.concatenate([joined, ood], **axis)
    assert result.tolist() == [20.0, 21.0, 22.0, 23.0]
    assert type(result) is np.ndarray
    assert np.concatenate([first, ood])[0] == 10.0
    assert asked == [(A,), (A, B)], "each stream is computed once"


def test_everything_else_sees_plain_values() -> None:
    first, _, ood, asked = arrays()
    for joined in (
        np.concatenate([first[:], ood]),
        np.concatenate([first + 0, ood]),
        np.concatenate([np.asarray(first), ood]),
        np.concatenate([first.copy(), ood]),
    ):
        assert type(joined) is np.ndarray
        np.testing.assert_array_equal(joined, [np.nan, np.nan, 12.0])  # no number passes for another
    assert np.concatenate([ood, ood]).tolist() == [12.0, 12.0]
    assert np.concatenate([ood]).tolist() == [12.0]
    assert np.concatenate([first, ood], dtype=np.float32).dtype == np.float32
    assert np.stack([first, first]).shape == (2, 2)
    assert np.unique(ood).tolist() == [12.0]
    assert (ood == np.array([12.0])).sum() == 1
    assert copy.deepcopy(ood).tolist() == [12.0]
    assert asked == [(A,)]


def test_values_are_a_copy() -> None:
    values = np.array([1.0])
    array = id_array(values, "pred", "one", B)
    array[0] = 5.0
    assert isinstance(array, StreamArray)
    assert values[0] == 1.0


def test_other_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a \(2 images\) are joined with scores of other settings"):
        np.concatenate([arrays("one")[0], arrays("two")[2]])


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_saved_arrays_keep_their_stream_and_refuse_another(protocol: int) -> None:
    gc.collect()
    first, second, ood = pickle.loads(pickle.dumps(arrays()[:3], protocol))
    assert np.concatenate([first, ood]).tolist() == [10.0, 11.0, 12.0]
    with pytest.raises(ValueError, match=r"saved scores of odd .* a \(2 images\), .*a \(2.* \+ b \(1"):
        np.concatenate([first, second, ood])

    class Postprocessor:
        settings = "one"

        def owner(self) -> str:
            return self.settings

    living = Postprocessor()
    announce(living)
    assert np.concatenate([first, ood]).tolist() == [10.0, 11.0, 12.0]
    living.settings = "others"
    with pytest.raises(ValueError, match="other settings or text features than this run's"):
        np.concatenate([first, ood])


def test_savez_writes_the_id_scores_of_the_stream(tmp_path: Path) -> None:
    first, _, ood, _ = arrays()
    np.savez(tmp_path / "id", conf=first, label=np.zeros(2))
    np.savez(tmp_path / "odd", conf=ood, label=np.array([-1]))
    with np.load(tmp_path / "odd.npz") as saved:
        assert sorted(saved) == ["conf", "id_conf", "label"]
        assert [*saved["id_conf"], *saved["conf"]] == [10.0, 11.0, 12.0]
    with np.load(tmp_path / "id.npz") as saved:
        assert np.isnan(saved["conf"]).all()
