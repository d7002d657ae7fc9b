"""NegLabel, the training-free baseline that AdaNeg builds on."""

from __future__ import annotations

from torch import Tensor

from adaneg_openood.detectors.base import Scores
from adaneg_openood.detectors.grouped import GroupedDetector
from adaneg_openood.detectors.info import DetectorInfo


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

    stands_bad_rows = True

    def __init__(
        self,
        text_features: Tensor,
        n_id: int,
        groups: int = 5,
        permute: bool = True,
        logit_scale: float = 100.0,
    ) -> None:
        super().__init__(text_features, n_id, groups, permute, logit_scale)

    @property
    def fixed_shape(self) -> bool:
        return True

    def _score(self, features: Tensor) -> Scores:
        """``pred`` is the zero-shot class."""
        text = self._compare(features, keep_negatives=False)
        s = text.grouped.score().float()
        return Scores(text.logits[:, : self.n_id].argmax(dim=1), s, s_neglabel=s)
