"""Scoring: the blockwise argmax equals torch's, ties included."""

from __future__ import annotations

import pytest
import torch

from adaneg_openood.detectors.scoring import row_argmax


@pytest.mark.parametrize("n", [1, 7, 8, 9, 15, 16, 17, 40, 41])
def test_row_argmax_is_the_first_of_equals(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    values = torch.randint(0, 4, (200, n), generator=generator).float()
    first = [row.index(max(row)) for row in values.tolist()]
    assert row_argmax(values, width=8).tolist() == first
    assert row_argmax(values[:0], width=8).tolist() == []
