"""MCM, the baseline without negative labels."""

from __future__ import annotations

from torch import Tensor

from adaneg_openood.detectors.base import DetectorInfo, Scores, TextDetector
from adaneg_openood.io.checks import check_positive


class MCM(TextDetector):
    """Maximum concept matching (Ming et al., NeurIPS 2022): the largest ID softmax probability.

    Args:
        text_features: (C, D) or (C + M, D), ID rows first; rows past ``n_id`` are not used.
        n_id: C.
        tau: temperature that divides the *cosines*, 1 in the paper; 0.01 is CLIP's own scale.

    Raises:
        ValueError, TypeError: bad shapes, values that are not finite, or settings out of range.
    """

    info = DetectorInfo(
        name="mcm",
        title="MCM",
        idea="The largest softmax probability over the ID labels.",
        paper="Ming et al., Delving into Out-of-Distribution Detection with Vision-Language "
        "Representations",
        link="https://arxiv.org/abs/2211.13445",
        published_in="NeurIPS 2022",
        month="2022-12",
        needs_negatives=False,
        keeps_state=False,
        batch_matters=False,
        inputs="text features of the ID labels",
        state="none",
        cost="C D",
        published="ImageNet, four OOD sets, ViT-B/16: FPR95 43.93 (ID positive), AUROC 90.82",
        choose_when="No negative labels are at hand.",
    )

    stands_bad_rows = fixed_shape = _copies_text = True

    def __init__(self, text_features: Tensor, n_id: int, tau: float = 1.0) -> None:
        check_positive("tau", tau)
        super().__init__(text_features, n_id)
        self.register_buffer("text_features", self.text_features[:n_id].clone())
        self.tau = float(tau)

    def _score(self, features: Tensor) -> Scores:
        """``pred`` is the zero-shot class."""
        cosines = (features @ self.text_features.T).float()
        conf, pred = (cosines / self.tau).softmax(dim=1).max(dim=1)
        return Scores(pred, conf)
