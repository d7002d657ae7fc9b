"""Scoring: sums, argmax and entropies equal torch's in float64, whatever the range of the logits."""

from __future__ import annotations

import pytest
import torch

from adaneg_openood.detectors.scoring import (
    grouped_logits,
    id_entropy,
    nearest_negatives,
    negative_entropy,
    replaced_logits,
    row_argmax,
    summed_id_probabilities,
)

N_ID, N_NEG = 7, 32
TINY = torch.finfo(torch.float32).tiny


def logits_of(scale: float, rows: int = 60) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, N_ID + N_NEG, generator=generator) * scale


def expected_lse(logits: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids, negatives = logits.double()[:, :N_ID], logits.double()[:, N_ID:]
    kept = N_NEG - N_NEG % groups
    return ids.logsumexp(1), negatives[:, :kept].unflatten(1, (groups, -1)).logsumexp(2)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 15, 16, 17, 40, 41])
def test_row_argmax_is_the_first_of_equals(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    values = torch.randint(0, 4, (200, n), generator=generator).float()
    first = [row.index(max(row)) for row in values.tolist()]
    assert row_argmax(values, width=8).tolist() == first
    assert row_argmax(values[:0], width=8).tolist() == []


@pytest.mark.parametrize("groups", [1, 3, 5, 20, 32])
def test_nearest_negative_is_the_first_of_equals(groups: int) -> None:
    logits = torch.randint(0, 3, (200, N_ID + N_NEG), generator=torch.Generator().manual_seed(1)).float()
    sums = grouped_logits(logits, N_ID, groups)
    first = [row.index(max(row)) for row in logits[:, N_ID:].tolist()]
    assert nearest_negatives(sums.max_parts, sums.exp_neg, groups).tolist() == first


@pytest.mark.parametrize("scale", [1.0, 30.0, 300.0])
@pytest.mark.parametrize("groups", [1, 5, 20])
def test_sums_are_exact_and_meet_no_denormals(scale: float, groups: int) -> None:
    """Numbers below float32's normal range are 30 to 90 times slower on CPUs."""
    logits = logits_of(scale)
    sums = grouped_logits(logits, N_ID, groups)
    lse_id, lse_groups = expected_lse(logits, groups)
    torch.testing.assert_close(sums.lse_id.double(), lse_id, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(sums.lse_groups.double(), lse_groups, rtol=1e-6, atol=1e-5)
    all_negatives = logits.double()[:, N_ID:].logsumexp(1)
    torch.testing.assert_close(sums.lse_neg.double(), all_negatives, rtol=1e-6, atol=1e-5)
    for values in (sums.exp_id, sums.exp_neg):
        assert float(values.min()) >= TINY
    in_place = grouped_logits(logits.clone(), N_ID, groups, keep_negatives=False)
    assert all(torch.equal(a, b) for a, b in zip(sums, in_place))


@pytest.mark.parametrize("scale", [1.0, 30.0, 300.0])
@pytest.mark.parametrize("groups", [1, 5, 20])
def test_replaced_columns(scale: float, groups: int) -> None:
    logits, others = logits_of(scale), logits_of(scale).flip(0)
    columns = torch.randperm(N_ID + N_NEG, generator=torch.Generator().manual_seed(2))[:25]
    after = logits.clone()
    after[:, columns] = others[:, columns]
    text = grouped_logits(logits, N_ID, groups)
    got = replaced_logits(text, logits[:, :N_ID].clone(), columns, others[:, columns].T, groups)
    lse_id, lse_groups = expected_lse(after, groups)
    torch.testing.assert_close(got.lse_id.double(), lse_id, rtol=1e-6, atol=1e-5)
    # where the largest of a group is replaced by far less, what stays lies below what float32 can hold
    near = (lse_groups - text.lse_groups.double()) > -60
    torch.testing.assert_close(got.lse_groups.double()[near], lse_groups[near], rtol=1e-6, atol=2e-5)
    assert float(near.float().mean()) > 0.5


@pytest.mark.parametrize("scale", [1.0, 30.0, 300.0])
def test_entropies(scale: float) -> None:
    logits = logits_of(scale)
    sums = grouped_logits(logits, N_ID, 5)
    for side, got in (
        (slice(0, N_ID), id_entropy(sums.exp_id.clone(), sums.sum_id)),
        (slice(N_ID, None),
         negative_entropy(sums.exp_neg.clone(), sums.max_parts, sums.sum_parts, 5)),
    ):  # fmt: skip
        p = logits.double()[:, side].softmax(1)
        expected = -(p * (p + 1e-8).log()).sum(1)
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=2e-7)


def test_classes_of_images_that_no_label_fits() -> None:
    """Their probabilities are below what float32 can hold, and yet one is the largest."""
    logits = torch.zeros(1, N_ID + N_NEG)
    logits[0, 3], logits[0, -1] = 5.0, 300.0
    sums = grouped_logits(logits, N_ID, 5)
    assert summed_id_probabilities(sums, sums, 0.1).argmax(1).item() == 3
