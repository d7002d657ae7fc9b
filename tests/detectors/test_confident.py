"""What AdaNeg says of its memory: when it warns, and with which figures."""

from __future__ import annotations

import pytest
import torch

from adaneg_openood.detectors.confident import BankDiagnosis, ConfidentImages, diagnose

N_ID, N_NEGATIVES, GROUPS = 10, 50, 5


def told(n_id: int, n_negative: int, right: float = 1.0, n_classes: int = N_ID) -> BankDiagnosis:
    """After so many confident images of either side, each right with that probability."""
    tally = ConfidentImages()
    is_id = torch.arange(n_id + n_negative) < n_id
    tally.observe(is_id, ~is_id, torch.where(is_id, right, 1 - right))
    held = torch.zeros(n_classes + N_NEGATIVES, dtype=torch.long)
    held[:2], held[n_classes] = 3, 4
    return diagnose(held, tally, n_classes, GROUPS)


def test_a_good_memory_is_described_without_a_warning() -> None:
    found = told(60, 40)
    assert (found.images, found.cached, found.warnings) == (100, 10, {})
    assert (found.id_rows, found.negative_rows) == (pytest.approx(0.2), pytest.approx(0.02))
    assert found.id_share == pytest.approx(
        61 / 102, rel=1e-3
    )  # each side starts with one image of even odds
    assert found.id_purity == pytest.approx(60.5 / 61, rel=1e-3)


def test_each_warning_has_its_figures() -> None:
    assert "97% of the confident images fall on the ID side" in told(65, 1).warnings["lopsided stream"]
    assert "30 images for 10 ID names" in told(20, 10).warnings["short stream"]
    uneven = told(600, 600, n_classes=100).warnings
    assert "100 ID names stand against 10 negatives per group" in uneven["uneven sides"]
    impure = told(60, 40, right=0.6).warnings
    assert set(impure) == {"impure ID side", "impure negative side"}
    said = (
        "of about 41 images that were taken for the negative side only 60% are expected to belong there"
    )
    assert impure["impure negative side"].startswith(said)


def test_a_share_of_a_few_images_is_no_warning() -> None:
    assert set(told(60, 15, right=0.5).warnings) == {"impure ID side"}
