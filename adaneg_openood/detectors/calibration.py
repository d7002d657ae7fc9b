"""What keeps AdaNeg from doing harm (not part of the published method; ``docs/safe.md`` derives it).

Published AdaNeg hurts on some streams, for three reasons, each with its remedy here.

- Its thresholds read the NegLabel score as a probability, though C ID labels stand against M / G
  negatives: without any evidence the score is C / (C + M / G). :func:`log_size_odds` makes it one half.
- Image-image cosines lie far above image-text cosines (the modality gap), so a row with images outscores
  every row without. Measured from the stream's mean, :class:`StreamMean`, what images add to a row is
  zero on average.
- Where one side holds images and the other does not, all that images add goes to one side.
  :class:`SideEvidence` says how far the two are comparable.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from adaneg_openood.detectors.precision import AtLeastSingle

_MEAN_WINDOW = 2048  # images the running mean looks back
_EVIDENCE_WINDOW = 10_000  # images, AdaGap's window


def log_size_odds(n_id: int, n_negatives: int, groups: int) -> float:
    """Log odds that make the grouped ID score one half where no label fits better than another.

    ``log(M / G) - log C``: sums of exponentials over the two sides become means.
    """
    return math.log(n_negatives // groups) - math.log(n_id)


class StreamMean(AtLeastSingle):
    """Running mean of the image features of a stream, over about the last 2,048 images.

    Args:
        dim: D.
    """

    mean: Tensor
    seen: Tensor
    _at_least_single = ("mean",)

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def reset(self) -> None:
        """Forget the stream."""
        self.mean.zero_()
        self.seen.zero_()

    @torch.no_grad()
    def observe(self, features: Tensor) -> Tensor:
        """Take in (B, D) features, B at least 1, and return the mean (D,) in their dtype."""
        self.seen += len(features)
        # exact while the window fills, then exponential
        share = len(features) / self.seen.clamp(max=max(_MEAN_WINDOW, len(features)))
        self.mean.lerp_(features.to(self.mean.dtype).mean(dim=0), share.to(self.mean))
        return self.mean.to(features.dtype)


class SideEvidence(AtLeastSingle):
    """How a stream's confident images fall on the ID and the negative side.

    The sums look back over about the last 10,000 images and start at one image of even odds a side.
    """

    counts: Tensor
    confidences: Tensor
    seen: Tensor
    _at_least_single = ("counts", "confidences")

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("counts", torch.ones(2))
        self.register_buffer("confidences", torch.full((2,), 0.5))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def reset(self) -> None:
        """Forget the stream."""
        self.counts.fill_(1.0)
        self.confidences.fill_(0.5)
        self.seen.zero_()

    @torch.no_grad()
    def observe(self, is_id: Tensor, is_negative: Tensor, probability: Tensor) -> None:
        """Take in a batch.

        Args:
            is_id, is_negative: (B,) bool, confidently ID, and confidently not.
            probability: (B,) of being ID, such as the score at :func:`log_size_odds`.
        """
        sides = torch.stack([is_id, is_negative]).to(self.counts)
        right = torch.stack([probability, 1 - probability]).to(sides)
        keep = max(0.0, 1.0 - len(is_id) / _EVIDENCE_WINDOW)
        self.counts.mul_(keep).add_(sides.sum(dim=1))
        self.confidences.mul_(keep).add_(right.mul_(sides).sum(dim=1))
        # what the start was worth is never lost, so that both sides stay comparable
        floor = (1.0 - self.counts).clamp_(min=0.0)
        self.counts.add_(floor)
        self.confidences.add_(floor, alpha=0.5)
        self.seen += len(is_id)

    @property
    def balance(self) -> Tensor:
        """Scalar in (0, 1]: the square root of the smaller side's count over the larger's."""
        return (self.counts.min() / self.counts.max()).sqrt()

    @property
    def id_share(self) -> Tensor:
        """Scalar in (0, 1): share of the ID side among confident images."""
        return self.counts[0] / self.counts.sum()

    @property
    def purity(self) -> Tensor:
        """(2,) expected share of right images among the confident ones, ID side and negative side."""
        return self.confidences / self.counts
