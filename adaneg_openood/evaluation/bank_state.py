"""What a detector's memory holds when a stream ends."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaneg_openood.detectors.bank import FeatureBank
from adaneg_openood.detectors.fixed_bank import FixedBank, as_pooled

_SAME = 1 - 1e-6  # cosine of a feature with itself, after rounding to float32


def bank_counts(
    detector: Any, features: Tensor, n_ood: int, find_ood: bool
) -> dict[str, np.ndarray | None]:
    """``counts`` and ``ood_counts`` of a :class:`~adaneg_openood.evaluation.StreamResult`.

    Args:
        detector: after its stream.
        features: (N, D) concat(OOD, ID) of the stream.
        n_ood: how many of them are OOD.
        find_ood: look up which cached images are OOD.
    """
    bank = getattr(detector, "bank", None)
    if bank is None or getattr(detector, "n_id", None) is None:
        return {"counts": None, "ood_counts": None}
    counts = bank.counts.cpu().numpy().astype(np.int32)
    if not find_ood or not isinstance(bank, (FeatureBank, FixedBank)):
        return {"counts": counts, "ood_counts": None}
    bank = as_pooled(bank)
    rows = bank.rows[: bank.n_cached].cpu().numpy()
    of_ood = np.bincount(rows[_cached_is_ood(bank, features, n_ood)], minlength=len(counts))
    return {"counts": counts, "ood_counts": of_ood.astype(np.int32)}


def diagnosis_of(detector: Any) -> dict[str, Any] | None:
    """What a detector's ``diagnose`` says, as JSON values; None where it has none."""
    diagnose = getattr(detector, "diagnose", None)
    state = diagnose() if callable(diagnose) else None
    if state is None:
        return None
    found = asdict(state) if is_dataclass(state) and not isinstance(state, type) else dict(state)
    # JSON knows no NaN
    return {key: None if value != value else value for key, value in found.items()}


def _cached_is_ood(bank: Any, features: Tensor, n_ood: int) -> np.ndarray:
    """(n_cached,) whether each cached image is OOD.

    A bank does not know which image a feature came from, so it is looked for: among its neighbours
    along one random direction, and where it is not there among all images.
    """
    exact = torch.float32 if features.device.type == "mps" else torch.float64  # MPS has no float64
    cached = bank.features[: bank.n_cached].to(exact)
    if not len(cached):
        return np.zeros(0, dtype=bool)
    unit = torch.nn.functional.normalize(features.to(exact), dim=1)
    direction = torch.randn(unit.shape[1], generator=torch.Generator().manual_seed(0)).to(unit)
    along, index = (unit @ direction).sort()
    place = torch.searchsorted(along, cached @ direction)
    near = torch.stack([index[(place + step).clamp(0, len(index) - 1)] for step in (-1, 0)], dim=1)
    cosines = torch.einsum("nd,nkd->nk", cached, unit[near])
    found = near.gather(1, cosines.argmax(dim=1, keepdim=True)).squeeze(1)
    for part in (cosines.amax(dim=1) < _SAME).nonzero().squeeze(1).split(1024):
        found[part] = (cached[part] @ unit.T).argmax(dim=1)
    return np.asarray((found < n_ood).cpu().numpy())
