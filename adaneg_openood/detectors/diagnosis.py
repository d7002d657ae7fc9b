"""What AdaNeg's memory looks like, and whether the stream is one that it helps on, in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from adaneg_openood.detectors.scoring import log_size_odds
from adaneg_openood.detectors.state import StateModule

_UNEVEN_SIDES = 4.0  # ID names against a group's negatives, either way
_LOPSIDED = 0.05  # the smaller side's share of confident images
_IMPURE = 0.75  # what the thresholds mean to guarantee
_SHORT = 5  # images per ID name
_WINDOW = 10_000  # images the counts look back, AdaGap's window


class ConfidentImages(StateModule):
    """How a stream's confident images fall on the ID and the negative side.

    The sums look back over about the last 10,000 images and start at one image of even odds per side.

    Attributes:
        counts: (2,) float32, confident images of the ID side and the negative side.
        right: (2,) float32, how many of them are expected to be right.
        seen: scalar int64, images scored.
    """

    counts: Tensor
    right: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("counts", torch.ones(2), keep_float32=True)
        self.add_state("right", torch.full((2,), 0.5), keep_float32=True)
        self.add_state("seen", torch.zeros((), dtype=torch.long))

    def observe(self, is_id: Tensor, is_negative: Tensor, probability: Tensor) -> None:
        """Take in a batch.

        Args:
            is_id, is_negative: (B,) bool, confidently ID, and confidently not.
            probability: (B,) of being ID, such as the score at :func:`log_size_odds`.
        """
        sides = torch.stack([is_id, is_negative]).to(self.counts)
        right = torch.stack([probability, 1 - probability]).to(sides)
        keep = max(0.0, 1.0 - len(is_id) / _WINDOW)
        self.counts.mul_(keep).add_(sides.sum(dim=1))
        # a mask and not a product: a row that is NaN is on neither side
        self.right.mul_(keep).add_(right.masked_fill_(sides == 0, 0.0).sum(dim=1))
        # what the start was worth is never lost, so that both sides stay comparable
        floor = (1.0 - self.counts).clamp_(min=0.0)
        self.counts.add_(floor)
        self.right.add_(floor, alpha=0.5)
        self.seen += len(is_id)

    def _unfit(self, state: Mapping[str, Tensor]) -> str | None:
        problem = super()._unfit(state)
        counts, right = (state[name].float().flatten() for name in ("counts", "right"))
        if problem is None and bool(((counts < 0.999) | (right < 0) | (right > 1.001 * counts)).any()):
            problem = "right must lie between 0 and counts, and counts be at least 1"
        return problem


@dataclass(frozen=True)
class Diagnosis:
    """The state of a detector after a stream; each method adds what it has to tell.

    Attributes:
        images: scored since the last reset.
        warnings: kind -> where the method is used outside of where it helps, and what to do.
    """

    images: int
    warnings: Mapping[str, str]


@dataclass(frozen=True)
class BankDiagnosis(Diagnosis):
    """The state of AdaNeg after a stream.

    Attributes:
        id_rows, negative_rows: share of rows that hold images, in [0, 1].
        cached: images held.
        id_share: of the confident images, the share taken for ID.
        id_purity, negative_purity: share of each side's confident images that is expected to be right,
            by their own scores with the sides' sizes taken into account.
    """

    id_rows: float
    negative_rows: float
    cached: int
    id_share: float
    id_purity: float
    negative_purity: float

    def __str__(self) -> str:
        return (
            f"{self.cached} of {self.images} images held, in {self.id_rows:.0%} of ID rows and "
            f"{self.negative_rows:.0%} of negative rows; {self.id_share:.0%} of confident images taken "
            f"for ID; expected purity {self.id_purity:.0%} (ID), {self.negative_purity:.0%} (negative)"
        )


def diagnose(held: Tensor, confident: ConfidentImages, n_id: int, groups: int) -> BankDiagnosis:
    """Look at a detector's memory and its confident images.

    Args:
        held: (C + M,) images that each row of the bank holds, ID rows first.
        confident: the stream's tally.
        n_id: C.
        groups: of the M negatives.
    """
    filled = held > 0
    counts = confident.counts.tolist()
    id_share, images = counts[0] / sum(counts), int(confident.seen)
    purities = [right / count for right, count in zip(confident.right.tolist(), counts)]
    return BankDiagnosis(
        images=images,
        id_rows=float(filled[:n_id].float().mean()),
        negative_rows=float(filled[n_id:].float().mean()),
        cached=int(held.sum()),
        id_share=id_share,
        id_purity=purities[0],
        negative_purity=purities[1],
        warnings=_warnings(n_id, len(held) - n_id, groups, images, id_share, counts, purities),
    )


def _warnings(
    n_id: int,
    n_negatives: int,
    groups: int,
    images: int,
    id_share: float,
    counts: list[float],
    purities: list[float],
) -> dict[str, str]:
    size = n_negatives // groups
    remedy = "Compare with NegLabel, or use SmoothedNegLabel, which was made for such streams"
    found = {}
    odds = abs(log_size_odds(n_id, n_negatives, groups))
    if odds > math.log(_UNEVEN_SIDES):
        found["uneven sides"] = (
            f"{n_id} ID names stand against {size} negatives per group, so without any evidence the "
            f"score is {n_id / (n_id + size):.2f} and not 0.5, and the thresholds cache images on the "
            f"wrong side. {remedy}"
        )
    if min(id_share, 1 - id_share) < _LOPSIDED:
        side = "ID" if id_share > 0.5 else "negative"
        found["lopsided stream"] = (
            f"{max(id_share, 1 - id_share):.0%} of the confident images fall on the {side} side, so "
            f"what is cached helps that side alone. {remedy}"
        )
    for side, count, purity in zip(("ID", "negative"), counts, purities):
        if count > 1 and purity < _IMPURE:  # it starts at one
            found[f"impure {side} side"] = (
                f"of the images cached on the {side} side only {purity:.0%} are expected to belong "
                f"there. {remedy}"
            )
    if 0 < images < _SHORT * n_id:
        found["short stream"] = (
            f"{images} images for {n_id} ID names: the memory has little to learn from. {remedy}"
        )
    return found
