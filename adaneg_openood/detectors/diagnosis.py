"""What AdaNeg's memory looks like, and whether the stream is one that it helps on, in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaneg_openood.detectors.calibration import log_size_odds

if TYPE_CHECKING:
    from adaneg_openood.detectors.adaneg import AdaNeg

_UNEVEN_SIDES = 4.0  # ID names against a group's negatives, either way
_LOPSIDED = 0.05  # the smaller side's share of confident images
_IMPURE = 0.75  # what the thresholds mean to guarantee
_SHORT = 5  # images an ID name


@dataclass(frozen=True)
class Diagnosis:
    """The state of a detector after a stream.

    Attributes:
        images: scored since the last reset.
        id_rows, negative_rows: share of rows that hold images, in [0, 1].
        cached: images held.
        id_share: of the confident images, the share taken for ID.
        id_purity, negative_purity: share of each side's confident images that is expected to be right,
            by their own scores with the sides' sizes taken into account.
        warnings: kind -> where AdaNeg is used outside of where it helps, and what to do.
    """

    images: int
    id_rows: float
    negative_rows: float
    cached: int
    id_share: float
    id_purity: float
    negative_purity: float
    warnings: Mapping[str, str]

    def __str__(self) -> str:
        return (
            f"{self.cached} of {self.images} images held, in {self.id_rows:.0%} of ID rows and "
            f"{self.negative_rows:.0%} of negative rows; {self.id_share:.0%} of confident images taken "
            f"for ID; expected purity {self.id_purity:.0%} (ID), {self.negative_purity:.0%} (negative)"
        )


def diagnose(detector: AdaNeg) -> Diagnosis:
    """Look at a detector's memory and evidence."""
    counts = detector.bank.counts > 0
    evidence = detector.evidence
    id_share, images = float(evidence.id_share), int(evidence.seen)
    id_purity, negative_purity = evidence.purity.tolist()
    warnings: dict[str, str] = {}
    if detector.config.calibration == "none":
        warnings = _warnings(detector, images, id_share, id_purity, negative_purity)
    return Diagnosis(
        images=images,
        id_rows=float(counts[: detector.n_id].float().mean()),
        negative_rows=float(counts[detector.n_id :].float().mean()),
        cached=detector.bank.n_cached,
        id_share=id_share,
        id_purity=id_purity,
        negative_purity=negative_purity,
        warnings=warnings,
    )


def _warnings(
    detector: AdaNeg, images: int, id_share: float, id_purity: float, negative_purity: float
) -> dict[str, str]:
    """Of the published method; the calibrated one guards against these itself."""
    n_id, size = detector.n_id, detector.n_negatives // detector.groups
    remedy = "AdaNegConfig.safe() (calibration: centered) guards against this; compare with NegLabel"
    found = {}
    odds = abs(log_size_odds(n_id, detector.n_negatives, detector.groups))
    if odds > math.log(_UNEVEN_SIDES):
        found["uneven sides"] = (
            f"{n_id} ID names stand against {size} negatives a group, so without any evidence the score "
            f"is {n_id / (n_id + size):.2f} and not 0.5, and the thresholds cache images on the wrong "
            f"side. {remedy}"
        )
    if min(id_share, 1 - id_share) < _LOPSIDED:
        side = "ID" if id_share > 0.5 else "negative"
        found["lopsided stream"] = (
            f"{max(id_share, 1 - id_share):.0%} of the confident images fall on the {side} side, so "
            f"what is cached helps that side alone. {remedy}"
        )
    sides = zip(("ID", "negative"), detector.evidence.counts.tolist(), (id_purity, negative_purity))
    for side, count, purity in sides:
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
