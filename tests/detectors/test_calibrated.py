"""The calibrated mode: what it is made of, and that it does no harm."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from adaneg_openood import AdaNeg, AdaNegConfig, NegLabel
from adaneg_openood.detectors.calibration import SideEvidence, StreamMean, log_size_odds
from adaneg_openood.evaluation import ood_metrics, run_stream, stream_order
from benchmarks.worlds import LOGIT_SCALE, World, report_worlds

REALCLIP = Path(__file__).parents[3] / "shared" / "realclip"


def test_without_evidence_the_balanced_score_is_one_half():
    """All cosines equal: NegLabel says C / (C + M / G), means over the sides say one half."""
    text = normalize(torch.ones(110, 4), dim=1)
    image = normalize(torch.ones(1, 4), dim=1)
    detector = AdaNeg(text, 10, config=AdaNegConfig.safe(groups=4))
    scores = detector.score(image)
    assert scores.s_neglabel.item() == pytest.approx(10 / (10 + 25))
    sums = detector._sums(detector._logits(image))
    assert sums.score(log_size_odds(10, 100, 4)).item() == pytest.approx(0.5)
    assert len(detector.bank.rows) == 0, "an image without evidence is not cached"


def test_stream_mean_is_exact_within_its_window_and_forgets_beyond():
    features = torch.randn(3000, 5)
    mean = StreamMean(5)
    for batch in features[:2000].split(300):
        mean.observe(batch)
    torch.testing.assert_close(mean.mean, features[:2000].mean(dim=0), atol=1e-5, rtol=0)
    shifted = torch.full((2048 * 5, 5), 7.0)
    for batch in shifted.split(256):
        mean.observe(batch)
    assert (mean.mean - 7.0).abs().max() < 0.05
    mean.reset()
    assert torch.equal(mean.observe(features[:1]), features[0])


def test_evidence_balance():
    evidence = SideEvidence()
    assert evidence.balance == 1.0
    is_id = torch.tensor([True] * 8 + [False] * 2)
    evidence.observe(is_id, ~is_id, torch.where(is_id, 0.9, 0.2))
    assert evidence.balance.item() == pytest.approx(math.sqrt(3 / 9), abs=1e-3)
    assert evidence.id_share.item() == pytest.approx(9 / 12, abs=1e-3)
    # an image of even odds a side, then eight of 0.9 and two of 1 - 0.2
    assert evidence.purity.tolist() == pytest.approx([7.7 / 9, 2.1 / 3], abs=1e-3)
    evidence.reset()
    assert evidence.balance == 1.0 and evidence.seen == 0


@pytest.mark.parametrize("proxy", ["task", "sample"])
def test_lift_is_zero_on_average(proxy):
    """Over the images that the mean was taken of, what a row's images add sums to zero."""
    text, images, _, ood = World(seed=1, n_id=120, n_ood=120).features()
    batch = torch.cat([images, ood])
    # beta 0: weights that do not depend on the image, so that the mean is exact for both proxies
    config = AdaNegConfig.safe(proxy=proxy, beta=0.0, gain=1.0)
    detector = AdaNeg(text, 20, LOGIT_SCALE, config).double()
    detector.score(batch)
    bank, v = detector.bank, batch.double()
    places = detector._places_of(bank.active_rows[: bank.n_active])
    t = detector.text_features[places]
    out = detector._other_cosines(v, t, (v @ t.T).T.contiguous(), detector.centre.mean)
    lift = out - (v @ t.T).T
    assert bank.n_active > 10
    assert lift.mean(dim=1).abs().max() < 1e-6
    assert lift.abs().max() > 0.01


def test_gain_zero_is_neglabel():
    text, images, _, ood = World(seed=2).features()
    batch = torch.cat([images, ood])
    scores = AdaNeg(text, 20, LOGIT_SCALE, AdaNegConfig.safe(gain=0.0)).score(batch)
    plain = NegLabel(text, 20, logit_scale=LOGIT_SCALE).score(batch)
    torch.testing.assert_close(scores.conf, plain.conf * 1.1, atol=1e-6, rtol=1e-5)
    assert torch.equal(scores.pred, plain.pred)


def test_state_is_saved_and_forgotten():
    text, images, _, ood = World(seed=3).features()
    detector, fresh = (AdaNeg(text, 20, LOGIT_SCALE, AdaNegConfig.safe()) for _ in range(2))
    detector.score(ood)
    fresh.load_state_dict(detector.state_dict())
    assert torch.equal(detector.score(images).conf, fresh.score(images).conf)
    detector.reset()
    again = AdaNeg(text, 20, LOGIT_SCALE, AdaNegConfig.safe())
    assert torch.equal(detector.score(images).conf, again.score(images).conf)


def test_evidence_of_a_silent_side_never_falls_below_its_start():
    evidence = SideEvidence()
    one = torch.ones(5000, dtype=torch.bool)
    for _ in range(6):
        evidence.observe(one, ~one, torch.ones(5000))
    assert evidence.counts[1] == 1.0 and evidence.purity[1] == 0.5


def test_diagnosis_tells_what_is_held():
    text, images, _, ood = World(seed=4, kind="far", alignment=0.8, n_negatives=100).features()
    detector = AdaNeg(text, 20, LOGIT_SCALE)
    detector.score(torch.cat([images, ood]))
    told = detector.diagnose()
    held = detector.bank.counts > 0
    assert told.images == 800 and told.cached == int(detector.bank.counts.sum())
    assert told.id_rows == pytest.approx(held[:20].float().mean().item())
    assert told.negative_rows == pytest.approx(held[20:].float().mean().item())
    assert 0.3 < told.id_share < 0.7 and min(told.id_purity, told.negative_purity) > 0.75
    assert told.warnings == {}
    assert f"{told.cached} of 800 images" in str(told)


def test_diagnosis_warns_in_words_where_adaneg_does_not_help():
    text, images, _, ood = World(seed=4, n_negatives=900, n_id=60, n_ood=20, n_classes=5).features()
    published, safe = AdaNeg(text, 5, LOGIT_SCALE), AdaNeg(text, 5, LOGIT_SCALE, AdaNegConfig.safe())
    for detector in (published, safe):
        detector.score(torch.cat([images, ood]))
    said = " ".join(published.diagnose().warnings.values())
    assert "5 ID names stand against 180 negatives a group" in said
    assert "AdaNegConfig.safe()" in said
    assert safe.diagnose().warnings == {}
    few = AdaNeg(text, 5, LOGIT_SCALE)
    few.score(images[:20])
    assert "20 images for 5 ID names" in few.diagnose().warnings["short stream"]


def _change(text, n_id, id_images, labels, ood, batch_size, seeds):
    """Mean change of FPR@95, AUROC and ACC against NegLabel, in points."""
    features = torch.cat([ood, id_images])
    truth = np.concatenate([np.full(len(ood), -1), np.asarray(labels)])

    def measure(detector, seed):
        order = stream_order(len(ood), len(id_images), seed)
        scores = run_stream(detector, features, order, batch_size)
        metrics = ood_metrics(scores.conf, truth, scores.pred)
        return np.array([metrics[name] for name in ("FPR@95", "AUROC", "ACC")])

    plain = measure(NegLabel(text, n_id, logit_scale=LOGIT_SCALE), 0)
    safe = AdaNeg(text, n_id, LOGIT_SCALE, AdaNegConfig.safe())
    return np.mean([measure(safe, seed) for seed in seeds], axis=0) - plain


# the smallest are left out: one image of 57 moves their metrics by more than the bounds
TESTED = [w for w in report_worlds() if min(w.n_id, w.n_ood) > 100 and w.n_id + w.n_ood < 6000]


@pytest.mark.parametrize("world", TESTED, ids=lambda w: str(w.seed))
def test_no_harm_on_streams_that_nothing_was_chosen_on(world):
    text, images, labels, ood = world.features()
    fpr, auroc, acc = _change(text, world.n_classes, images, labels, ood, 256, range(2))
    assert auroc > -0.2 and fpr < 1.0 and acc > -1.0


@pytest.mark.skipif(not REALCLIP.is_dir(), reason="real CLIP features (../shared/realclip) are absent")
def test_real_clip_features():
    images, text = np.load(REALCLIP / "images.npz"), np.load(REALCLIP / "text.npz")
    mined = np.load(REALCLIP / "expected.npz")
    assert json.loads((REALCLIP / "expected.json").read_text())

    def unit(values):
        return normalize(torch.from_numpy(values.astype(np.float32)), dim=1)

    words, names, cifar = unit(text["feature"]), unit(text["id_feature"]), unit(images["cifar10"])
    label = torch.from_numpy(images["cifar10_label"]).long()
    animal = (label >= 2) & (label <= 7)
    tasks = {
        "cifar10_vs_fashion": (names, cifar, label, unit(images["fashion"])),
        "cifar10_vs_misc": (names, cifar, label, unit(images["misc"])),
        "animals_vs_vehicles": (names[2:8], cifar[animal], label[animal] - 2, cifar[~animal]),
    }
    changes = {}
    for task, (of_id, id_images, labels, ood) in tasks.items():
        rows = torch.cat([of_id, words[torch.from_numpy(mined[f"mined_index__{task}"]).long()]])
        changes[task] = _change(rows, len(of_id), id_images, labels, ood, 64, range(5))
    for task, (fpr, auroc, acc) in changes.items():
        assert fpr <= 1.0 and auroc >= -0.2 and acc >= -1.0, task
    assert changes["cifar10_vs_fashion"][0] <= 1.5 - 3.6
    mean = np.mean(list(changes.values()), axis=0)
    assert mean[0] < 0 and mean[1] > 0
