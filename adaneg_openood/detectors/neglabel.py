"""NegLabel, the training-free baseline, and what all detectors with negative labels share with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from adaneg_openood.detectors.base import DetectorInfo, Scores, TextDetector
from adaneg_openood.detectors.scoring import GroupedLogits, group_order, grouped_logits
from adaneg_openood.io.checks import check_flag, check_int


class TextLogits(NamedTuple):
    """A batch compared with the labels' text: the part of a score that no stream changes.

    Attributes:
        features: (B, D) of unit length.
        logits: (B, C + M), negatives in group order.
        grouped: their exponentials and log-sum-exps.
    """

    features: Tensor
    logits: Tensor
    grouped: GroupedLogits


class GroupedDetector(TextDetector):
    """A detector with negative labels, held in group order: ID rows, the groups, what no group takes."""

    _copies_text = True
    negative_order: Tensor
    _rows: Tensor

    def __init__(
        self, text_features: Tensor, n_id: int, groups: int, permute: bool, logit_scale: float
    ) -> None:
        super().__init__(text_features, n_id, logit_scale)
        self.n_negatives = len(text_features) - n_id
        check_int("groups", groups)
        check_flag("permute", permute)
        if self.n_negatives < groups:
            raise ValueError(f"{self.n_negatives} negative label(s) cannot form {groups} groups")
        self.groups, self.permute = groups, permute
        order = group_order(self.n_negatives, groups, permute).to(text_features.device)
        self.register_buffer("negative_order", order)
        # which of the caller's rows stands at each column of the logits; follows from the order
        rows = torch.cat([torch.arange(n_id, device=order.device), order + n_id])
        self.register_buffer("_rows", rows, persistent=False)
        self.register_buffer("text_features", self.text_features[rows])

    def compare_text(self, features: Tensor) -> TextLogits:
        """Compare (B, D) image features with the labels' text; changes nothing.

        Detectors with the same text features, dtype, ``groups``, ``permute`` and ``logit_scale`` compare
        alike, so one comparison serves all of them: see ``AdaNeg.score``.

        Raises:
            ValueError, TypeError: wrong width, or rows that are zero, NaN or infinite.
        """
        with self._exactly():
            return self._compare(self._checked(self._given(features)))

    def _compare(self, features: Tensor, keep_negatives: bool = True) -> TextLogits:
        """Of (B, D) features of unit length; see :func:`grouped_logits`."""
        logits = self._logits(features, self.text_features)
        grouped = grouped_logits(logits, self.n_id, self.groups, keep_negatives)
        return TextLogits(features, logits, grouped)

    def _unfit(self, state: Mapping[str, Tensor]) -> str | None:
        own, saved = self.negative_order, state["negative_order"]
        problem = super()._unfit(state)
        if problem is None and not torch.equal(saved.to(own), own):
            problem = "negative_order differs: it is of a detector with other groups, permute or labels"
        return problem


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

    info = DetectorInfo(
        name="neglabel",
        title="NegLabel",
        idea="Softmax mass of the ID labels against groups of mined negative labels.",
        paper="Jiang et al., Negative Label Guided OOD Detection with Pretrained Vision-Language Models",
        link="https://arxiv.org/abs/2403.20078",
        published_in="ICLR 2024",
        month="2024-05",
        needs_negatives=True,
        keeps_state=False,
        batch_matters=False,
        inputs="text features of ID and negative labels",
        state="none",
        cost="(C + M) D",
        published="ImageNet, four OOD sets, ViT-B/16: FPR95 25.40 (ID positive), AUROC 94.21",
        choose_when="Images come one by one, or must not influence one another.",
    )

    stands_bad_rows = fixed_shape = True

    def __init__(
        self,
        text_features: Tensor,
        n_id: int,
        groups: int = 5,
        permute: bool = True,
        logit_scale: float = 100.0,
    ) -> None:
        super().__init__(text_features, n_id, groups, permute, logit_scale)

    def _score(self, features: Tensor) -> Scores:
        """``pred`` is the zero-shot class."""
        text = self._compare(features, keep_negatives=False)
        s = text.grouped.score().float()
        return Scores(text.logits[:, : self.n_id].argmax(dim=1), s, s_neglabel=s)
