"""MCM, the baseline without negative labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from adaneg_openood.detectors.base import Scores, TextDetector


class MCM(TextDetector):
    """Maximum concept matching (Ming et al., NeurIPS 2022): the largest ID softmax probability.

    Args:
        text_features: (C, D) or (C + M, D), ID rows first; rows past ``n_id`` are not used.
        n_id: C.
        tau: temperature that divides the *cosines*, 1 in the paper; 0.01 is CLIP's own scale.

    Raises:
        ValueError, TypeError: bad shapes, values that are not finite, or settings out of range.
    """

    def __init__(self, text_features: Tensor, n_id: int, tau: float = 1.0) -> None:
        if not (math.isfinite(tau) and tau > 0):
            raise ValueError(f"tau must be finite and above 0, got {tau}")
        super().__init__(text_features, n_id)
        self.text_features = self.text_features[:n_id].clone()
        self.tau = float(tau)

    @torch.no_grad()
    def score(self, features: Tensor) -> Scores:
        """Score (B, D) image features; ``pred`` is the zero-shot class."""
        cosines = (self._checked(features) @ self.text_features.T).float()
        conf, pred = (cosines / self.tau).softmax(dim=1).max(dim=1)
        return Scores(pred, conf)
