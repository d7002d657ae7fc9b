"""Metrics: hand-computed cases, ties, OpenOOD's own numbers, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adaneg_openood.evaluation import ood_metrics
from adaneg_openood.evaluation.metrics import CONVENTIONS, METRICS

# Largest conf first: I O I I O O I O O O, 4 ID and 6 OOD images.
CONF = np.array([0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
LABEL = np.array([0, -1, 1, 2, -1, -1, 3, -1, -1, -1])
PRED = np.array([0, 5, 1, 2, 5, 5, 0, 5, 5, 5])


def test_ten_images_by_hand() -> None:
    got = ood_metrics(CONF, LABEL, PRED)
    expected = {
        # 6 OOD images: 95 % means all. The highest has rank 2, so ID ranks 3, 4, 7 are flagged.
        "FPR@95": 100 * 3 / 4,
        # 4 ID images: all kept. The lowest has rank 7, so OOD ranks 2, 5, 6 are accepted.
        "FPR@95 (ID positive)": 100 * 3 / 6,
        # 24 pairs, in the wrong order: OOD above ID rank 3: 1, rank 4: 1, rank 7: 3.
        "AUROC": 100 * 19 / 24,
        # (recall, precision): (0, 1) (1/4, 1) (1/4, 1/2) (2/4, 2/3) (3/4, 3/4) (3/4, 1/2) (1, 4/7)
        # trapezoids of width 1/4: 1, 7/12, 17/24, 15/28
        "AUPR_IN": 100 * (1 + 7 / 12 + 17 / 24 + 15 / 28) / 4,
        # from the low end O O O I O O I I O I: precision 1 up to recall 3/6, then
        # (3/6, 3/4) (4/6, 4/5) (5/6, 5/6) (5/6, 5/8) (1, 6/9)
        # trapezoids of width 1/6: 31/40, 49/60, 31/48
        "AUPR_OUT": 100 * (3 + 31 / 40 + 49 / 60 + 31 / 48) / 6,
        "ACC": 75.0,  # the image of class 3 is called 0
    }
    assert list(got) == list(expected) == list(METRICS) == list(CONVENTIONS)
    assert got == pytest.approx(expected, abs=1e-12)
    assert all(type(value) is float for value in got.values())


def test_ten_images_with_ties_by_hand() -> None:
    # conf 3: 3 ID, 1 OOD;  conf 2: 1 ID, 1 OOD;  conf 1: 1 ID, 3 OOD
    conf = np.array([3, 3, 3, 3, 2, 2, 1, 1, 1, 1])
    label = np.array([0, 0, 0, -1, 0, -1, 0, -1, -1, -1])
    got = ood_metrics(conf, label, np.zeros(10, dtype=int))
    # Pairs won, ties half: 3 x (4 + 1/2) + (3 + 1/2) + 3/2 = 18.5 of 25.
    assert got["AUROC"] == pytest.approx(74.0)
    # Detecting the OOD image at 3 flags every ID image; keeping the ID image at 1 accepts all.
    assert got["FPR@95"] == 100.0
    assert got["FPR@95 (ID positive)"] == 100.0
    # (0, 1) (3/5, 3/4) (4/5, 4/6) (1, 1/2): 0.6 x 7/8 + 0.2 x 17/24 + 0.2 x 7/12 = 47/60
    assert got["AUPR_IN"] == pytest.approx(100 * 47 / 60)
    assert got["AUPR_OUT"] == pytest.approx(100 * 47 / 60)  # the mirror image
    assert got["ACC"] == 100.0


def test_all_equal_scores() -> None:
    got = ood_metrics(np.full(10, 0.3), LABEL, PRED)
    assert got["AUROC"] == 50.0
    assert got["FPR@95"] == got["FPR@95 (ID positive)"] == 100.0
    # (0, 1) and (1, share of the class): 4/10 are ID, 6/10 OOD
    assert got["AUPR_IN"] == pytest.approx(70.0)
    assert got["AUPR_OUT"] == pytest.approx(80.0)


def test_perfect_separation() -> None:
    conf = np.where(LABEL == -1, 0.0, 1.0)
    got = ood_metrics(conf, LABEL, np.where(LABEL == -1, 0, LABEL))
    assert got == pytest.approx({**dict.fromkeys(METRICS, 100.0), **dict.fromkeys(METRICS[:2], 0)})


def test_collinear_roc_points_are_left_out_as_in_openood() -> None:
    # OOD found: 18 of 20, then 19 and 20 with one ID image each. The point (1/4, 19/20) lies on the
    # line from (0, 18/20) to (2/4, 1) and is left out, so the FPR is 2/4 and not 1/4.
    conf = np.array([0.0] * 18 + [1, 1] + [2, 2] + [3, 3])
    label = np.array([-1] * 18 + [-1, 0] + [-1, 0] + [0, 0])
    assert ood_metrics(conf, label, np.zeros(len(label), dtype=int))["FPR@95"] == 50.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_torch_and_numpy_agree(dtype: torch.dtype) -> None:
    conf = torch.from_numpy(CONF).to(dtype)
    got = ood_metrics(conf, torch.from_numpy(LABEL), torch.from_numpy(PRED))
    assert got == ood_metrics(conf.double().numpy(), LABEL, PRED)


def test_predictions_of_ood_images_do_not_matter() -> None:
    other = np.where(LABEL == -1, -7, PRED)
    assert ood_metrics(CONF, LABEL, other) == ood_metrics(CONF, LABEL, PRED)


def test_global_state_is_untouched() -> None:
    state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    options = np.get_printoptions()
    ood_metrics(CONF, LABEL, PRED)
    assert np.array_equal(state, np.random.get_state()[1])
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.get_printoptions() == options


@pytest.mark.parametrize(
    ("conf", "label", "pred", "message"),
    [
        (CONF[:9], LABEL, PRED, "conf: 9, label: 10"),
        (CONF[:, None], LABEL, PRED, r"conf must be 1-d.*\(10, 1\)"),
        (CONF, LABEL, np.array(3), "pred must be 1-d"),
        (np.where(CONF == 0.8, np.nan, CONF), LABEL, PRED, r"NaN or infinite in 1 row\(s\): 2"),
        (np.where(CONF > 0.8, np.inf, CONF), LABEL, PRED, r"2 row\(s\): 0, 1"),
        (np.full(10, -np.inf), LABEL, PRED, r"10 row\(s\): 0, .*7, \.\.\."),
        (CONF, np.full(10, -1), PRED, "no ID image"),
        (CONF, np.zeros(10, dtype=int), PRED, "no OOD image"),
        (np.empty(0), np.empty(0, dtype=int), np.empty(0, dtype=int), "no ID image"),
        (CONF, LABEL - 1, PRED, r"below -1 in 6 row\(s\)"),
        (CONF, LABEL + 0.5, PRED, "label must be integers"),
        (CONF, LABEL, PRED + 0.5, "pred must be integers"),
        (CONF.astype(str), LABEL, PRED, "conf must be real"),
    ],
)
def test_bad_input(conf: np.ndarray, label: np.ndarray, pred: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ood_metrics(conf, label, pred)


def test_equals_openood() -> None:
    try:
        from openood.evaluators.metrics import compute_all_metrics
    except Exception as error:  # its package imports much, and fails in many ways
        pytest.skip(f"openood.evaluators.metrics cannot be imported: {error!r}")
    generator = np.random.default_rng(0)
    printing = np.get_printoptions()
    try:
        for case in range(60):
            n = int(generator.integers(2, 300))
            label = generator.integers(-1, 4, n)
            label[:2] = -1, 1
            conf = generator.normal(size=n) + (label >= 0)
            if case % 3 == 0:
                conf = conf.round(case % 2)
            pred = generator.integers(0, 4, n)
            got = ood_metrics(conf, label, pred)
            mine = [got[key] for key in ("FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT", "ACC")]
            assert mine == [100 * float(value) for value in compute_all_metrics(conf, label, pred)]
    finally:
        np.set_printoptions(**printing)  # OpenOOD changes it
