"""What every detector shares: checked text features, checked image features, one result type."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from adaneg_openood.detectors.config import check_positive_int
from adaneg_openood.detectors.scoring import SideSums, group_order, side_sums
from adaneg_openood.detectors.threshold import Threshold, find_threshold

logger = logging.getLogger(__name__)

_UNIT_TOLERANCE = 1e-3  # a unit vector rounded to bfloat16 stays within this
_NAMED = 8  # bad rows an error lists


@dataclass(frozen=True)
class Scores:
    """Scores of B images.

    Attributes:
        pred: (B,) int64, ID class in [0, C).
        conf: (B,) float32, larger = more ID.
        s_neglabel: (B,) float32, the NegLabel score; None where a method has none.
        s_adaptive: (B,) float32, the score with adaptive proxies; None where a method has none.
    """

    pred: Tensor
    conf: Tensor
    s_neglabel: Tensor | None = None
    s_adaptive: Tensor | None = None


class TextDetector(nn.Module):
    """A detector that compares image features with text features."""

    stateless = True  # whether a score depends on the image alone, and not on the stream
    threshold: Threshold | None = None  # see calibrate
    text_features: Tensor

    def __init__(self, text_features: Tensor, n_id: int) -> None:
        super().__init__()
        check_positive_int("n_id", n_id)
        if not isinstance(text_features, Tensor) or text_features.ndim != 2:
            raise ValueError(
                "text_features must be a (C + M, D) tensor, got "
                f"{tuple(getattr(text_features, 'shape', ())) or type(text_features).__name__}"
            )
        if text_features.shape[1] < 1:
            raise ValueError("text_features has width 0")
        if len(text_features) < n_id:
            raise ValueError(f"n_id is {n_id}, but text_features has {len(text_features)} rows only")
        self.n_id = n_id
        self._said_normalised = False
        self.register_buffer("text_features", self._unit(text_features.detach(), "text_features"))

    def score(self, features: Tensor) -> Scores:
        """Score (B, D) image features of any float dtype."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget the stream; nothing to forget here."""

    def calibrate(self, conf: Tensor, tpr: float = 0.95, source: str = "id") -> Threshold:
        """Set the threshold of :meth:`predict` from (N,) confidences; see :func:`find_threshold`."""
        self.threshold = find_threshold(conf, tpr, source)
        return self.threshold

    def predict(self, features: Tensor) -> Tensor:
        """(B,) int64: the ID class, or -1 for OOD, of (B, D) image features.

        Raises:
            RuntimeError: before :meth:`calibrate`.
        """
        if self.threshold is None:
            raise RuntimeError(
                "predict needs a threshold: call calibrate with scores of ID images first"
            )
        scores = self.score(features)
        return torch.where(scores.conf >= self.threshold.value, scores.pred, -1)

    def _checked(self, features: Tensor) -> Tensor:
        """(B, D) unit-length features on this detector's device and dtype, or an error."""
        dim = self.text_features.shape[1]
        if not isinstance(features, Tensor) or features.ndim != 2 or features.shape[1] != dim:
            shape = tuple(getattr(features, "shape", ())) or type(features).__name__
            raise ValueError(f"image features must be (B, {dim}) like the text features, got {shape}")
        return self._unit(features.detach().to(self.text_features.device), "image features").to(
            self.text_features.dtype
        )

    def _unit(self, features: Tensor, what: str) -> Tensor:
        """Rows as float32 unit vectors; those that are not unit length are normalised, said once."""
        if not features.is_floating_point():
            raise TypeError(f"{what} must be floating point, got {features.dtype}")
        norms = torch.linalg.vector_norm(features.double(), dim=1)
        off = ~((norms - 1.0).abs() <= _UNIT_TOLERANCE)
        unit = features.float()
        # One read decides for the whole batch: the checks below run only where something is off.
        if not bool(off.any()):
            return unit
        for bad, said in ((~torch.isfinite(norms), "NaN or infinite"), (norms == 0, "all-zero")):
            rows = bad.nonzero().squeeze(1).tolist()
            if rows:
                listed = ", ".join(map(str, rows[:_NAMED])) + (", ..." if len(rows) > _NAMED else "")
                raise ValueError(f"{what}: {said} values in {len(rows)} row(s): {listed}")
        if not self._said_normalised:
            logger.warning("%s are not unit length; normalising them (said once)", what)
            self._said_normalised = True
        scaled = (features.double() / norms[:, None]).float()
        return torch.where(off[:, None], scaled, unit)


class TextReading(NamedTuple):
    """What the labels' text says of a batch: the part of a score that no stream changes.

    Attributes:
        features: (B, D) of unit length.
        logits: (B, C + M), negatives in group order.
        sums: sums over them.
    """

    features: Tensor
    logits: Tensor
    sums: SideSums


class GroupedDetector(TextDetector):
    """A detector with negative labels, held in group order."""

    negative_order: Tensor

    def __init__(
        self, text_features: Tensor, n_id: int, groups: int, permute: bool, logit_scale: float
    ) -> None:
        super().__init__(text_features, n_id)
        self.n_negatives = len(text_features) - n_id
        check_positive_int("groups", groups)
        if self.n_negatives < 1:
            raise ValueError(
                f"n_id is {n_id} and text_features has {len(text_features)} rows: no negative label left"
            )
        if self.n_negatives < groups:
            raise ValueError(f"{self.n_negatives} negative label(s) cannot form {groups} groups")
        if not (math.isfinite(logit_scale) and logit_scale > 0):
            raise ValueError(f"logit_scale must be finite and above 0, got {logit_scale}")
        self.groups, self.permute, self.logit_scale = groups, permute, float(logit_scale)
        order = group_order(self.n_negatives, groups, permute).to(text_features.device)
        # where row k of the caller's text features stands in ours, and back
        rows = torch.cat([torch.arange(n_id, device=order.device), order + n_id])
        self.text_features = self.text_features[rows]
        self.register_buffer("negative_order", order)

    def _logits(self, features: Tensor) -> Tensor:
        """(B, C + M) at least float32, negatives in group order."""
        logits = features @ self.text_features.T
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        return logits.mul_(self.logit_scale)

    def read(self, features: Tensor) -> TextReading:
        """Compare (B, D) image features with the labels' text; changes nothing.

        Detectors with the same text features, ``groups``, ``permute`` and ``logit_scale`` read the same,
        so one reading serves all of them: see ``AdaNeg.score_reading``.

        Raises:
            ValueError, TypeError: wrong width, or values that are not finite.
        """
        features = self._checked(features)
        logits = self._logits(features)
        return TextReading(features, logits, self._sums(logits))

    def nearest_negatives(self, features: Tensor, k: int = 3) -> tuple[Tensor, Tensor]:
        """The k negative labels whose text is nearest to each image.

        Returns:
            (B, k) int64 rows of the caller's text features, nearest first, and their (B, k) cosines.
        """
        features = self._checked(features)
        cosines = features @ self.text_features[self.n_id :].T
        top = cosines.topk(min(k, self.n_negatives), dim=1)
        return self.negative_order[top.indices] + self.n_id, top.values.float()

    def _sums(self, logits: Tensor) -> SideSums:
        return side_sums(logits, self.n_id, self.groups)
