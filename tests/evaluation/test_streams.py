"""Streams: order, positions, batches, resets."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evaluation_fakes import Cosine, Drifting, make_data
from hypothesis import given
from hypothesis import strategies as st

from adaneg_openood.evaluation import run_stream, stream_order

DATA = make_data()
FEATURES = torch.cat([DATA.near["ssb"], DATA.id_features])


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 2**32))
def test_mixed_is_a_reproducible_permutation(n_ood: int, n_id: int, seed: int) -> None:
    order = stream_order(n_ood, n_id, seed)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(n_ood + n_id))
    assert np.array_equal(order, np.random.default_rng(seed).permutation(n_ood + n_id))


def test_id_first() -> None:
    assert stream_order(2, 3, 7, "id_first").tolist() == [2, 3, 4, 0, 1]
    assert stream_order(2, 3, 7, "id_first").dtype == np.int64


def test_order_leaves_global_generators_alone() -> None:
    np.random.seed(3)
    state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    first = stream_order(10, 20, 0)
    np.random.seed(4)
    assert np.array_equal(first, stream_order(10, 20, 0))
    np.random.seed(3)
    assert np.array_equal(state, np.random.get_state()[1])
    assert torch.equal(torch_state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2, 3, 0, "ood_first"), "order must be one of 'mixed', 'id_first', got 'ood_first'"),
        ((-1, 3, 0), "n_ood must be >= 0, got -1"),
        ((1, 3, -2), "seed must be >= 0, got -2"),
    ],
)
def test_bad_order(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stream_order(*arguments)


@pytest.mark.parametrize("batch_size", [1, 7, 30, 100])
def test_scores_return_to_their_positions(batch_size: int) -> None:
    detector, seen = Cosine(DATA), []
    order = stream_order(10, 20, seed=1)
    got = run_stream(detector, FEATURES, order, batch_size, seen.append)
    expected = Cosine(DATA).score(FEATURES)
    assert np.array_equal(got.pred, expected.pred.numpy())
    assert np.allclose(got.conf, expected.conf.numpy(), atol=1e-6)
    assert got.pred.dtype == np.int64 and got.conf.dtype == np.float32
    assert torch.equal(torch.cat(detector.batches), FEATURES[torch.from_numpy(order)])
    assert sum(seen) == 30 and max(seen) == min(batch_size, 30)


def test_detector_is_reset_at_the_start() -> None:
    detector, order = Drifting(DATA), stream_order(10, 20, seed=1)
    first = run_stream(detector, FEATURES, order, 8)
    again = run_stream(detector, FEATURES, order, 8)
    assert detector.streams == 2 and np.array_equal(first.conf, again.conf)


def test_low_precision_and_empty() -> None:
    detector = Cosine(make_data(text_features=DATA.text_features.bfloat16()))
    got = run_stream(detector, FEATURES.bfloat16(), np.arange(30), 8)
    assert got.conf.dtype == np.float32
    empty = run_stream(detector, FEATURES[:0].bfloat16(), np.empty(0, dtype=np.int64), 8)
    assert len(empty.pred) == len(empty.conf) == 0


@pytest.mark.parametrize(
    ("order", "batch_size", "message"),
    [
        (np.arange(29), 8, "every index from 0 to 29 once"),
        (np.zeros(30, dtype=int), 8, "every index"),
        (np.arange(30.0), 8, "1-d integers"),
        (np.arange(30), 0, "batch_size must be at least 1"),
    ],
)
def test_bad_stream(order: np.ndarray, batch_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_stream(Cosine(DATA), FEATURES, order, batch_size)


def test_detector_with_wrong_shapes() -> None:
    class Wrong(Cosine):
        def score(self, features: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(pred=torch.zeros(1), conf=features[:, 0])

    with pytest.raises(ValueError, match=r"Wrong.score must return pred of shape \(8,\)"):
        run_stream(Wrong(DATA), FEATURES, np.arange(30), 8)
