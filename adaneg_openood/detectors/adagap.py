"""AdaGap: thresholds that follow the share of ID images in the recent stream."""

from __future__ import annotations

import torch
from torch import Tensor

from adaneg_openood.detectors.state import StateModule

_WINDOW = 10_000
_PRIOR = 100  # decisions of each kind the window starts with


class RunningIdShare(StateModule):
    """Share of ID among the last 10,000 confident decisions (AdaNeg, AdaGap).

    The window starts with 100 ID and 100 OOD decisions, alternating, ID first.

    Attributes:
        window: (10,000,) uint8, 1 = ID; the newest decision stands last.
        held: scalar int64, how many entries at the end of the window are decisions.
    """

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

    def _unfit(self, state: dict[str, Tensor]) -> str | None:  # type: ignore[override]
        problem = super()._unfit(state)
        if problem is None and not 1 <= int(state["held"]) <= _WINDOW:
            problem = f"held must be in [1, {_WINDOW}], got {int(state['held'])}"
        if problem is None and int(state["window"].max()) > 1:
            problem = "window must hold 0 and 1 only"
        return problem


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
