"""SmoothedNegLabel: NegLabel's evidence moved toward that of an image's neighbours in the stream."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from adaneg_openood.detectors.base import DetectorInfo, Diagnosis, Scores
from adaneg_openood.detectors.neglabel import GroupedDetector
from adaneg_openood.detectors.otsu import exact_split
from adaneg_openood.detectors.scoring import GroupedLogits, log_size_odds
from adaneg_openood.detectors.state import ring_slots, widest_float
from adaneg_openood.io.checks import check_int

# The constants of the method. They were chosen once; see docs/never_worse.md.
_KAPPA = 12.0
"""Sharpness of the kernel over centred cosines."""
_WEIGHT = 0.8
"""Largest weight of the neighbours."""
_CLAMP = 12.0
"""Evidence in nats beyond which an image counts no more as a neighbour."""
_FARTHEST = 1e4
"""Evidence in nats beyond which images tie."""
_LEAST = 32
"""Images below which no witness is heard."""
_FLOOR = 1e-6
"""Least squared distance from the stream's mean."""
_STILL = 1e-12
"""Variance up to which values count as equal: rounding in float32."""


class Witnesses(NamedTuple):
    """What the stream's own images say for smoothing; each is () and the gate lies in [0, 1].

    Attributes:
        two_peaks: eta, Otsu's between-class variance of the evidence over its variance; a single
            Gaussian has 0.64.
        neighbours: r, Pearson correlation of the neighbours' evidence with an image's own.
        disagreement: rho, mean MCM confidence of the lower group over that of the upper one.
        gate: how far all three agree that smoothing is safe.
    """

    two_peaks: Tensor
    neighbours: Tensor
    disagreement: Tensor
    gate: Tensor


def text_evidence(logits: GroupedLogits, log_odds: float, dtype: torch.dtype) -> Tensor:
    """(B,) log odds of ID in nats: NegLabel's score on another scale, which ranks images alike.

    Args:
        logits: of a batch.
        log_odds: added; ``log(M // G) - log(C)`` makes the evidence zero where no label fits better
            than another.
        dtype: in which to compute.
    """
    odds = (logits.lse_id[:, None] - logits.lse_groups).to(dtype)
    return logsigmoid(odds).logsumexp(dim=1) - logsigmoid(-odds).logsumexp(dim=1) + log_odds


def neighbour_evidence(
    features: Tensor, slots: Tensor, held: Tensor, held_evidence: Tensor, n: Tensor
) -> Tensor:
    """(B,) kernel mean of the evidence of the images held, an image itself left out.

    Args:
        features: (B, D) unit vectors, held already.
        slots: (B,) int64, where.
        held: (N, D) unit vectors, of which the first n are in use; the others are zero.
        held_evidence: (N,), zero where not in use.
        n: () int64.
    """
    count = n.clamp_min(1)  # a first image that is bad is not held
    mean = held.sum(dim=0, dtype=torch.float32) / count
    towards = held.float() @ mean
    mean_length = mean.square().sum()
    inverse = (1.0 - 2.0 * towards + mean_length).clamp_min_(_FLOOR).rsqrt_()
    centred = features.float() - mean
    length = centred.square().sum(dim=1, keepdim=True).clamp_min_(_FLOOR)
    centred *= _KAPPA * length.rsqrt_()
    cosines = (centred @ held.float().T).sub_((centred @ mean)[:, None]).mul_(inverse)
    kernel = cosines.clamp_(-_KAPPA, _KAPPA).sub_(_KAPPA).exp_()
    kernel.scatter_(1, slots[:, None], 0.0)
    in_use = torch.arange(len(held), device=held.device) < n
    weighted = kernel @ torch.stack([held_evidence.float(), in_use.float()], dim=1)
    weighted = weighted.to(held_evidence.dtype)
    prior = math.exp(-_KAPPA / 2)
    return (weighted[:, 0] + prior * held_evidence.sum() / count) / (weighted[:, 1] + prior)


def witnesses(evidence: Tensor, neighbours: Tensor, confidence: Tensor, n: Tensor) -> Witnesses:
    """What the first n of (N,) images held say: their evidence, their neighbours' and MCM confidence."""
    in_use = torch.arange(len(evidence), device=evidence.device) < n
    count = n.clamp_min(1)

    def centred(values: Tensor) -> Tensor:
        return torch.where(in_use, values - values.sum() / count, 0.0)

    split = exact_split(evidence, n)
    own, theirs = centred(evidence), centred(neighbours)
    spread = (own.square().sum() * theirs.square().sum()).sqrt()
    r = (own * theirs).sum() / spread.clamp_min(_STILL)
    lower, upper = in_use & (evidence < split.theta), in_use & (evidence >= split.theta)
    means = [(confidence * side).sum() / side.sum().clamp_min(1) for side in (lower, upper)]
    rho = means[0] / means[1].clamp_min(_STILL)
    gate = (
        _ramp(split.eta - 0.3 / count.float().sqrt(), 0.66, 0.72)
        * _ramp(r, 0.78, 0.86)
        * _ramp(-rho, -0.8, -0.7)
    )
    heard = (
        (n >= _LEAST)
        & (split.variance > _STILL)
        & (theirs.square().sum() / count > _STILL)
        & lower.any()
        & upper.any()
    )
    return Witnesses(split.eta, r, rho, torch.where(heard, gate, 0.0))


def _ramp(x: Tensor, low: float, high: float) -> Tensor:
    return ((x - low) / (high - low)).clamp(0.0, 1.0)


@dataclass(frozen=True)
class SmoothingDiagnosis(Diagnosis):
    """The state of SmoothedNegLabel after a stream; it has nothing to warn of, as it abstains itself.

    Attributes:
        held: images in the window.
        two_peaks, neighbours, disagreement, gate: see :class:`Witnesses`.
    """

    held: int
    two_peaks: float
    neighbours: float
    disagreement: float
    gate: float

    def __str__(self) -> str:
        return (
            f"{self.held} of {self.images} images held; gate {self.gate:.2f}: two peaks of evidence "
            f"{self.two_peaks:.2f} (opens from 0.66 to 0.72), agreement with neighbours "
            f"{self.neighbours:.2f} (0.78 to 0.86), MCM confidence of the lower peak over "
            f"the upper one's {self.disagreement:.2f} (0.8 to 0.7)"
        )


class SmoothedNegLabel(GroupedDetector):
    """NegLabel smoothed over the recent stream, made to be no worse than NegLabel on any stream.

    Every image has evidence, the log odds of its NegLabel score in nats. A window holds the last images
    of the stream, and ``conf`` moves an image's evidence toward that of its neighbours there, as far as
    three unsupervised witnesses agree that this is safe. Where they do not agree (see :attr:`gate`) the
    ranking is NegLabel's. Constants are fixed; ``docs/never_worse.md`` says what they were chosen on.

    ``conf`` is evidence in nats and no probability; see :meth:`shown`. ``pred`` is the zero-shot class.
    A batch larger than half of the window is scored in pieces of that size.

    Args:
        text_features: (C + M, D), ID rows first, any float dtype.
        n_id: C.
        logit_scale: s = exp of the model's logit scale, about 100 for CLIP.
        groups: G of the NegLabel score, at least 1 and at most M.
        permute: group the negatives in a fixed random order, not the given one.
        window: images held, at least 1.

    Raises:
        ValueError, TypeError: bad shapes, values that are not finite, or settings out of range.
    """

    info = DetectorInfo(
        name="smoothed_neglabel",
        title="SmoothedNegLabel",
        idea="NegLabel's evidence moved toward that of an image's neighbours in the recent stream, "
        "as far as the stream itself shows that this is safe.",
        paper="This package, docs/never_worse.md",
        link="",
        published_in="",
        month="2026-07",
        needs_negatives=True,
        keeps_state=True,
        batch_matters=True,
        inputs="text features of ID and negative labels",
        state="2,048 (D + 3) for a window of 2,048",
        cost="(C + M) D + 2,048 D",
        published="none",
        choose_when="Nobody has looked at the stream first: it may be short, lopsided, or all ID.",
    )

    ranges: ClassVar = {
        "evidence": (-_CLAMP, _CLAMP),
        "neighbours": (-_CLAMP, _CLAMP),
        "confidence": (0.0, 1.0),
        "seen": (0.0, math.inf),
    }
    held: Tensor
    evidence: Tensor
    neighbours: Tensor
    confidence: Tensor
    seen: Tensor
    heard: Tensor

    def __init__(
        self,
        text_features: Tensor,
        n_id: int,
        logit_scale: float = 100.0,
        groups: int = 5,
        permute: bool = True,
        window: int = 2048,
    ) -> None:
        super().__init__(text_features, n_id, groups, permute, logit_scale)
        check_int("window", window)
        self.window = window
        zero = self.text_features.new_zeros(())
        # one more than the window, for what is not to be remembered
        self.add_state("held", zero.expand(window + 1, self.text_features.shape[1]))
        for name in ("evidence", "neighbours", "confidence"):
            self.add_state(name, zero.expand(window + 1), keep_float32=True)
        self.add_state("seen", zero.long())
        self.add_state("heard", zero.expand(len(Witnesses._fields)), keep_float32=True)

    stands_bad_rows = fixed_shape = True

    @property
    def gate(self) -> Tensor:
        """() how far the witnesses agreed for the last batch, in [0, 1]; 0 ranks as NegLabel does."""
        return Witnesses(*self.heard).gate

    def _unfit(self, state: Mapping[str, Tensor]) -> str | None:
        return super()._unfit(state) or self._unfit_rows(state["held"][: self.window], state["seen"])

    @staticmethod
    def shown(conf: Tensor) -> Tensor:
        """Evidence as a number in [0, 1] by the logistic function; it ranks alike."""
        return torch.sigmoid(conf)

    def diagnose(self) -> SmoothingDiagnosis:
        """What the witnesses said of the last batch, and whether the window was smoothed over."""
        with self._exactly():
            self._report_bad_rows()
            images = int(self.seen)
            return SmoothingDiagnosis(images, {}, min(images, self.window), *self.heard.tolist())

    def _score(self, features: Tensor) -> Scores:
        good = torch.isfinite(features.sum(dim=1))
        text = self._compare(torch.where(good[:, None], features, 0.0), keep_negatives=False)
        logits, wide = text.grouped, widest_float(features.device)
        odds = log_size_odds(self.n_id, self.n_negatives, self.groups)
        evidence = text_evidence(logits, odds, wide)
        mcm = (logits.max_id - logits.lse_id).exp()
        piece = max(self.window // 2, 1)
        parts = zip(*(values.split(piece) for values in (text.features, evidence, mcm, good)))
        conf = torch.cat([self._smooth(*part) for part in parts])
        pred = text.logits[:, : self.n_id].argmax(dim=1)
        return Scores(pred, conf, s_neglabel=logits.score().float())

    def _smooth(self, features: Tensor, evidence: Tensor, mcm: Tensor, good: Tensor) -> Tensor:
        """Write a piece of a batch to the window, and move its evidence toward its neighbours'."""
        _, slots = ring_slots(self.seen, good, self.window)
        self.seen.add_(good.sum())
        n = self.seen.clamp_max(self.window)
        self.held[slots] = features.to(self.held.dtype)
        self.evidence[slots] = evidence.clamp(-_CLAMP, _CLAMP).to(self.evidence.dtype)
        self.confidence[slots] = mcm.to(self.confidence.dtype)
        # the last slot of each, which is not remembered, is left out
        own = self.evidence[: self.window].to(evidence.dtype)
        own_slots = slots.clamp_max(self.window - 1)
        theirs = neighbour_evidence(features, own_slots, self.held[: self.window], own, n)
        self.neighbours[slots] = theirs.to(self.neighbours.dtype)
        neighbours, confidence = (
            part[: self.window].to(own.dtype) for part in (self.neighbours, self.confidence)
        )
        told = witnesses(own, neighbours, confidence, n)
        self.heard.copy_(torch.stack(told))
        weight = _WEIGHT * told.gate
        return ((1.0 - weight) * evidence.clamp(-_FARTHEST, _FARTHEST) + weight * theirs).float()
