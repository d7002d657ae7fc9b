"""The features of one benchmark, checked."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adaneg_openood.io.names import listed

DEFAULT_LOGIT_SCALE = 100.0  # OpenAI CLIP's
RESERVED_NAMES = ("nearood", "farood")  # the group rows of a result table


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Text, ID and OOD features of one benchmark.

    Attributes:
        text_features: (C + M, D) float, ID rows first.
        n_id: C.
        id_features: (N, D) float.
        id_labels: (N,) int64 in [0, C).
        near: near-OOD set name -> (n, D) float; at least one of near and far holds a set.
        far: far-OOD set name -> (n, D) float.
        logit_scale: s = exp of the model's logit scale, about 100 for CLIP.
        names: C + M label names, or None.
        origins: part (such as ``"near/ssb"``) -> where it was read from, for error messages.

    Features need not be unit length, but no row may be zero.

    Raises:
        ValueError: wrong shapes, dtypes or widths, NaN, infinite or all-zero rows, labels out of
            range, empty sets, no OOD set, or a set name that is used twice or not allowed.
    """

    text_features: Tensor
    n_id: int
    id_features: Tensor
    id_labels: Tensor
    near: Mapping[str, Tensor] = field(default_factory=dict)
    far: Mapping[str, Tensor] = field(default_factory=dict)
    logit_scale: float = DEFAULT_LOGIT_SCALE
    names: tuple[str, ...] | None = None
    origins: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        # frozen: callers' dicts are copied, so that what was checked stays as it was
        object.__setattr__(self, "near", dict(self.near))
        object.__setattr__(self, "far", dict(self.far))
        if self.names is not None:
            object.__setattr__(self, "names", tuple(self.names))
        self._check_text()
        width = self.text_features.shape[1]
        self._check_features("id_features", self.id_features, width)
        self._check_labels()
        self._check_sets(width)

    def _where(self, part: str) -> str:
        return self.origins.get(part, part)

    def _check_text(self) -> None:
        self._check_features("text_features", self.text_features, None)
        n_rows = len(self.text_features)
        try:
            object.__setattr__(self, "n_id", operator.index(self.n_id))
        except TypeError:
            raise ValueError(
                f"{self._where('n_id')}: n_id must be an integer, got {self.n_id!r}"
            ) from None
        if not 1 <= self.n_id <= n_rows:
            raise ValueError(
                f"{self._where('n_id')}: n_id must lie in [1, {n_rows}], text_features having "
                f"{n_rows} rows, got {self.n_id}"
            )
        if not (math.isfinite(self.logit_scale) and self.logit_scale > 0):
            raise ValueError(
                f"{self._where('logit_scale')}: logit_scale must be finite and above 0, "
                f"got {self.logit_scale}"
            )
        if self.names is not None and len(self.names) != n_rows:
            raise ValueError(
                f"{self._where('names')}: names must have one entry per text row, {n_rows}, "
                f"got {len(self.names)}"
            )

    def _check_features(self, part: str, features: Tensor, width: int | None) -> None:
        where = self._where(part)
        if not isinstance(features, Tensor):
            raise ValueError(f"{where}: must be a tensor, got {type(features).__name__}")
        if features.ndim != 2:
            raise ValueError(
                f"{where}: must be 2-d, (images or labels, D), got shape {tuple(features.shape)}"
            )
        if not features.is_floating_point():
            raise ValueError(f"{where}: must be floating point, got {features.dtype}")
        if features.shape[0] == 0 or features.shape[1] == 0:
            raise ValueError(
                f"{where}: is empty, shape {tuple(features.shape)}; at least one row is needed"
            )
        if width is not None and features.shape[1] != width:
            raise ValueError(
                f"{where}: must have {width} columns like text_features "
                f"({self._where('text_features')}), got {features.shape[1]}"
            )
        self._refuse(where, ~torch.isfinite(features).all(dim=1), "NaN or infinite values")
        self._refuse(where, (features == 0).all(dim=1), "only zeros, which have no direction,")

    def _check_labels(self) -> None:
        where, labels = self._where("id_labels"), self.id_labels
        if not isinstance(labels, Tensor):
            raise ValueError(f"{where}: must be a tensor, got {type(labels).__name__}")
        object.__setattr__(self, "id_labels", whole_labels(where, labels, len(self.id_features)))
        bad = (self.id_labels < 0) | (self.id_labels >= self.n_id)
        self._refuse(where, bad, f"labels outside [0, {self.n_id}), n_id being {self.n_id},")

    def _check_sets(self, width: int) -> None:
        if not self.near and not self.far:
            raise ValueError(
                f"{self.origins.get('', 'FeatureSet')}: no OOD set; near and far are both empty, "
                "give at least one near/<name> or far/<name>"
            )
        for split, sets in (("near", self.near), ("far", self.far)):
            for name, features in sets.items():
                part = f"{split}/{name}"
                if not isinstance(name, str) or not name.strip() or "/" in name or "\\" in name:
                    raise ValueError(
                        f"{self._where(part)}: set name {name!r} must be text, not empty, "
                        "and without slashes"
                    )
                if name in RESERVED_NAMES:
                    raise ValueError(
                        f"{self._where(part)}: set name {name!r} is kept for the group rows of tables"
                    )
                self._check_features(part, features, width)
        both = sorted(set(self.near) & set(self.far))
        if both:
            raise ValueError(
                f"{self._where(f'far/{both[0]}')}: set name(s) {', '.join(both)} in both "
                "near and far; each OOD set needs a name of its own"
            )

    @staticmethod
    def _refuse(where: str, bad: Tensor, what: str) -> None:
        rows = bad.nonzero().squeeze(1).tolist()
        if rows:
            raise ValueError(f"{where}: {what} in {len(rows)} row(s): {listed(rows)}")


def whole_labels(where: str, labels: Tensor, n: int) -> Tensor:
    """Labels as (n,) int64.

    Raises:
        ValueError: they are no integers, or not one per image; ``where`` is named.
    """
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{where}: labels must be integers, got {labels.dtype}")
    if tuple(labels.shape) != (n,):
        raise ValueError(
            f"{where}: labels must have shape ({n},), one per image, got {tuple(labels.shape)}"
        )
    return labels.long()
