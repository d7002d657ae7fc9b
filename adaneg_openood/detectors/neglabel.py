"""NegLabel, the training-free baseline that AdaNeg builds on."""

from __future__ import annotations

import torch
from torch import Tensor

from adaneg_openood.detectors.base import GroupedDetector, Scores


class NegLabel(GroupedDetector):
    """NegLabel (Jiang et al., ICLR 2024): ID names against groups of negative labels.

    Args:
        text_features: (C + M, D), ID rows first, any float dtype.
        n_id: C.
        groups: G, at least 1 and at most M.
        permute: group the negatives in a fixed random order, not the given one.
        logit_scale: s = exp of the model's logit scale, about 100 for CLIP.

    Raises:
        ValueError, TypeError: bad shapes, values that are not finite, or settings out of range.
    """

    def __init__(
        self,
        text_features: Tensor,
        n_id: int,
        groups: int = 5,
        permute: bool = True,
        logit_scale: float = 100.0,
    ) -> None:
        super().__init__(text_features, n_id, groups, permute, logit_scale)

    @torch.no_grad()
    def score(self, features: Tensor) -> Scores:
        """Score (B, D) image features; ``pred`` is the zero-shot class."""
        logits = self._logits(self._checked(features))
        s = self._sums(logits).score().float() if len(logits) else logits.new_empty(0)
        return Scores(logits[:, : self.n_id].argmax(dim=1), s, s_neglabel=s)
