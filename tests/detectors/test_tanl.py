"""TANL: the released implementation's outputs, its parts, and what it costs to forgo noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_cases import FRONTIER, arrays, frontier_cases, stream, tensor
from test_fixed_bank import NothingReadBack
from torch.nn.functional import normalize

from adaneg_openood.detectors import activations, tanl
from adaneg_openood.detectors.activations import ActivationQueue, largest, prefix_score, prefix_weights
from adaneg_openood.detectors.tanl import TANL, TANLConfig
from adaneg_openood.evaluation import ood_metrics

CASES = frontier_cases("tanl")


@pytest.fixture(scope="module")
def inputs() -> dict:
    return arrays(FRONTIER / "inputs.npz")


def made(case: dict, inputs: dict, expected: dict) -> TANL:
    """A detector that starts as the case did."""
    args, n_id = case["args"], int(inputs["n_id"])
    config = TANLConfig(
        alpha=args["alpha"],
        n_negatives=int(args["beta"]),
        step=args["gamma"],
        queue=args["memleng"],
        gap=args["gap"],
        window=case["score_window"],
    )
    detector = TANL(
        tensor(inputs["text"])[: n_id + case["candidates"]],
        n_id,
        float(inputs["logit_scale"]),
        config,
        noise_features=tensor(inputs["noise"])[: case["noise_rows"]],
    )
    detector._start_orders = tuple(tensor(expected[f"start_order_{part}"]) for part in ("id", "noise"))
    detector._start()
    return detector


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_golden(case: dict, inputs: dict) -> None:
    expected = arrays(FRONTIER / f"{case['name']}.npz")
    detector, half = made(case, inputs, expected), case["dtype"] == "float16"
    started = detector.scores.scores[: len(expected["start_scores"])].numpy().copy()
    images = tensor(inputs["image"][stream(case, inputs)])
    steps = [detector._pass(batch) for batch in images.split(case["batch_size"])]
    conf = torch.cat([step.conf for step in steps]).numpy()
    np.testing.assert_array_equal(torch.cat([step.pred for step in steps]), expected["pred"])
    thresholds = np.array([float(step.threshold) for step in steps])
    entered = [np.array([int(step.high.sum()), int(step.low.sum())]) for step in steps]
    should = np.stack([expected["id_entered"], expected["ood_entered"]], axis=1)
    if half:
        np.testing.assert_allclose(conf, expected["conf"], atol=5e-2, rtol=0)
        np.testing.assert_allclose(thresholds, expected["threshold"], atol=0.06, rtol=0)
        assert np.abs(np.array(entered) - should).max() <= 2
        assert min(int(detector.id_like.seen), 60) == expected["id_queue"][-1]
        return
    np.testing.assert_allclose(conf, expected["conf"], atol=2e-5, rtol=0)
    before = torch.cat([step.conf_before for step in steps])
    np.testing.assert_allclose(before, expected["conf_before"], atol=2e-5, rtol=0)
    if case["score_window"] > 1000:
        np.testing.assert_allclose(started, expected["start_scores"], atol=2e-5, rtol=0)
    np.testing.assert_allclose(thresholds, expected["threshold"], atol=1e-6, rtol=0)
    np.testing.assert_array_equal(entered, should)
    for row, batch in enumerate(expected["chosen_batch"]):
        np.testing.assert_array_equal(steps[batch].chosen_before, expected["chosen_before"][row])
        np.testing.assert_array_equal(steps[batch].chosen, expected["chosen"][row])
    for queue, name in ((detector.id_like, "id"), (detector.ood_like, "ood")):
        np.testing.assert_allclose(queue.mean(), expected[f"{name}_queue_mean"], atol=2e-6, rtol=0)
        assert min(int(queue.seen), queue.length) == expected[f"{name}_queue"][-1]
    metrics = ood_metrics(conf, inputs["label"][stream(case, inputs)], expected["pred"])
    assert metrics["AUROC"] == pytest.approx(100 * case["auroc"], abs=2e-3)


def test_the_start_is_private_and_repeats(inputs: dict) -> None:
    text, noise = tensor(inputs["text"]), tensor(inputs["noise"])
    config = TANLConfig(n_negatives=30, queue=6)
    state = torch.get_rng_state()
    detector = TANL(text, 20, config=config, noise_features=noise)
    detector.score(text[:0])
    first = detector.id_like.rows[:6].clone()
    detector.score(tensor(inputs["image"]))
    detector.reset()
    detector.score(text[:0])
    assert torch.equal(detector.id_like.rows[:6], first)
    assert int(detector.id_like.seen) == 6 and int(detector.scores.seen) == 35
    assert torch.equal(torch.get_rng_state(), state)
    # 6 of the 20 ID texts, and not the first or the last ones
    of_text = detector._activations(detector.text_features[:20])
    kept = {int((of_text - row).abs().sum(dim=1).argmin()) for row in first}
    assert len(kept) == 6 and kept != set(range(6)) and kept != set(range(14, 20))


def test_without_noise_it_runs_and_does_worse_in_large_batches(inputs: dict) -> None:
    images, config = tensor(inputs["image"]), TANLConfig(n_negatives=50, queue=60)

    def auroc(noise: torch.Tensor | None) -> float:
        detector = TANL(tensor(inputs["text"]), 20, config=config, noise_features=noise)
        detector.score(images[:0])
        assert int(detector.ood_like.seen) == (0 if noise is None else 15)
        conf = torch.cat([detector.score(batch).conf for batch in images.split(64)])
        return ood_metrics(conf.numpy(), inputs["label"], np.zeros(600, dtype=int))["AUROC"]

    assert auroc(tensor(inputs["noise"])) == pytest.approx(95.23, abs=0.01)
    assert 91.0 < auroc(None) < 92.5


@pytest.mark.parametrize("n", [1, 3, 7, 12, 20])
def test_largest_breaks_ties_by_index(n: int) -> None:
    values = torch.tensor([3.0, 1, 2, 3, 2, 2, 0, 2, 3, 1, 0, 2], dtype=torch.float64)
    ordered = sorted(range(12), key=lambda i: (-values[i], i))
    assert largest(values, n).tolist() == ordered[:n]


@pytest.mark.parametrize(
    ("n", "step", "available"), [(7, 0, 9), (7, 1, 9), (7, 3, 9), (12, 5, 9), (1, 2, 9)]
)
def test_prefix_score_is_the_mean_over_prefixes(n: int, step: int, available: int) -> None:
    generator = torch.Generator().manual_seed(n)
    ids = 10 * torch.randn(4, 5, generator=generator, dtype=torch.float64)
    negatives = 10 * torch.randn(4, available, generator=generator, dtype=torch.float64)
    ends = [n] if step == 0 else [min(step * (i + 1), n) for i in range(-(-n // step))]
    total = ids.exp().sum(dim=1)
    terms = [total / (total + negatives[:, : min(end, available)].exp().sum(dim=1)) for end in ends]
    weights = torch.tensor(prefix_weights(n, step, available), dtype=torch.float64)
    score = prefix_score(ids.logsumexp(dim=1), negatives[:, : min(n, available)], weights)
    torch.testing.assert_close(score, torch.stack(terms).mean(dim=0).float())


def test_a_queue_holds_the_last_rows_and_their_sum_does_not_drift() -> None:
    generator = torch.Generator().manual_seed(1)
    queue, held = ActivationQueue(5, 8), torch.zeros(0, 8)
    for _ in range(400):
        rows = torch.rand(int(torch.randint(9, (), generator=generator)), 8, generator=generator)
        entering = torch.rand(len(rows), generator=generator) < 0.6
        held = torch.cat([held, rows[entering]])[-5:]
        queue.enter(rows, entering, rows[entering].double().sum(dim=0))
        if len(held):
            torch.testing.assert_close(queue.mean(), held.double().mean(dim=0), rtol=0, atol=1e-12)
    assert sorted(queue.rows[:5].sum(dim=1).tolist()) == sorted(held.sum(dim=1).tolist())


def test_shapes_of_other_devices_give_the_same(inputs: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Off the CPU every image is compared with all candidates, and nothing is read back."""
    images, config = tensor(inputs["image"]), TANLConfig(alpha=0.5, n_negatives=50, queue=20)
    one, other = (
        TANL(tensor(inputs["text"]), 20, config=config, noise_features=tensor(inputs["noise"]))
        for _ in range(2)
    )
    expected = [one.score(batch).conf for batch in images.split(50)]
    for module in (activations, tanl):
        monkeypatch.setattr(module, "on_host", lambda values: False)
    assert other.fixed_shape
    other.score(images[:0])  # which starts it
    for batch, conf in zip(images.split(50), expected):
        with NothingReadBack():
            got = other._score(batch).conf
        torch.testing.assert_close(got, conf, rtol=0, atol=1e-6)
    torch.testing.assert_close(one.id_like.sums, other.id_like.sums)
    assert torch.equal(one.id_like.seen, other.id_like.seen)


def test_bad_rows_leave_no_trace(inputs: dict) -> None:
    """As they come on CUDA, where they are found while they are scored."""
    images, bad = tensor(inputs["image"]), torch.tensor([3, 11])
    config = TANLConfig(n_negatives=50, queue=20)
    one, other = (TANL(tensor(inputs["text"]), 20, config=config) for _ in range(2))
    for detector in (one, other):
        detector.score(images[:40])
    broken = images[40:60].clone()
    broken[bad] = torch.nan
    good = torch.ones(20, dtype=torch.bool).index_fill(0, bad, False)
    got = other._score(broken).conf[good]
    torch.testing.assert_close(got, one.score(images[40:60][good]).conf, rtol=0, atol=1e-6)
    after = one.score(images[60:]).conf
    torch.testing.assert_close(other.score(images[60:]).conf, after, rtol=0, atol=1e-6)


def test_huge_logit_scales_give_finite_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    text = normalize(torch.randn(60, 16, generator=generator), dim=1)
    images = normalize(torch.randn(90, 16, generator=generator), dim=1)
    detector = TANL(text, 10, 5000.0, TANLConfig(n_negatives=20), noise_features=images[:4])
    conf = torch.cat([detector.score(batch).conf for batch in images.split(30)])
    assert torch.isfinite(conf).all() and 0 <= conf.min() and conf.max() <= 1
    rows = detector.id_like.rows
    assert rows[rows > 0].min() > torch.finfo(torch.float32).tiny, "denormal numbers are slow"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"alpha": 1.5}, r"alpha must be in \[0, 1\], got 1.5"),
        ({"n_negatives": 0}, "n_negatives must be at least 1, got 0"),
        ({"n_negatives": 5.5}, "n_negatives must be an integer, got 5.5"),
        ({"step": -1}, "step must be at least 0, got -1"),
        ({"gap": float("nan")}, r"gap must be in \[0, 1\], got nan"),
    ],
)
def test_settings_are_checked(changed: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        TANLConfig(**changed)


def test_noise_features_must_fit_and_candidates_be_there() -> None:
    text = torch.eye(6)
    with pytest.raises(ValueError, match=r"noise_features must be \(N, 6\) like the text features"):
        TANL(text, 2, noise_features=torch.eye(5))
    with pytest.raises(ValueError, match="no negative label left"):
        TANL(text, 6)


def test_the_callers_tensors_are_its_own(inputs: dict) -> None:
    text, noise = tensor(inputs["text"]).clone(), tensor(inputs["noise"]).clone()
    kept = text.clone(), noise.clone()
    one, other = TANL(text, 20, noise_features=noise.flip(0)), TANL(text, 20, noise_features=noise)
    one.load_state_dict(other.state_dict())
    other.load_state_dict({**one.state_dict(), "noise_features": noise.flip(0)})
    assert torch.equal(text, kept[0]) and torch.equal(noise, kept[1])
    expected = one.score(tensor(inputs["image"])[:50]).conf
    one.reset()
    text.zero_(), noise.zero_()
    assert torch.equal(one.score(tensor(inputs["image"])[:50]).conf, expected)


def test_an_interrupted_start_begins_anew(inputs: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    images, config = tensor(inputs["image"])[:50], TANLConfig(alpha=1.0, n_negatives=30, queue=60)
    plain, stopped = (
        TANL(tensor(inputs["text"]), 20, config=config, noise_features=tensor(inputs["noise"]))
        for _ in range(2)
    )
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stopped.scores, "enter", stop)
        stopped.score(images)
    assert torch.equal(stopped.score(images).conf, plain.score(images).conf)
    assert torch.equal(stopped.id_like.seen, plain.id_like.seen)
