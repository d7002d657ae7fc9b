"""AdaGap: thresholds that follow the share of ID images in the recent stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_WINDOW = 10_000
_PRIOR = 100  # decisions of each kind the window starts with


class RunningIdShare(nn.Module):
    """Share of ID among the last 10,000 confident decisions (AdaNeg, AdaGap).

    The window starts with 100 ID and 100 OOD decisions, alternating, ID first.
    """

    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.tensor([1, 0] * _PRIOR, dtype=torch.uint8))

    def reset(self) -> None:
        """Back to the prior."""
        self.window = torch.tensor([1, 0] * _PRIOR, dtype=torch.uint8, device=self.window.device)

    def observe(self, n_id: int, n_ood: int) -> float:
        """Enter a batch's decisions, ID ones first, and return the share of ID, in [0, 1]."""
        entering = self.window.new_tensor([1] * n_id + [0] * n_ood)
        self.window = torch.cat([self.window, entering])[-_WINDOW:]
        return float(self.window.sum()) / len(self.window)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        saved = state_dict.get(prefix + "window")
        if saved is not None:
            self.window = self.window.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)


def thresholds(gamma: float, gap: float, id_share: float | None = None) -> tuple[float, float]:
    """Confidence thresholds (ID side, negative side) of the bank.

    Without ``id_share``: ``gamma + gap (1 - gamma)`` and ``gamma - gap gamma``. With it, the side that
    the stream has too much of, seen from the other, is guarded by the share instead of ``gap``.
    """
    upper, lower = gamma + gap * (1 - gamma), gamma - gap * gamma
    if id_share is not None and id_share > 0.5:
        lower = gamma - id_share * gamma
    elif id_share is not None and id_share < 0.5:
        upper = gamma + (1 - id_share) * (1 - gamma)
    return upper, lower
