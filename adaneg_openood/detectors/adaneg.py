"""AdaNeg: negative proxies that adapt to the test stream."""

from __future__ import annotations

import torch
from torch import Tensor

from adaneg_openood.detectors.adagap import RunningIdShare, thresholds
from adaneg_openood.detectors.bank import FeatureBank
from adaneg_openood.detectors.base import GroupedDetector, Scores, TextReading
from adaneg_openood.detectors.calibration import SideEvidence, StreamMean, log_size_odds
from adaneg_openood.detectors.config import AdaNegConfig
from adaneg_openood.detectors.diagnosis import Diagnosis, diagnose
from adaneg_openood.detectors.proxies import sample_adaptive_cosines, task_adaptive_cosines
from adaneg_openood.detectors.scoring import (
    SideSums,
    entropy,
    replaced_sums,
    row_argmax,
    summed_id_probabilities,
)


class AdaNeg(GroupedDetector):
    """AdaNeg (Zhang and Zhang, NeurIPS 2024).

    Stateful: every :meth:`score` first writes the batch's confident images to the bank and then scores
    the batch against it, so scores depend on the stream and on how it is cut into batches.

    Args:
        text_features: (C + M, D), ID rows first, any float dtype.
        n_id: C.
        logit_scale: s = exp of the model's logit scale, about 100 for CLIP.
        config: settings; the published ones for ImageNet by default.

    Raises:
        ValueError, TypeError: bad shapes, values that are not finite, or settings out of range.

    Example:
        >>> det = AdaNeg(text_features, n_id=1000)  # doctest: +SKIP
        >>> det.score(image_features).conf  # doctest: +SKIP
    """

    stateless = False

    def __init__(
        self,
        text_features: Tensor,
        n_id: int,
        logit_scale: float = 100.0,
        config: AdaNegConfig | None = None,
    ) -> None:
        config = AdaNegConfig() if config is None else config
        super().__init__(text_features, n_id, config.groups, config.permute, logit_scale)
        self.config = config
        n_rows, dim = self.text_features.shape
        self.bank = FeatureBank(n_rows, dim, config.memory_length - 1, config.replacement)
        self.bank.to(self.text_features.device)
        self.id_share = RunningIdShare().to(self.text_features.device)
        self.evidence = SideEvidence().to(self.text_features.device)
        self.centre: StreamMean | None = None
        if config.calibration == "centered":
            self.centre = StreamMean(dim).to(self.text_features.device)
        self._log_odds = log_size_odds(n_id, self.n_negatives, config.groups)
        place = torch.empty_like(self.negative_order)
        place[self.negative_order] = torch.arange(self.n_negatives, device=place.device)
        # derived from the settings: not saved
        self.register_buffer("_place_of_negative", place, persistent=False)

    _place_of_negative: Tensor

    def reset(self) -> None:
        """Forget the stream: the bank is emptied, and AdaGap's window starts again."""
        self.bank.reset()
        self.id_share.reset()
        self.evidence.reset()
        if self.centre is not None:
            self.centre.reset()

    def diagnose(self) -> Diagnosis:
        """What the memory looks like, with warnings where AdaNeg is used outside of where it helps."""
        return diagnose(self)

    @torch.no_grad()
    def score(self, features: Tensor) -> Scores:
        """Cache the batch's confident images, then score the batch.

        Args:
            features: (B, D), any float dtype; B may be 0.

        Raises:
            ValueError, TypeError: wrong width, or values that are not finite; the bank stays as it was.
        """
        return self.score_reading(self.read(features))

    @torch.no_grad()
    def score_reading(self, reading: TextReading, keep: bool = False) -> Scores:
        """:meth:`score` of a batch that was read already, here or by a detector that reads the same.

        Args:
            reading: see :meth:`~GroupedDetector.read`.
            keep: leave the reading as it is, for the next detector; otherwise its memory is used up.
        """
        features, logits, text = reading
        if len(logits) == 0:
            empty = logits.new_empty(0, dtype=torch.float32)
            return Scores(logits.new_empty(0, dtype=torch.long), empty, empty, empty)
        s_nl = text.score()
        mean = None if self.centre is None else self.centre.observe(features)
        self._cache(features, text, s_nl)
        adaptive = text
        if self.bank.n_cached:
            adaptive = self._adapted(features, logits, _copied(text) if keep else text, mean, keep)
        probabilities = summed_id_probabilities(text, adaptive, self._prediction_weight())
        s_nl, s_ada = s_nl.float(), adaptive.score().float()
        conf = combined(s_nl, s_ada, self.config)
        return Scores(probabilities.argmax(dim=1), conf, s_nl, s_ada)

    def _prediction_weight(self) -> Tensor | float:
        """Lambda; in the calibrated mode only as far as ID rows hold images to be compared."""
        if self.centre is None:
            return self.config.lam
        filled = (self.bank.active_rows[: self.bank.n_active] < self.n_id).sum()
        return self.config.lam * filled / self.n_id

    def _cache(self, features: Tensor, text: SideSums, s_nl: Tensor) -> None:
        """Write confident images to the row of their nearest label, each on its own side."""
        balanced = text.score(self._log_odds)
        confidence = s_nl if self.centre is None else balanced
        upper, lower = thresholds(self.config.gamma, self.config.gap)
        if self.config.adagap:
            share = self.id_share.observe(
                int((confidence > upper).sum()), int((confidence < lower).sum())
            )
            upper, lower = thresholds(self.config.gamma, self.config.gap, share)
        is_id, is_negative = confidence > upper, confidence < lower
        self.evidence.observe(is_id, is_negative, balanced)
        as_id, as_neg = is_id.nonzero().squeeze(1), is_negative.nonzero().squeeze(1)
        exp_id, exp_neg = text.exp_id.index_select(0, as_id), text.exp_neg.index_select(0, as_neg)
        places = torch.cat([exp_id.argmax(dim=1), row_argmax(exp_neg) + self.n_id])
        images = torch.cat([as_id, as_neg])
        if self.config.replacement == "entropy":
            entropies = torch.cat([entropy(exp_id), entropy(exp_neg)])
        else:
            entropies = confidence.new_zeros(len(images))
        self.bank.add(
            self._rows_at(places),
            features.index_select(0, images),
            entropies,
            self.text_features.index_select(0, places),
        )

    def _adapted(
        self, features: Tensor, logits: Tensor, text: SideSums, mean: Tensor | None, keep: bool
    ) -> SideSums:
        """Sums with proxies in place of the text features of rows that hold images."""
        places = self._places_of(self.bank.active_rows[: self.bank.n_active])
        if self.config.proxy == "task" and mean is None:
            cosines = task_adaptive_cosines(features, self.bank)
        else:
            text_cosines = logits.index_select(1, places).T.div(self.logit_scale).contiguous()
            cosines = self._other_cosines(features, self.text_features[places], text_cosines, mean)
        changed = cosines.to(logits.dtype).mul_(self.logit_scale)
        id_logits = logits[:, : self.n_id]
        return replaced_sums(
            text, id_logits.clone() if keep else id_logits, places, changed, self.groups
        )

    def _other_cosines(
        self, features: Tensor, text: Tensor, text_cosines: Tensor, mean: Tensor | None
    ) -> Tensor:
        """(A, B) cosines with sample-adaptive proxies, centred proxies, or both."""
        if self.config.proxy == "task":
            assert mean is not None
            proxies = task_adaptive_cosines(features - mean, self.bank)
        else:
            proxies = sample_adaptive_cosines(
                features, text, text_cosines, self.bank, self.config.beta, mean
            )
        if mean is None:
            return proxies
        lift = proxies - (text_cosines - (text @ mean)[:, None])
        return text_cosines + lift * (self.config.gain * self.evidence.balance)

    # The bank speaks of rows in the caller's order; logits stand in group order.

    def _rows_at(self, places: Tensor) -> Tensor:
        negative = self.negative_order[(places - self.n_id).clamp_min(0)] + self.n_id
        return torch.where(places < self.n_id, places, negative)

    def _places_of(self, rows: Tensor) -> Tensor:
        place = self._place_of_negative[(rows - self.n_id).clamp_min(0)] + self.n_id
        return torch.where(rows < self.n_id, rows, place)


def combined(s_neglabel: Tensor, s_adaptive: Tensor, config: AdaNegConfig) -> Tensor:
    """(B,) confidence from the (B,) score with text and the (B,) score with adaptive proxies."""
    if config.score == "combine":
        return s_adaptive + config.lam * s_neglabel
    if config.score == "multiply":
        return s_adaptive * s_neglabel
    return s_adaptive if config.score == "adaptive" else s_neglabel


def _copied(text: SideSums) -> SideSums:
    """Sums of which :func:`replaced_sums` may use up what it uses up."""
    return text._replace(exp_neg=text.exp_neg.clone())
