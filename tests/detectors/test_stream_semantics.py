"""AdaNeg over whole streams against a slow, obvious implementation of its description."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from adaneg_openood import AdaNeg, AdaNegConfig

SCALE = 20.0


class SlowAdaNeg:
    """One image, one row, one group at a time; plain floats."""

    def __init__(self, text, n_id, config):
        self.text, self.n_id, self.config = text, n_id, config
        self.memory = [[] for _ in text]  # (entropy, arrival, feature)
        self.arrivals = 0
        self.decisions = deque([True, False] * 100, maxlen=10_000)
        n_neg = len(text) - n_id
        size = n_neg // config.groups
        order = list(range(size * config.groups))
        if config.permute:
            state = torch.random.get_rng_state()
            torch.manual_seed(0)
            order = torch.randperm(len(order)).tolist()
            torch.random.set_rng_state(state)
        self.groups = [order[g * size : (g + 1) * size] for g in range(config.groups)]

    def grouped(self, logits):
        ids = [math.exp(x) for x in logits[: self.n_id]]
        parts = []
        for group in self.groups:
            negatives = sum(math.exp(logits[self.n_id + j]) for j in group)
            parts.append(sum(ids) / (sum(ids) + negatives))
        return sum(parts) / len(parts)

    def offer(self, row, feature, logits):
        exps = [math.exp(x - max(logits)) for x in logits]  # so that equal labels tie exactly
        p = [e / sum(exps) for e in exps]
        entropy = -sum(q * math.log(q + 1e-8) for q in p)
        self.arrivals += 1
        held, room = self.memory[row], self.config.memory_length - 1
        if len(held) < room:
            held.append((entropy, self.arrivals, feature))
        elif room and self.config.replacement == "entropy":
            worst = max(range(room), key=lambda i: held[i][:2])
            if held[worst][0] > entropy:
                held[worst] = (entropy, self.arrivals, feature)

    def proxy(self, row, image):
        members = [self.text[row], *(feature for *_, feature in self.memory[row])]
        if self.config.proxy == "task" or len(members) == 1:
            weights = [1.0] * len(members)
        else:
            weights = [math.exp(-self.config.beta * (1 - float(image @ m))) for m in members]
        total = sum(w * m for w, m in zip(weights, members))
        return total / np.linalg.norm(total)

    def thresholds(self, confident):
        gamma, gap = self.config.gamma, self.config.gap
        upper, lower = gamma + gap * (1 - gamma), gamma - gap * gamma
        if not self.config.adagap:
            return upper, lower
        self.decisions.extend([True] * sum(s > upper for s in confident))
        self.decisions.extend([False] * sum(s < lower for s in confident))
        share = sum(self.decisions) / len(self.decisions)
        if share > 0.5:
            lower = gamma - share * gamma
        if share < 0.5:
            upper = gamma + (1 - share) * (1 - gamma)
        return upper, lower

    def score(self, batch):
        logits = [[SCALE * float(v @ t) for t in self.text] for v in batch]
        s_nl = [self.grouped(row) for row in logits]
        upper, lower = self.thresholds(s_nl)
        for v, row, s in zip(batch, logits, s_nl):
            side = slice(0, self.n_id) if s > upper else slice(self.n_id, None)
            if s > upper or s < lower:
                self.offer(side.start + int(np.argmax(row[side])), v, row[side])
        confs, preds = [], []
        for v, row, s in zip(batch, logits, s_nl):
            adapted = [SCALE * float(v @ self.proxy(k, v)) for k in range(len(self.text))]
            s_ada, lam = self.grouped(adapted), self.config.lam
            confs.append(
                {"combine": s_ada + lam * s, "adaptive": s_ada, "neglabel": s, "multiply": s_ada * s}[
                    self.config.score
                ]
            )
            softmax = [np.exp(x) / np.exp(x).sum() for x in (np.array(row), np.array(adapted))]
            preds.append((softmax[0] + lam * softmax[1])[: self.n_id])
        return confs, preds, s_nl, (upper, lower)


@st.composite
def streams(draw):
    n_id, n_neg = draw(st.integers(1, 4)), draw(st.integers(2, 9))
    config = AdaNegConfig(
        gamma=draw(st.sampled_from([0.3, 0.5, 0.7])),
        gap=draw(st.sampled_from([0.0, 0.2, 0.5])),
        memory_length=draw(st.integers(1, 4)),
        lam=draw(st.sampled_from([0.0, 0.1, 1.0])),
        beta=draw(st.sampled_from([0.0, 2.0, 5.5, 50.0])),
        groups=draw(st.integers(1, min(3, n_neg))),
        permute=draw(st.booleans()),
        proxy=draw(st.sampled_from(["task", "sample"])),
        score=draw(st.sampled_from(["combine", "adaptive", "neglabel", "multiply"])),
        replacement=draw(st.sampled_from(["entropy", "first"])),
        adagap=draw(st.booleans()),
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    text = normalize(torch.randn(n_id + n_neg, 6, generator=generator, dtype=torch.float64), dim=1)
    # float32 first: the detector keeps float32, and both must see the same numbers
    text = text.float().double()
    for _ in range(draw(st.integers(0, 3))):  # the same name twice: rows tie, and must not merge
        side = range(n_id) if draw(st.booleans()) else range(n_id, n_id + n_neg)
        text[draw(st.sampled_from(side))] = text[draw(st.sampled_from(side))]
    n = draw(st.integers(1, 24))
    near = text[torch.randint(len(text), (n,), generator=generator)]
    images = normalize(near + 0.3 * torch.randn(n, 6, generator=generator, dtype=torch.float64), dim=1)
    images = images.float().double()
    for _ in range(draw(st.integers(0, 3))):  # the same image again: equal entropies
        a, b = torch.randint(n, (2,), generator=generator).tolist()
        images[a] = images[b]
    cuts = sorted(draw(st.lists(st.integers(0, n), max_size=4)))
    return config, text, n_id, images, [0, *cuts, n]


@pytest.mark.parametrize("bank", ["pooled", "fixed"])
@settings(max_examples=150, deadline=None)
@given(case=streams())
def test_streams_match_the_slow_reference(bank, case):
    config, text, n_id, images, cuts = case
    detector = AdaNeg(text, n_id, SCALE, config, bank=bank).double()
    slow = SlowAdaNeg(text.numpy(), n_id, config)
    for start, end in zip(cuts, cuts[1:]):
        confs, preds, s_nl, limits = slow.score(images[start:end].numpy())
        # an image on a threshold falls to either side by rounding
        assume(all(abs(s - limit) > 1e-9 for s in s_nl for limit in limits))
        scores = detector.score(images[start:end])
        assert scores.conf.tolist() == pytest.approx(confs, abs=1e-6)
        for mine, shares in zip(scores.pred.tolist(), preds):
            # rows of the same text nearly tie, and rounding to float32, which lengths are kept in, may
            # prefer either
            assert shares[mine] >= shares.max() * (1 - 1e-7)
    assert detector.bank.counts.tolist() == [len(held) for held in slow.memory]


@settings(max_examples=40, deadline=None)
@given(streams(), st.data())
def test_resuming_equals_never_stopping(case, data):
    config, text, n_id, images, cuts = case
    batches = [images[a:b] for a, b in zip(cuts, cuts[1:])]
    stop = data.draw(st.integers(0, len(batches)))
    whole, first = (AdaNeg(text, n_id, SCALE, config) for _ in range(2))
    expected = [whole.score(batch).conf for batch in batches]
    got = [first.score(batch).conf for batch in batches[:stop]]
    resumed = AdaNeg(text, n_id, SCALE, config)
    resumed.load_state_dict(first.state_dict())
    got += [resumed.score(batch).conf for batch in batches[stop:]]
    assert torch.equal(torch.cat(got), torch.cat(expected))


@settings(max_examples=40, deadline=None)
@given(streams())
def test_reset_equals_a_fresh_detector(case):
    config, text, n_id, images, cuts = case
    used, fresh = (AdaNeg(text, n_id, SCALE, config) for _ in range(2))
    used.score(images)
    used.reset()
    for start, end in zip(cuts, cuts[1:]):
        assert torch.equal(used.score(images[start:end]).conf, fresh.score(images[start:end]).conf)
