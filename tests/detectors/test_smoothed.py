"""SmoothedNegLabel: the prototype's outputs, its witnesses, and that it does no harm."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from golden_cases import GOLDEN, arrays, tensor
from test_fixed_bank import NothingReadBack
from torch.nn.functional import normalize

from adaneg_openood.detectors import NegLabel
from adaneg_openood.detectors.otsu import ScoreWindow, exact_split
from adaneg_openood.detectors.smoothed import SmoothedNegLabel, witnesses
from benchmarks.worlds import LOGIT_SCALE, World

CASES = json.loads((GOLDEN / "smoothed.json").read_text())


@pytest.fixture(scope="module")
def saved() -> dict:
    return {**arrays(GOLDEN / "inputs.npz"), **arrays(GOLDEN / "smoothed.npz")}


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_golden(case: dict, saved: dict) -> None:
    name = case["name"]
    text, images = {
        "synthetic": ("text", "image"),
        "open": ("open__text", "open__image"),
        "blurred": ("open__text", "blurred__image"),
    }[name.split("_")[0]]
    detector = SmoothedNegLabel(
        tensor(saved[text]),
        case["n_id"],
        case["logit_scale"],
        groups=case["groups"],
        window=case["window"],
    )
    confs, preds, gates = [], [], []
    for batch in tensor(saved[images]).split(case["batch_size"]):
        scores = detector.score(batch)
        confs.append(scores.conf)
        preds.append(scores.pred)
        gates.append(float(detector.gate))
    np.testing.assert_allclose(torch.cat(confs), saved[f"{name}__conf"], atol=1e-4, rtol=0)
    np.testing.assert_array_equal(torch.cat(preds), saved[f"{name}__pred"])
    np.testing.assert_allclose(gates, saved[f"{name}__gate"], atol=1e-5, rtol=0)
    assert max(gates) == pytest.approx(case["gate_max"], abs=1e-5)


def test_with_the_gate_shut_the_ranking_is_neglabels() -> None:
    text, images, _, ood = World(seed=3, n_id=300, n_ood=300).features()
    plain = NegLabel(text, 20, logit_scale=LOGIT_SCALE)
    smoothed = SmoothedNegLabel(text, 20, LOGIT_SCALE)
    for stream in (images, ood, torch.cat([images[:10], ood[:21]])):  # no OOD, no ID, too few
        smoothed.reset()
        for batch in stream.split(64):
            scores, expected = smoothed.score(batch), plain.score(batch)
            assert smoothed.gate == 0.0
            assert torch.equal(scores.pred, expected.pred)
            odds = torch.special.logit(expected.conf.double()).float()
            shift = scores.conf - odds
            assert shift.max() - shift.min() < 2e-3, "the same but for a constant"
            torch.testing.assert_close(scores.s_neglabel, expected.conf)


def test_evidence_is_zero_where_no_label_fits_better() -> None:
    text, image = normalize(torch.ones(110, 4), dim=1), normalize(torch.ones(1, 4), dim=1)
    detector = SmoothedNegLabel(text, 10, groups=4)
    scores = detector.score(image)
    assert scores.s_neglabel.item() == pytest.approx(10 / (10 + 25))
    assert scores.conf.item() == pytest.approx(0.0, abs=1e-5)
    assert detector.shown(scores.conf).item() == pytest.approx(0.5)


@pytest.mark.parametrize("batch_size", [1, 64, 200])
def test_a_frozen_stream_gives_finite_numbers(batch_size: int) -> None:
    text, images, *_ = World(seed=3, n_id=50, n_ood=10).features()
    detector = SmoothedNegLabel(text, 20, LOGIT_SCALE)
    for batch in images[:1].expand(200, -1).split(batch_size):
        scores = detector.score(batch)
        assert torch.isfinite(scores.conf).all() and detector.gate == 0.0
    assert torch.isfinite(detector.neighbours).all()
    for batch in images.split(batch_size):  # and it goes on after that
        assert torch.isfinite(detector.score(batch).conf).all()


def test_a_batch_larger_than_half_the_window_is_scored_in_pieces() -> None:
    text, images, _, ood = World(seed=5).features()
    stream = torch.cat([images, ood])[torch.randperm(800, generator=torch.Generator().manual_seed(0))]
    whole, pieces = (SmoothedNegLabel(text, 20, LOGIT_SCALE, window=201) for _ in range(2))
    conf = torch.cat([pieces.score(batch).conf for batch in stream[:450].split(100)])
    torch.testing.assert_close(whole.score(stream[:450]).conf, conf, rtol=0, atol=2e-4)
    assert torch.equal(whole.seen, pieces.seen) and int(whole.seen) == 450
    tiny = SmoothedNegLabel(text, 20, LOGIT_SCALE, window=1)
    assert torch.isfinite(tiny.score(stream[:5]).conf).all()


def test_images_beyond_the_window_are_forgotten() -> None:
    text, images, _, ood = World(seed=6).features()
    one, other = (SmoothedNegLabel(text, 20, LOGIT_SCALE, window=128) for _ in range(2))
    for batch in ood[:128].split(32):
        one.score(batch)
    last = torch.cat([images[:64], ood[200:264]])
    for batch in last.split(32):
        one.score(batch)
        other.score(batch)
    # what is held is the same; what was stored of neighbours is not
    torch.testing.assert_close(one.evidence, other.evidence)
    assert torch.equal(one.held, other.held)
    assert not torch.allclose(one.neighbours, other.neighbours)


def test_a_step_reads_nothing_back_and_bad_rows_leave_no_trace() -> None:
    text, images, _, ood = World(seed=7).features()
    stream = torch.cat([images, ood])[torch.randperm(800, generator=torch.Generator().manual_seed(0))]
    one, other = (SmoothedNegLabel(text, 20, LOGIT_SCALE, window=100) for _ in range(2))
    for batch in stream.split(40):
        broken = torch.cat([batch[:5], torch.full_like(batch[:2], torch.nan), batch[5:]])
        with NothingReadBack():  # as on CUDA, where bad rows are found while they are scored
            conf = other._score(broken).conf
        good = torch.cat([conf[:5], conf[7:]])
        torch.testing.assert_close(good, one.score(batch).conf, rtol=0, atol=1e-4)
    assert int(other.seen) == 800 and torch.isfinite(other.state_dict()["held"]).all()


def _told(own: torch.Tensor, theirs: torch.Tensor, mcm: torch.Tensor) -> tuple[float, ...]:
    room = torch.zeros(40, dtype=torch.float64)  # slots not in use
    full = [torch.cat([values.double(), room]) for values in (own, theirs, mcm)]
    return tuple(float(value) for value in witnesses(*full, torch.tensor(len(own))))


def test_witnesses_say_what_they_are_defined_as() -> None:
    generator = torch.Generator().manual_seed(0)
    own = torch.cat([torch.randn(60, generator=generator) - 5, torch.randn(50, generator=generator) + 4])
    theirs = 0.8 * own + 0.6 * torch.randn(110, generator=generator)
    mcm = torch.where(own > 0, 0.8, 0.3)
    eta, r, rho, gate = _told(own, theirs, mcm)
    assert r == pytest.approx(np.corrcoef(own, theirs)[0, 1], abs=1e-6)
    assert rho == pytest.approx(0.3 / 0.8)
    lower = own < 0
    share = lower.double().mean()
    between = share * (1 - share) * (own[lower].double().mean() - own[~lower].double().mean()) ** 2
    assert eta == pytest.approx(float(between / own.double().var(correction=0)), abs=1e-6)
    assert eta > 0.8 and r > 0.86 and gate == 1.0
    # each of the witnesses shuts the gate alone
    assert _told(torch.randn(110, generator=generator), theirs, mcm)[-1] == 0.0
    assert _told(own, torch.randn(110, generator=generator), mcm)[-1] == 0.0
    assert _told(own, theirs, 1.1 - mcm)[-1] == 0.0
    assert _told(own[40:71], theirs[40:71], mcm[40:71])[-1] == 0.0, "31 images are too few"
    assert _told(own[40:72], theirs[40:72], mcm[40:72])[-1] > 0.0
    assert _told(torch.ones(110), theirs, mcm)[-1] == _told(own, torch.ones(110), mcm)[-1] == 0.0


def test_the_exact_split_is_the_best_of_all() -> None:
    values = torch.tensor([3.0, -1.0, 0.5, 4.0, 0.4, 9.0, 9.0], dtype=torch.float64)
    for n in (2, 4, 7):
        best = None
        ordered = values[:n].sort().values
        for cut in range(1, n):
            low, high = ordered[:cut], ordered[cut:]
            between = cut * (n - cut) / n**2 * float(low.mean() - high.mean()) ** 2
            if best is None or between > best[0]:
                best = (between, float(ordered[cut - 1] + ordered[cut]) / 2)
        split = exact_split(values, torch.tensor(n))
        variance = float(values[:n].var(correction=0))
        assert float(split.theta) == pytest.approx(best[1])
        assert float(split.eta) == pytest.approx(best[0] / variance)
        assert float(split.variance) == pytest.approx(variance)


def _plain_threshold(scores: list[float]) -> float:
    """Otsu's threshold by its definition."""
    values, found = np.array(scores, dtype=np.float32), {}
    for i in range(100):
        upper = values >= np.float32(i) / np.float32(100)
        if 0 < upper.sum() < len(values):
            parts = [values[upper].astype(float), values[~upper].astype(float)]
            key = sum(len(part) * part.var() for part in parts) / len(values)
            found.setdefault((round(key, 12), int(upper.sum())), []).append(i)
    if not found:
        return 0.5
    tied = found[min(found)]
    return tied[len(tied) // 2] / 100


@pytest.mark.parametrize("window", [1, 7, 50])
def test_a_window_of_scores_gives_otsus_threshold(window: int) -> None:
    generator = torch.Generator().manual_seed(window)
    scores, held = ScoreWindow(window), []
    assert float(scores.threshold()) == 0.5
    for _ in range(60):
        n = int(torch.randint(12, (), generator=generator))
        new = torch.rand(n, generator=generator) ** 3
        new[::4] = (new[::4] * 100).round() / 100  # on the edges of bins
        entering = torch.rand(n, generator=generator) < 0.8
        held = [*held, *new[entering].tolist()][-window:]
        scores.enter(new, entering)
        assert float(scores.threshold()) == pytest.approx(_plain_threshold(held), abs=1e-6)
    for value in (0.0, 1.0):
        scores.enter(torch.full((window,), value), torch.ones(window, dtype=torch.bool))
        assert float(scores.threshold()) == 0.5


def test_a_broken_first_image_leaves_a_state_that_loads() -> None:
    text, images, *_ = World(seed=3, n_id=50, n_ood=10).features()
    first, second = (SmoothedNegLabel(text, 20, LOGIT_SCALE) for _ in range(2))
    with first._exactly():  # as on CUDA, where bad rows are found while they are scored
        first._step(torch.full_like(images[:1], torch.nan))
    second.load_state_dict(first.state_dict())
    plain = SmoothedNegLabel(text, 20, LOGIT_SCALE)
    assert torch.equal(second.score(images).conf, plain.score(images).conf)
