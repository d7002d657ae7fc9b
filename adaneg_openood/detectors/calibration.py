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
from torch import Tensor, nn

_MEAN_WINDOW = 2048  # images the running mean looks back
_EVIDENCE_WINDOW = 10_000  # images, AdaGap's window


def log_size_odds(n_id: int, n_negatives: int, groups: int) -> float:
    """Log odds that make the grouped ID score one half where no label fits better than another.

    ``log(M / G) - log C``: sums of exponentials over the two sides become means.
    """
    return math.log(n_negatives // groups) - math.log(n_id)


class StreamMean(nn.Module):
    """Running mean of the image features of a stream, over about the last 2,048 images.

    Args:
        dim: D.
    """

    mean: Tensor
    seen: Tensor

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
        """Take in (B, D) features, B at least 1, and return the mean (D,)."""
        self.seen += len(features)
        # exact while the window fills, then exponential
        share = len(features) / self.seen.clamp(max=max(_MEAN_WINDOW, len(features)))
        self.mean.lerp_(features.mean(dim=0).to(self.mean), share.to(self.mean))
        return self.mean


class SideEvidence(nn.Module):
    """How evenly a stream's confident images fall on the ID and the negative side.

    The counts look back over about the last 10,000 images and start at one each.
    """

    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("counts", torch.ones(2))

    def reset(self) -> None:
        """Forget the stream."""
        self.counts.fill_(1.0)

    @torch.no_grad()
    def observe(self, is_id: Tensor, is_negative: Tensor) -> None:
        """Take in which of B images are confidently ID, and which confidently not; (B,) bool each."""
        new = torch.stack([is_id.sum(), is_negative.sum()]).to(self.counts)
        self.counts.mul_(max(0.0, 1.0 - len(is_id) / _EVIDENCE_WINDOW)).add_(new).clamp_(min=1.0)

    @property
    def balance(self) -> Tensor:
        """Scalar in (0, 1]: the square root of the smaller side's count over the larger's."""
        return (self.counts.min() / self.counts.max()).sqrt()
