"""Bootstrap intervals and paired tests against brute force and known answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluation_fakes import Drifting, StatelessCosine, make_data

from adaneg_openood.evaluation import (
    Protocol,
    bootstrap_intervals,
    intervals,
    ood_metrics,
    paired_bootstrap,
    replay,
)
from adaneg_openood.evaluation.intervals import BOOTSTRAPPED, draws
from adaneg_openood.evaluation.metrics import RankedScores


def scores(n: int, shift: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = np.where(np.arange(n) % 3 == 0, -1, 0)
    return rng.normal(size=n) + shift * (label >= 0), label


@pytest.mark.parametrize("decimals", [0, 1, 6])
def test_a_resample_is_measured_as_if_it_were_the_data(decimals: int) -> None:
    rng = np.random.default_rng(decimals)
    for _ in range(40):
        n = int(rng.integers(4, 50))
        conf, is_ood = np.round(rng.normal(size=n), decimals), rng.random(n) < 0.5
        is_ood[:2] = True, False
        weight = rng.integers(0, 3, n)
        weight[:2] = 1
        rows = np.repeat(np.arange(n), weight)
        expected = ood_metrics(conf[rows], np.where(is_ood[rows], -1, 0), np.zeros(len(rows), int))
        counts = RankedScores(conf, is_ood).counts(weight)
        got = 100 * np.array([counts.fpr95()[0], counts.fpr95(id_positive=True)[0], counts.auroc()])
        np.testing.assert_allclose(got, [expected[name] for name in BOOTSTRAPPED], atol=1e-10)


def test_intervals_hold_the_value_and_narrow_with_more_images() -> None:
    widths = []
    for n in (150, 1500):
        found = bootstrap_intervals(*scores(n, 1.5), n_resamples=300)
        assert list(found) == list(BOOTSTRAPPED)
        for name, one in found.items():
            assert one.low <= one.value <= one.high, name
        widths.append(found["AUROC"].high - found["AUROC"].low)
    assert widths[1] < widths[0] / 2


def test_auroc_interval_is_scipys() -> None:
    pytest.importorskip("scipy", minversion="1.15", reason="rng= is new in scipy 1.15")
    from scipy import stats

    conf, label = scores(240, 1.0)
    ids, oods = conf[label >= 0], conf[label < 0]

    def auroc(a: np.ndarray, b: np.ndarray) -> float:
        return 100 * float((a[:, None] > b[None]).mean())

    theirs = stats.bootstrap(
        (ids, oods), auroc, n_resamples=1500, method="percentile", vectorized=False, rng=1
    ).confidence_interval
    ours = bootstrap_intervals(conf, label, n_resamples=1500)["AUROC"]
    assert ours.low == pytest.approx(theirs.low, abs=0.6)
    assert ours.high == pytest.approx(theirs.high, abs=0.6)


def test_coverage() -> None:
    """About 90 of 100 intervals at 90 % hold the true AUROC."""
    true = 100 * 0.7602499  # P(N(1, 1) > N(0, 1))
    hits = 0
    for seed in range(100):
        one = bootstrap_intervals(*scores(200, 1.0, seed), n_resamples=150, level=0.9)["AUROC"]
        hits += one.low <= true <= one.high
    assert 80 <= hits <= 98


def test_several_orders_are_averaged() -> None:
    (a, label), (b, _) = scores(200, 1.0), scores(200, 2.0, 1)
    both = bootstrap_intervals([a, b], label, n_resamples=50)["AUROC"]
    alone = [bootstrap_intervals(x, label, n_resamples=50)["AUROC"].value for x in (a, b)]
    assert both.value == pytest.approx(np.mean(alone))
    assert both == bootstrap_intervals(torch.tensor(np.stack([a, b])), label, n_resamples=50)["AUROC"]


def test_paired_test() -> None:
    conf, label = scores(600, 1.0)
    same = paired_bootstrap(conf, conf, label, n_resamples=100)["AUROC"]
    assert same == (0.0, 0.0, 0.0, 1.0, True)
    rng = np.random.default_rng(5)
    worse = conf + rng.normal(size=600) * 0.8
    found = paired_bootstrap(conf, worse, label, n_resamples=400)["AUROC"]
    assert found.value > 0 and found.low > 0 and found.p_value < 0.05 and not found.may_be_chance
    other = paired_bootstrap(worse, conf, label, n_resamples=400)["AUROC"]
    assert other.value == -found.value and other.p_value == found.p_value
    assert other.low == pytest.approx(-found.high)
    # pairing: the difference is known better than either value
    single = bootstrap_intervals(conf, label, n_resamples=400)["AUROC"]
    assert found.high - found.low < 0.9 * (single.high - single.low) * 2**0.5
    little = conf + rng.normal(size=600) * 0.01
    assert paired_bootstrap(conf, little, label, n_resamples=400)["AUROC"].p_value > 0.05


@pytest.mark.parametrize(("n_ood", "p_value"), [(3, 0.25), (5, 0.0625), (6, 0.03125)])
def test_a_handful_of_images_says_no_more_than_a_sign_test(n_ood: int, p_value: float) -> None:
    """Every OOD image moved the wrong way: every resample says so, whatever their number."""
    label = np.array([-1] * n_ood + [0] * 200)
    before = np.concatenate([np.zeros(n_ood), np.linspace(-0.5, 2.5, 200)])
    after = before + (label == -1)
    found = paired_bootstrap(after, before, label, n_resamples=400)["AUROC"]
    assert found.high < 0 and found.p_value == p_value
    assert found.may_be_chance == (n_ood < 6)


def test_draws_are_the_seeds_alone() -> None:
    conf, label = scores(100, 1.0)
    state = np.random.get_state()[1].copy()
    first = bootstrap_intervals(conf, label, n_resamples=50)
    np.random.seed(1)
    torch.manual_seed(1)
    assert bootstrap_intervals(conf, label, n_resamples=50) == first
    assert bootstrap_intervals(conf, label, n_resamples=50, seed=1) != first
    np.random.set_state(("MT19937", state, 0, 0, 0.0))
    bootstrap_intervals(conf, label, n_resamples=20)
    assert np.array_equal(np.random.get_state()[1], state)


def test_sets_share_their_id_draws_and_not_their_ood_draws() -> None:
    is_ood = np.array([True] * 5 + [False] * 7)
    one, other = (list(draws(is_ood, 9, 3, number)) for number in (0, 1))
    for a, b in zip(one, other):
        assert np.array_equal(a[5:], b[5:]) and a[:5].sum() == b[:5].sum() == 5
    assert any(not np.array_equal(a[:5], b[:5]) for a, b in zip(one, other))


@pytest.mark.parametrize(
    ("conf", "label", "message"),
    [
        ([1.0, np.nan], [0, -1], "NaN"),
        ([1.0, 2.0, 3.0], [0, -1], "one entry per image"),
        ([1.0, 2.0], [0, 0], "no OOD image"),
        ([1.0, 2.0], [-1, -1], "no ID image"),
    ],
)
def test_bad_input(conf: list, label: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_intervals(np.array(conf), np.array(label), n_resamples=10)


def test_tensors_of_any_kind_give_what_their_numbers_give() -> None:
    conf, label = scores(60, 1.0)
    tensor = torch.from_numpy(conf).bfloat16()
    expected = bootstrap_intervals(tensor.double().numpy(), label, n_resamples=20)
    for given in (tensor, tensor.double().requires_grad_()):
        assert bootstrap_intervals(given, torch.from_numpy(label), n_resamples=20) == expected
        assert paired_bootstrap(given, [given], label, n_resamples=20)["AUROC"].value == 0


def test_bad_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    conf, label = scores(30, 1.0)
    run = replay(data := make_data(), {"cosine": StatelessCosine(data)}, progress=False)
    monkeypatch.setattr(
        intervals, "draws", lambda *_: pytest.fail("drawn before the level was looked at")
    )
    for attempt in (
        lambda: bootstrap_intervals(conf, label, level=1.0, n_resamples=10),
        lambda: paired_bootstrap(conf, conf, label, level=1.0, n_resamples=10),
        lambda: run.bootstrap(10, level=1.0),
    ):
        with pytest.raises(ValueError, match="level must be in"):
            attempt()
    with pytest.raises(TypeError, match="n_resamples must be an integer"):
        bootstrap_intervals(conf, label, n_resamples=10.5)
    with pytest.raises(ValueError, match="n_resamples"):
        bootstrap_intervals(conf, label, n_resamples=1)
    with pytest.raises(ValueError, match="no scores"):
        bootstrap_intervals([], label)


@pytest.mark.parametrize("ratio", [(5, 1), (1, 1)])
def test_seeds_that_hold_other_images_are_refused(ratio: tuple[int, int]) -> None:
    data = make_data(near={}, far={"textures": make_data().far["textures"]})
    detectors = {"cosine": StatelessCosine(data)}
    several, one = (
        replay(data, detectors, Protocol(seeds, batch_size=8, ratio=ratio), progress=False)
        for seeds in ((0, 4), (4,))
    )
    # at 5:1 every ID image is met, so that the labels of the seeds are alike and their images are not
    labels = [several.stream("cosine", "textures", seed).label.tolist() for seed in (0, 4)]
    assert (labels[0] == labels[1]) == (ratio == (5, 1))
    with pytest.raises(ValueError, match="textures: intervals need the same images under every seed"):
        several.bootstrap(10)
    result = one.stream("cosine", "textures", 4)
    alone = bootstrap_intervals(result.conf, result.label, n_resamples=10, seed=4)
    assert one.bootstrap(10).intervals("cosine", "textures") == alone


def test_in_results() -> None:
    data = make_data()
    detectors = {"cosine": StatelessCosine(data), "drift": Drifting(data)}
    results = replay(data, detectors, Protocol(seeds=(0, 4), batch_size=8), progress=False)
    found = results.bootstrap(60)
    assert found.methods == ["cosine", "drift"]
    assert found.rows == ["ssb", "ninco", "nearood", "textures", "farood"]
    for method in found.methods:
        for row in found.rows:
            for name, one in found.intervals(method, row).items():
                assert one.value == pytest.approx(results.table(method).loc[row, name])
                assert one.low <= one.high
    gap = found.differences("drift", "cosine", "nearood")["AUROC"]
    assert gap.value == pytest.approx(
        results.table("drift").loc["nearood", "AUROC"] - results.table("cosine").loc["nearood", "AUROC"]
    )
    written = results.to_dict(found)["bootstrap"]
    assert written["resamples"] == 60 and "drift - cosine" in written["differences"]
    sure = {
        row: one.may_be_chance
        for row in found.rows
        for one in [found.differences("drift", "cosine", row)["AUROC"]]
    }
    warned = " ".join(found.warnings())
    assert all(f"{row} (" in warned for row, unsure in sure.items() if unsure)
    text = found.format()
    assert all(line in text for line in found.warnings())
    assert "95 %" in text and "paired test" in text and "nearood" in text
    assert "bootstrap" not in results.to_dict()
    with pytest.raises(KeyError, match="x"):
        found.intervals("drift", "x")
