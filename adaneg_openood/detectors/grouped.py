"""What detectors with negative labels share: rows in group order, and logits over them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from adaneg_openood.detectors.base import TextDetector
from adaneg_openood.detectors.scoring import GroupedLogits, group_order, grouped_logits
from adaneg_openood.io.checks import check_flag, check_int, check_positive


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

    negative_order: Tensor

    def __init__(
        self, text_features: Tensor, n_id: int, groups: int, permute: bool, logit_scale: float
    ) -> None:
        super().__init__(text_features, n_id)
        self.n_negatives = len(text_features) - n_id
        check_int("groups", groups)
        check_flag("permute", permute)
        if self.n_negatives < 1:
            raise ValueError(
                f"n_id is {n_id} and text_features has {len(text_features)} rows: no negative label left"
            )
        if self.n_negatives < groups:
            raise ValueError(f"{self.n_negatives} negative label(s) cannot form {groups} groups")
        check_positive("logit_scale", logit_scale)
        self.groups, self.permute, self.logit_scale = groups, permute, float(logit_scale)
        order = group_order(self.n_negatives, groups, permute).to(text_features.device)
        # which of the caller's rows stands at each column of the logits
        rows = torch.cat([torch.arange(n_id, device=order.device), order + n_id])
        self.text_features = self.text_features[rows]
        self.register_buffer("negative_order", order)

    def compare_text(self, features: Tensor) -> TextLogits:
        """Compare (B, D) image features with the labels' text; changes nothing.

        Detectors with the same text features, dtype, ``groups``, ``permute`` and ``logit_scale`` compare
        alike, so one comparison serves all of them: see ``AdaNeg.score``.

        Raises:
            ValueError, TypeError: wrong width, or rows that are zero, NaN or infinite.
        """
        with self._exactly():
            return self._compare(self._checked(features))

    def nearest_negatives(self, features: Tensor, k: int = 3) -> tuple[Tensor, Tensor]:
        """The k negative labels whose text is nearest to each image.

        Returns:
            (B, k) int64 rows of the caller's text features, nearest first, and their (B, k) cosines.
        """
        with self._exactly():
            cosines = self._checked(features) @ self.text_features[self.n_id :].T
            top = cosines.topk(min(k, self.n_negatives), dim=1)
            return self.negative_order[top.indices] + self.n_id, top.values.float()

    def _compare(self, features: Tensor, keep_negatives: bool = True) -> TextLogits:
        """Of (B, D) features of unit length; see :func:`grouped_logits`."""
        logits = self._logits(features)
        grouped = grouped_logits(logits, self.n_id, self.groups, keep_negatives)
        return TextLogits(features, logits, grouped)

    def _logits(self, features: Tensor) -> Tensor:
        """(B, C + M) at least float32, negatives in group order."""
        if features.dtype in (torch.float16, torch.bfloat16):
            return (features @ self.text_features.T).float().mul_(self.logit_scale)
        return (features * self.logit_scale) @ self.text_features.T

    def _unfit(self, state: Mapping[str, Tensor]) -> str | None:
        problem = super()._unfit(state)
        if problem is None and not torch.equal(
            state["negative_order"].to(self.negative_order), self.negative_order
        ):
            problem = "negative_order differs: it is of a detector with other groups, permute or labels"
        return problem
