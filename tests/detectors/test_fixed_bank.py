"""The fixed bank holds and scores what the pooled bank does, and asks the device for nothing."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_parity import CASES, GOLDEN, REALCLIP, needs_realclip, run
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from adaneg_openood import MCM, AdaNeg, AdaNegConfig, NegLabel
from adaneg_openood.detectors import DETECTORS, adaneg, graphs, make_detector
from benchmarks.common import golden_config

BANKS = ("pooled", "fixed")
on_every_device = pytest.mark.parametrize("device", ["cpu", "cuda"][: 1 + torch.cuda.is_available()])


def pair(text: torch.Tensor, n_id: int, scale: float, config: AdaNegConfig) -> list[AdaNeg]:
    return [AdaNeg(text, n_id, scale, config, bank=bank) for bank in BANKS]


def held(detector: AdaNeg) -> list[tuple[int, bytes]]:
    """(row, image) of everything cached, whatever the order in memory."""
    state = detector.bank.state_dict()
    images = state["features"].cpu().numpy()
    return sorted((int(row), image.tobytes()) for row, image in zip(state["rows"], images))


def same(pooled: AdaNeg, fixed: AdaNeg, images: torch.Tensor, tolerance: float = 1e-5) -> None:
    a, b = pooled.score(images), fixed.score(images)
    torch.testing.assert_close(b.conf, a.conf, atol=tolerance, rtol=0)
    torch.testing.assert_close(b.s_adaptive, a.s_adaptive, atol=tolerance, rtol=0)
    # of classes whose text ties exactly, rounding of the proxies may prefer either
    other = (a.pred != b.pred).nonzero().squeeze(1)
    text = images[other] @ pooled.text_features[: pooled.n_id].T
    by_a, by_b = (text.gather(1, pred[other, None]) for pred in (a.pred, b.pred))
    assert torch.equal(by_a, by_b)


@on_every_device
@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_golden(case: dict, device: str) -> None:
    half = case["dtype"] == "float16"
    with np.load(GOLDEN / "inputs.npz") as inputs:
        text, images = (torch.from_numpy(inputs[name]).to(device) for name in ("text", "image"))
        n_id, scale = int(inputs["n_id_labels"]), float(inputs["logit_scale"])
    config = golden_config(case, **({"replacement": "first"} if half else {}))
    detector = AdaNeg(text, n_id, scale, config, bank="fixed")
    pred, conf = run(detector, images, case["batch_size"])
    with np.load(GOLDEN / f"{case['name']}.npz") as expected:
        np.testing.assert_allclose(conf, expected["conf"], atol=2e-2 if half else 2e-5, rtol=0)
        counts = detector.bank.counts.cpu().numpy()
        assert np.abs(counts - expected["cached"]).sum() <= (2 if half else 0)
        if case["cls"] == "plain" and not half:
            np.testing.assert_array_equal(pred, expected["pred"])


@needs_realclip
@on_every_device
@pytest.mark.parametrize("proxy", ["task", "sample"])
@pytest.mark.parametrize("adagap", [False, True])
def test_realclip(proxy: str, adagap: bool, device: str) -> None:
    with np.load(REALCLIP / "text.npz") as text, np.load(REALCLIP / "images.npz") as images:
        with np.load(REALCLIP / "expected.npz") as expected:
            mined = expected["mined_index__cifar10_vs_fashion"]
            order = expected["order__cifar10_vs_fashion"]
        rows = np.concatenate([text["id_feature"], text["feature"][mined]]).astype(np.float32)
        stream = np.concatenate([images["fashion"], images["cifar10"]])[order]
    config = AdaNegConfig(proxy=proxy, adagap=adagap)
    pooled, fixed = pair(normalize(torch.from_numpy(rows).to(device), dim=1), 10, 100.0, config)
    for batch in torch.from_numpy(stream).to(device).split(64):
        same(pooled, fixed, batch)
    assert torch.equal(pooled.bank.counts, fixed.bank.counts)
    assert held(pooled) == held(fixed)


@on_every_device
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    sizes=st.tuples(st.integers(1, 6), st.integers(2, 24)),
    cuts=st.lists(st.sampled_from([1, 2, 7, 32, 160, 800]), min_size=1, max_size=5),
    config=st.builds(
        AdaNegConfig,
        gamma=st.sampled_from([0.3, 0.5, 0.7]),
        gap=st.sampled_from([0.0, 0.2, 0.5]),
        memory_length=st.integers(1, 6),
        beta=st.sampled_from([0.0, 5.5, 30.0]),
        groups=st.integers(1, 2),
        permute=st.booleans(),
        proxy=st.sampled_from(["task", "sample"]),
        score=st.sampled_from(["combine", "adaptive", "neglabel", "multiply"]),
        replacement=st.sampled_from(["entropy", "first"]),
        adagap=st.booleans(),
    ),
    act=st.sampled_from(["none", "reset", "save into the other", "copy"]),
)
def test_random_streams_with_ties(device, seed, sizes, cuts, config, act) -> None:
    """Products of +-1/4 are exact in any order, so equal images and equal rows tie everywhere."""
    generator = torch.Generator().manual_seed(seed)

    def rows(n: int, kinds: int) -> torch.Tensor:
        signs = torch.randint(0, 2, (kinds, 16), generator=generator).float() * 0.5 - 0.25
        return signs[torch.randint(0, kinds, (n,), generator=generator)].to(device)

    n_id, n_neg = sizes
    detectors = pair(rows(n_id + n_neg, max(2, (n_id + n_neg) * 3 // 4)), n_id, 16.0, config)
    for number, size in enumerate(cuts):
        same(*detectors, rows(size, max(2, size // 3)))
        assert torch.equal(detectors[0].bank.counts, detectors[1].bank.counts)
        assert held(detectors[0]) == held(detectors[1])
        if number == 0 and act == "reset":
            for detector in detectors:
                detector.reset()
        elif number == 0 and act == "save into the other":
            states = [detector.state_dict() for detector in detectors]
            for detector, state in zip(detectors, reversed(states)):
                detector.reset()
                detector.load_state_dict(state)
        elif number == 0 and act == "copy":
            detectors = copy.deepcopy(detectors)


@on_every_device
def test_rows_at_capacity_in_a_long_stream(device: str) -> None:
    generator = torch.Generator().manual_seed(3)
    text = normalize(torch.randn(60, 24, generator=generator), dim=1)
    for proxy in ("task", "sample"):
        config = AdaNegConfig(proxy=proxy, memory_length=4)
        pooled, fixed = pair(text.to(device), 20, 60.0, config)
        for _ in range(25):
            near = text[torch.randint(0, 60, (37,), generator=generator)]
            noise = torch.randn(37, 24, generator=generator)
            same(pooled, fixed, normalize(near + 0.12 * noise, dim=1).to(device))
        assert int((fixed.bank.counts == 3).sum()) > 20
        assert held(pooled) == held(fixed)


class NothingReadBack(TorchDispatchMode):
    """Refuses what makes a host wait for a device: values read, shapes that depend on values."""

    REFUSED = ("local_scalar_dense", "nonzero", "masked_select", "unique", "repeat_interleave", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::")
        if name.lstrip("_").partition(".")[0].rstrip("2") in self.REFUSED:
            raise AssertionError(f"{name} makes the host wait")
        if name.startswith(("index.", "index_put")):
            indices = [i for i in args[1] if i is not None]
            assert all(i.dtype not in (torch.bool, torch.uint8) for i in indices), f"{name} by a mask"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("replacement", ["entropy", "first"])
@pytest.mark.parametrize("proxy", ["task", "sample"])
@pytest.mark.parametrize("adagap", [False, True])
def test_a_fixed_step_reads_nothing_back(replacement: str, proxy: str, adagap: bool) -> None:
    text = normalize(torch.randn(90, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    config = AdaNegConfig(proxy=proxy, replacement=replacement, adagap=adagap, memory_length=3)
    detector = AdaNeg(text, 30, config=config, bank="fixed")
    batches = [text[torch.arange(start, start + 40) % 90] for start in (0, 17, 60)]
    with NothingReadBack(), torch.no_grad():
        for batch in batches:
            detector._step(batch)
    assert int(detector.bank.counts.sum()) > 30


@pytest.mark.parametrize("make", [NegLabel, MCM])
def test_steps_without_memory_read_nothing_back(make: type) -> None:
    text = normalize(torch.randn(90, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    detector = make(text, 30)
    with NothingReadBack(), torch.no_grad():
        detector._step(text[:40])


class Tape(TorchDispatchMode):
    """Stands in for a CUDA graph: repeats a step's operations on the same tensors, without Python."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for func, args, kwargs, result in self.operations:
            again = func(*args, **kwargs)
            pairs = zip(result, again) if isinstance(result, (tuple, list)) else [(result, again)]
            for old, new in pairs:
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def taped(step, features):
    """As ``graphs._captured``: what a step does is recorded, and nothing is changed by that."""
    buffers = dict(step.__self__.named_buffers())
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    given, tape = features.clone(), Tape()
    with tape:
        made = step(given)
    for name, buffer in buffers.items():
        buffer.copy_(before[name])
    return tape, given, made


@pytest.mark.parametrize("name", list(DETECTORS))
@pytest.mark.parametrize("proxy", ["task", "sample"])
def test_a_captured_step_goes_on_through_resets_and_loads(name, proxy, monkeypatch) -> None:
    """State is written in place, no Python value changes from step to step, and results are copies."""
    text = normalize(torch.randn(90, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    if proxy == "sample" and name != "adaneg":
        pytest.skip("a setting of AdaNeg")
    options = {"settings": {"proxy": proxy, "adagap": True}, "bank": "fixed"} if name == "adaneg" else {}
    detector, plain = (make_detector(name, text, 30, 20.0, **options) for _ in range(2))
    if not detector.fixed_shape:
        pytest.skip("its step is not captured")
    monkeypatch.setattr(graphs, "_captured", taped)
    monkeypatch.setattr(graphs.GraphedStep, "_may_capture", lambda self, features: len(features) == 30)
    addresses = {key: buffer.data_ptr() for key, buffer in detector.named_buffers()}
    near = text[torch.randint(90, (200,), generator=torch.Generator().manual_seed(1))]
    noise = torch.randn(200, 16, generator=torch.Generator().manual_seed(2))
    images = normalize(near + 0.3 * noise, dim=1)

    def scored(batch: torch.Tensor) -> torch.Tensor:
        with detector._exactly(), plain._exactly():
            got, expected = detector._graphed(batch), plain._step(batch)
        assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])
        return got[1]

    for number in range(3):
        for batch in images.split(30):  # 6 full batches and a smaller one
            scored(batch)
        assert len(detector._graphed._captured) == 1
        if number == 0:
            saved = detector.state_dict()
            detector.reset(), plain.reset()
        else:
            detector.load_state_dict(saved), plain.load_state_dict(saved)
    assert addresses == {key: buffer.data_ptr() for key, buffer in detector.named_buffers()}
    first = scored(images[:30])
    kept = first.clone()
    scored(images[30:60])
    assert torch.equal(first, kept), "a replay must not overwrite what was given out"
    detector.double()
    assert not detector._graphed._captured


@pytest.mark.parametrize("policies", [("entropy", "first"), ("first", "entropy")])
def test_a_state_kept_by_the_other_policy(policies: tuple[str, str]) -> None:
    generator = torch.Generator().manual_seed(5)
    text = normalize(torch.randn(40, 16, generator=generator), dim=1)
    near = text[torch.randint(0, 40, (400,), generator=generator)]
    images = normalize(near + 0.2 * torch.randn(400, 16, generator=generator), dim=1)
    one, two = (AdaNegConfig(replacement=policy, memory_length=4) for policy in policies)
    first = AdaNeg(text, 10, 20.0, one)
    first.score(images[:200])
    pooled, fixed = pair(text, 10, 20.0, two)
    for detector in (pooled, fixed):
        detector.load_state_dict(first.state_dict())
    for batch in images[200:].split(50):
        same(pooled, fixed, batch)
        assert held(pooled) == held(fixed)


def test_bad_rows_leave_no_trace_when_they_are_found_on_the_device(caplog) -> None:
    text = normalize(torch.randn(90, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    images = torch.cat([text[:20], 3.0 * text[20:40]])
    spoilt = images.clone()
    spoilt[3], spoilt[25], spoilt[30] = float("nan"), float("inf"), 0.0
    good = [row for row in range(40) if row not in (3, 25, 30)]
    for proxy in ("task", "sample"):
        detectors = [AdaNeg(text, 30, config=AdaNegConfig(proxy=proxy), bank="fixed") for _ in range(2)]
        pred, conf, *_ = detectors[0]._step(spoilt)
        expected = detectors[1].score(images[good])
        assert torch.isnan(conf[[3, 25, 30]]).all()
        torch.testing.assert_close(conf[good], expected.conf, atol=1e-6, rtol=0)
        assert torch.equal(pred[good], expected.pred)
        assert torch.equal(detectors[0].bank.counts, detectors[1].bank.counts)
        a, b = (detector.confident.right for detector in detectors)
        torch.testing.assert_close(a, b, atol=0, rtol=1e-3)  # a batch of 40 fades a little more
        caplog.clear()
        detectors[0].diagnose()
        assert "3 image(s) had NaN" in caplog.text
        caplog.clear()
        detectors[0].diagnose()
        assert not caplog.text


def test_the_kind_of_bank_is_checked_and_auto_is_pooled_on_a_cpu() -> None:
    text = normalize(torch.randn(30, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    assert not AdaNeg(text, 10).fixed_shape
    with pytest.raises(ValueError, match="bank must be one of 'auto', 'pooled', 'fixed'"):
        AdaNeg(text, 10, bank="fixd")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("proxy", ["task", "sample"])
def test_on_cuda_graphs_give_what_the_cpu_gives(proxy: str) -> None:
    generator = torch.Generator().manual_seed(0)
    text = normalize(torch.randn(300, 64, generator=generator), dim=1)
    config = AdaNegConfig(proxy=proxy, memory_length=4, adagap=True)
    here, there = AdaNeg(text, 50, config=config), AdaNeg(text, 50, config=config).cuda()
    assert there.fixed_shape
    for size in (64,) * 12 + (17,):
        near = text[torch.randint(0, 300, (size,), generator=generator)]
        batch = normalize(near + 0.1 * torch.randn(size, 64, generator=generator), dim=1)
        a, b = here.score(batch), there.score(batch.cuda())
        torch.testing.assert_close(b.conf.cpu(), a.conf, atol=1e-4, rtol=0)
    assert torch.equal(here.bank.counts, there.bank.counts.cpu())


def test_a_captured_step_heeds_names_that_are_equal_after_loading(monkeypatch) -> None:
    """Labels whose text differs a little here, and not in the state that is loaded."""
    generator = torch.Generator().manual_seed(0)
    text = normalize(torch.randn(40, 16, generator=generator), dim=1)
    text[20:26] = text[20]
    other = text.clone()
    other[20:26] = normalize(other[20:26] + 1e-3 * other[:6], dim=1)
    config = AdaNegConfig(groups=1)
    monkeypatch.setattr(graphs, "_captured", taped)
    monkeypatch.setattr(graphs.GraphedStep, "_may_capture", lambda self, features: True)
    detector, plain, saved = (
        AdaNeg(rows, 10, config=config, bank="fixed") for rows in (other, other, text)
    )
    images = text[torch.randint(40, (20,), generator=generator)]
    with detector._exactly(), plain._exactly():
        for _ in range(5):
            detector._graphed(images)
        assert detector._graphed._captured
        for loading in (detector, plain):
            loading.load_state_dict(saved.state_dict())
        detector._graphed(text[20:21].expand(20, -1)), plain._step(text[20:21].expand(20, -1))
    assert torch.equal(detector.bank.counts, plain.bank.counts)
    assert plain.bank.counts[20:26].tolist() == [9, 0, 0, 0, 0, 0]


def test_a_bank_is_made_where_another_kind_is_better_after_a_move_and_not_by_a_cast(monkeypatch) -> None:
    text = normalize(torch.randn(30, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    detector, images = AdaNeg(text, 10), normalize(text[:20] + 0.1 * text[10:], dim=1)
    detector.score(images)
    bank, before = detector.bank, held(detector)
    detector._choose_bank()  # as after a move
    assert detector.bank is bank
    monkeypatch.setattr(adaneg, "fits_in_memory", lambda *_: True)
    detector.double().float()
    assert detector.bank is bank
    detector._choose_bank()
    assert detector.fixed_shape and held(detector) == before and len(before) > 5
