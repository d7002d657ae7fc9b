"""Alignment: every comparison with the stream's ID scores is kept, so every metric is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaneg_openood.evaluation import ood_metrics
from adaneg_openood.openood.alignment import align, extend_scale, reference_scale

# few values, so that ties between and within ID and OOD are the rule
COARSE = st.integers(0, 12).map(lambda k: k / 4)
FINE = st.floats(-3, 3, allow_nan=False, width=32)
OOD = st.lists(st.one_of(COARSE, FINE), min_size=1, max_size=30)


def distinct(values: list[float]) -> np.ndarray:
    return np.array(sorted(set(values)))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.one_of(COARSE, FINE), min_size=1, max_size=30, unique=True),
    OOD,
    st.lists(FINE, min_size=30, max_size=30),
    st.randoms(use_true_random=False),
)
def test_keeps_every_comparison(
    id_scores: list[float], ood: list[float], other: list[float], rng: object
) -> None:
    stream_id, stream_ood = np.array(id_scores), np.array(ood)
    reference = reference_scale(np.array(other[: len(id_scores)]))
    moved = align(stream_id, stream_ood, reference)
    # sorted ID scores of both scales correspond
    own, ref = np.sort(stream_id), np.sort(reference)
    np.testing.assert_array_equal(
        np.sign(stream_ood[:, None] - own[None, :]), np.sign(moved[:, None] - ref[None, :])
    )
    np.testing.assert_array_equal(
        np.sign(stream_ood[:, None] - stream_ood[None, :]), np.sign(moved[:, None] - moved[None, :])
    )
    label = np.concatenate([np.full(len(ood), -1), np.zeros(len(id_scores), dtype=int)])
    direct = ood_metrics(np.concatenate([stream_ood, stream_id]), label, np.zeros_like(label))
    aligned = ood_metrics(np.concatenate([moved, reference]), label, np.zeros_like(label))
    assert aligned == pytest.approx(direct, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.lists(COARSE, min_size=1, max_size=30), OOD)
def test_ties_of_the_reference_are_kept_where_they_agree(
    id_scores: list[float], ood: list[float]
) -> None:
    """A reference tied just as the stream is: all comparisons again."""
    stream_id, stream_ood = np.array(id_scores), np.array(ood)
    reference = 2.0 * stream_id + 1.0
    moved = align(stream_id, stream_ood, reference)
    np.testing.assert_array_equal(
        np.sign(stream_ood[:, None] - stream_id), np.sign(moved[:, None] - reference)
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(COARSE, min_size=1, max_size=30), OOD)
def test_ties_the_reference_does_not_have_keep_the_auroc(
    id_scores: list[float], ood: list[float]
) -> None:
    stream_id, stream_ood = np.array(id_scores), np.array(ood)
    reference = reference_scale(stream_id)
    moved = align(stream_id, stream_ood, reference)
    label = np.concatenate([np.full(len(ood), -1), np.zeros(len(id_scores), dtype=int)])
    direct = ood_metrics(np.concatenate([stream_ood, stream_id]), label, np.zeros_like(label))
    aligned = ood_metrics(np.concatenate([moved, reference]), label, np.zeros_like(label))
    assert aligned["AUROC"] == pytest.approx(direct["AUROC"], abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(COARSE, FINE), min_size=1, max_size=40))
def test_reference_scale_keeps_order_and_parts_ties(scores: list[float]) -> None:
    values = np.array(scores, dtype=np.float64)
    scale = reference_scale(values)
    assert len(np.unique(scale)) == len(values)
    order = np.argsort(values, kind="stable")
    assert (np.diff(scale[order]) > 0).all()
    # no score moves by more than the room all the scores need
    assert np.abs(scale - values).max() <= 1e-5 * len(values)


@settings(max_examples=100, deadline=None)
@given(st.lists(COARSE, min_size=1, max_size=20), st.lists(COARSE, min_size=1, max_size=20))
def test_extended_scale_orders_all_scores(known: list[float], more: list[float]) -> None:
    old, new = np.array(known), np.array(more)
    reference = reference_scale(old)
    placed = extend_scale(new, old, reference)
    everything = np.concatenate([reference, placed])
    assert len(np.unique(everything)) == len(everything)
    scores = np.concatenate([old, new])
    sign = np.sign(scores[:, None] - scores)
    where = sign != 0
    assert (np.sign(everything[:, None] - everything)[where] == sign[where]).all()


def test_saturated_scores_of_many_images_have_room() -> None:
    """50,000 ID images at one score, as a saturated softmax gives, and as many OOD images between."""
    rng = np.random.default_rng(0)
    stream_id = rng.random(50_000)
    moved = align(stream_id, rng.random(50_000), reference_scale(np.ones(50_000)))
    assert len(np.unique(moved)) == 50_000


@pytest.mark.parametrize(
    ("stream_id", "stream_ood", "reference", "message"),
    [
        ([1.0], [0.0], [1.0, 2.0], "must be"),
        ([], [0.0], [], "no ID score"),
        ([1.0], [np.nan], [1.0], "stream_ood holds values"),
        ([1.0, 2.0], [1.5], [1.0, 1.0], "no room"),
    ],
)
def test_bad_input(
    stream_id: list[float], stream_ood: list[float], reference: list[float], message: str
) -> None:
    if message == "no room":
        stream_ood = [1.4, 1.5]
    with pytest.raises(ValueError, match=message):
        align(np.array(stream_id), np.array(stream_ood), np.array(reference))
