"""State, properties and bad input of AdaNeg."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from adaneg_openood import MCM, AdaNeg, AdaNegConfig, FeatureBank, NegLabel

N_ID, N_NEG, DIM = 4, 12, 8


def make(seed: int = 0, **config) -> tuple[AdaNeg, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    text = normalize(torch.randn(N_ID + N_NEG, DIM, generator=generator), dim=1)
    images = normalize(torch.randn(60, DIM, generator=generator), dim=1)
    return AdaNeg(text, N_ID, 20.0, AdaNegConfig(**{"memory_length": 4, **config})), images


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=40),
    st.integers(1, 4),
    st.integers(1, 9),
    st.sampled_from(["entropy", "first"]),
)
@settings(max_examples=80, deadline=None)
def test_bank_equals_one_by_one_reference(offers, capacity, batch, policy) -> None:
    bank = FeatureBank(4, 2, capacity, policy)
    features = torch.arange(2.0 * len(offers)).reshape(-1, 2)
    rows = torch.tensor([row for row, _ in offers], dtype=torch.long)
    entropies = torch.tensor([float(h) for _, h in offers])
    for part in torch.arange(len(offers)).split(batch) if offers else ():
        bank.add(rows[part], features[part], entropies[part], torch.ones(len(part), 2))

    reference: dict[int, list[tuple[float, int]]] = {row: [] for row in range(4)}
    for index, (row, h) in enumerate(offers):
        held = reference[row]
        if len(held) < capacity:
            held.append((float(h), index))
        elif policy == "entropy" and max(held)[0] > h:
            held[held.index(max(held))] = (float(h), index)
    for row, held in reference.items():
        kept = bank.features[: bank.n_cached][bank.rows[: bank.n_cached] == row]
        assert sorted(kept[:, 0].tolist()) == sorted(2.0 * index for _, index in held)
        if held:
            expected = 1 + features[[index for _, index in held]].sum(dim=0)
            assert torch.allclose(bank.sums[bank.slot_of_row[row]], expected)


@pytest.mark.parametrize("proxy", ["task", "sample"])
@pytest.mark.parametrize("adagap", [False, True])
def test_saving_resetting_and_copying(proxy: str, adagap: bool) -> None:
    detector, images = make(proxy=proxy, adagap=adagap)
    first = detector.score(images[:30])
    fresh, _ = make(proxy=proxy, adagap=adagap)
    fresh.load_state_dict(detector.state_dict())
    others = [fresh, copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))]
    expected = detector.score(images[30:]).conf
    for other in others:
        assert torch.equal(other.score(images[30:]).conf, expected)
    detector.reset()
    assert int(detector.bank.counts.sum()) == 0
    assert torch.equal(detector.score(images[:30]).conf, first.conf)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"gamma": 1.5}, "gamma must be in \\[0, 1\\], got 1.5"),
        ({"gap": -0.1}, "gap must be in"),
        ({"memory_length": 0}, "memory_length must be at least 1"),
        ({"proxy": "tsak"}, "did you mean 'task'"),
        ({"score": "x"}, "'combine', 'adaptive', 'neglabel', 'multiply'"),
        ({"groups": 13}, "12 negative label\\(s\\) cannot form 13 groups"),
    ],
)
def test_bad_settings_are_named(changed: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make(**changed)


@pytest.mark.parametrize("n_id", [0, 16, 20])
def test_bad_n_id(n_id: int) -> None:
    with pytest.raises(ValueError, match="n_id"):
        NegLabel(torch.eye(16), n_id)


def test_mcm_by_hand() -> None:
    scores = MCM(torch.eye(2), 2).score(torch.tensor([[1.0, 0.0]]))
    assert scores.conf.item() == pytest.approx(2.718281828 / 3.718281828, abs=1e-6)
    assert scores.pred.item() == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("proxy", ["task", "sample"])
def test_cuda_equals_cpu(proxy: str) -> None:
    detector, images = make(proxy=proxy)
    on_gpu = copy.deepcopy(detector).to("cuda")
    for batch in images.split(16):
        assert torch.allclose(
            on_gpu.score(batch.to("cuda")).conf.cpu(), detector.score(batch).conf, atol=1e-5
        )


@pytest.mark.parametrize("proxy", ["task", "sample"])
def test_a_replaced_label_that_falls_far_below_the_others(proxy: str) -> None:
    """What stays is far below the label's text then, where exponentials shifted by it are lost."""
    e = torch.eye(8)
    text = normalize(
        torch.stack([0.35 * e[0] + 0.94 * e[4], e[0], e[2] - 0.2 * e[0], e[5] - 0.2 * e[0]])
    )
    far = normalize(e[1] + 0.15 * e[0] + torch.tensor([[-0.1], [0.0], [0.1]]) * e[3], dim=1)
    image = torch.cat([e[:1], normalize(e[2:3] + e[5:6], dim=1)])
    config = AdaNegConfig(groups=1, gap=0.0, proxy=proxy)
    for scale in (100.0, 130.0, 1000.0):
        pooled, fixed = (AdaNeg(text, 1, scale, config, bank=bank) for bank in ("pooled", "fixed"))
        for detector in (pooled, fixed):
            for _ in range(3):
                detector.score(far)
        a, b = pooled.score(image), fixed.score(image)
        torch.testing.assert_close(a.s_adaptive, b.s_adaptive, atol=1e-5, rtol=0)
        assert torch.equal(a.pred, b.pred)


def test_huge_logit_scales_give_exact_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    text = normalize(torch.randn(45, 32, generator=generator), dim=1)
    near = text[torch.randint(45, (400,), generator=generator)]
    noise = normalize(torch.randn(400, 32, generator=generator), dim=1)
    images, detector = normalize(near + 0.8 * noise, dim=1), AdaNeg(text, 5, 1000.0)
    for batch in images.split(50):
        got, bank = detector.score(batch).s_adaptive, detector.bank
        proxies = detector.text_features.double().clone()
        sums = bank.sums[: bank.n_active].double()
        proxies[detector._columns[bank.active_rows[: bank.n_active]]] = normalize(sums, dim=1)
        logits = 1000.0 * batch.double() @ proxies.T
        of_groups = logits[:, 5:].unflatten(1, (5, -1)).logsumexp(dim=2)
        expected = torch.sigmoid(logits[:, :5].logsumexp(dim=1)[:, None] - of_groups).mean(dim=1)
        torch.testing.assert_close(got.double(), expected, atol=2e-3, rtol=0)


def test_a_comparison_of_another_batch_is_refused() -> None:
    detector, images = make()
    text = detector.compare_text(images[:20])
    with pytest.raises(ValueError, match="text is of 20 images, and features are of 10"):
        detector.score(images[:10], text)
    assert detector.bank.n_cached == 0
