"""The detectors behind pytorch-ood's interface."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from adaneg_openood import MCM, AdaNeg, NegLabel
from benchmarks.worlds import LOGIT_SCALE, World

pytest.importorskip("pytorch_ood", reason="pytorch-ood is not installed")

from pytorch_ood.metrics import OODMetrics

from adaneg_openood.pytorch_ood import PytorchOODDetector


def test_scores_are_negated_confidences_and_metrics_read_them_so():
    text, images, labels, ood = World(seed=5, kind="far", alignment=0.8).features()
    for inner in (MCM(text, 20), NegLabel(text, 20, logit_scale=LOGIT_SCALE), AdaNeg(text, 20)):
        detector = PytorchOODDetector(inner)
        metrics = OODMetrics()
        for features, label in ((images, labels), (ood, torch.full((len(ood),), -1))):
            metrics.update(detector.predict_features(features), label)
        # reported as a fraction; an adapter of the wrong sign would be below one half
        assert metrics.compute()["AUROC"] > 0.8
        assert torch.equal(detector.reset().predict_features(images), -_fresh(inner, images))


def _fresh(inner, images):
    inner.reset()
    return inner.score(images).conf


def test_fit_does_nothing_and_predict_needs_an_encoder():
    text = normalize(torch.randn(30, 12, generator=torch.Generator().manual_seed(0)), dim=1)
    detector = PytorchOODDetector(NegLabel(text, 10))
    before = detector.predict_features(text)
    assert detector.fit(None).fit_features(text, torch.zeros(30)) is detector
    assert torch.equal(detector.predict_features(text), before)
    with pytest.raises(ValueError, match="encoder"):
        detector.predict(torch.zeros(2, 3, 4, 4))
    with_encoder = PytorchOODDetector(NegLabel(text, 10), lambda pixels: pixels.flatten(1)[:, :12])
    pixels = torch.rand(2, 3, 4, 4)
    expected = with_encoder.predict_features(pixels.flatten(1)[:, :12])
    assert torch.equal(with_encoder.predict(pixels), expected)
