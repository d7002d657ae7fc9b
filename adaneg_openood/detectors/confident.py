"""Which images count as confident, the tallies of them, and what they tell of AdaNeg's memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaneg_openood.detectors.base import Diagnosis
from adaneg_openood.detectors.scoring import log_size_odds
from adaneg_openood.detectors.state import StateModule

_REMEDY = "Compare with NegLabel, or use SmoothedNegLabel, which was made for such streams"
_UNEVEN_SIDES = 4.0  # ID names against a group's negatives, either way
_LOPSIDED = 0.05  # the smaller side's share of confident images
_IMPURE = 0.75  # what the thresholds mean to guarantee
_TELLING = 20  # confident images, below which a share tells nothing
_SHORT = 5  # images per ID name
_WINDOW = 10_000  # images that the tallies look back
_PRIOR = 100  # decisions of each kind AdaGap's window starts with


def thresholds(gamma: float, gap: float) -> tuple[float, float]:
    """Thresholds of both sides: ``gamma + gap (1 - gamma)``, ``gamma - gap gamma``."""
    return gamma + gap * (1 - gamma), gamma - gap * gamma


def shared_thresholds(
    gamma: float, gap: float, n_id: Tensor, n_all: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """:func:`thresholds` under AdaGap, as scalars of ``dtype``.

    The side that the stream has too much of, seen from the other, is guarded by the share of ID,
    ``n_id / n_all``, in place of ``gap``.
    """
    upper, lower = (torch.full_like(n_id, t, dtype=dtype) for t in thresholds(gamma, gap))
    share = n_id.to(dtype) / n_all.to(dtype)
    return (
        torch.where(2 * n_id < n_all, gamma + (1 - share) * (1 - gamma), upper),
        torch.where(2 * n_id > n_all, gamma - share * gamma, lower),
    )


class RunningIdShare(StateModule):
    """Share of ID among the last 10,000 confident decisions (AdaNeg, AdaGap).

    The window starts with 100 ID and 100 OOD decisions, alternating, ID first.

    Attributes:
        window: (10,000,) uint8, 1 = ID; the newest decision stands last.
        held: scalar int64, how many entries at the end of the window are decisions.
    """

    ranges: ClassVar = {"window": (0, 1), "held": (1, _WINDOW)}
    window: Tensor
    held: Tensor

    def __init__(self) -> None:
        super().__init__()
        start = torch.zeros(_WINDOW, dtype=torch.uint8)
        start[-2 * _PRIOR :: 2] = 1
        self.add_state("window", start)
        self.add_state("held", torch.tensor(2 * _PRIOR))

    def observe(self, is_id: Tensor, is_negative: Tensor) -> tuple[Tensor, Tensor]:
        """Enter a batch's decisions, all ID ones first; no value is read back from the device.

        Args:
            is_id, is_negative: (B,) bool.

        Returns:
            How many of the window's decisions are ID, and how many there are: scalars, int64.
        """
        n_id = is_id.sum()
        n_new = n_id + is_negative.sum()
        source = torch.arange(_WINDOW, device=self.window.device) + n_new
        old = self.window.gather(0, source.clamp_max(_WINDOW - 1))
        new = (source - _WINDOW < n_id).to(torch.uint8)
        self.window.copy_(torch.where(source < _WINDOW, old, new))
        self.held.add_(n_new).clamp_(max=_WINDOW)
        return self.window.sum(dtype=torch.long), self.held


class ConfidentImages(StateModule):
    """How a stream's confident images fall on the ID and the negative side.

    The sums look back over about the last 10,000 images and start at one image of even odds per side.

    Attributes:
        counts: (2,) float32, confident images of the ID side and the negative side.
        right: (2,) float32, how many of them are expected to be right.
        seen: scalar int64, images scored.
    """

    ranges: ClassVar = {"seen": (0, math.inf)}
    counts: Tensor
    right: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("counts", torch.ones(2, dtype=torch.float32), keep_float32=True)
        self.add_state("right", torch.full((2,), 0.5, dtype=torch.float32), keep_float32=True)
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
    filled, n_negatives = held > 0, len(held) - n_id
    of_id, of_negatives = confident.counts.tolist()
    right = confident.right.tolist()
    id_share, images = of_id / (of_id + of_negatives), int(confident.seen)
    id_purity, negative_purity = right[0] / of_id, right[1] / of_negatives
    size, warnings = n_negatives // groups, {}
    if abs(log_size_odds(n_id, n_negatives, groups)) > math.log(_UNEVEN_SIDES):
        warnings["uneven sides"] = (
            f"{n_id} ID names stand against {size} negatives per group, so without any evidence the "
            f"score is {n_id / (n_id + size):.2f} and not 0.5, and the thresholds cache images on the "
            "wrong side"
        )
    if min(id_share, 1 - id_share) < _LOPSIDED:
        side = "ID" if id_share > 0.5 else "negative"
        warnings["lopsided stream"] = (
            f"{max(id_share, 1 - id_share):.0%} of the confident images fall on the {side} side, so "
            "what is cached helps that side alone"
        )
    for side, count, purity in (("ID", of_id, id_purity), ("negative", of_negatives, negative_purity)):
        if count >= _TELLING and purity < _IMPURE:
            warnings[f"impure {side} side"] = (
                f"of about {count:.0f} images that were taken for the {side} side only {purity:.0%} are "
                "expected to belong there, by their own scores"
            )
    if 0 < images < _SHORT * n_id:
        warnings["short stream"] = (
            f"{images} images for {n_id} ID names: the memory has little to learn from"
        )
    return BankDiagnosis(
        images=images,
        id_rows=float(filled[:n_id].float().mean()),
        negative_rows=float(filled[n_id:].float().mean()),
        cached=int(held.sum()),
        id_share=id_share,
        id_purity=id_purity,
        negative_purity=negative_purity,
        warnings={kind: f"{said}. {_REMEDY}" for kind, said in warnings.items()},
    )
