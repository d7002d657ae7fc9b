"""The text rows of a detector: ID names first, then negative labels."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.nn.functional import normalize

from adaneg_openood.io.digests import tensor_digest
from adaneg_openood.io.files import atomic_path
from adaneg_openood.text.label_files import read_label_file

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)

_NAMED = 8  # rows or words that a message lists


@dataclass(frozen=True, eq=False)
class LabelFeatures:
    """The text rows of a detector.

    Attributes:
        features: (C + M, D) float32 of unit length, ID rows first.
        n_id: C.
        names: C + M names.
        logit_scale: s, or None where the file does not say.
        provenance: what they were made with; JSON values.

    Raises:
        ValueError: another shape, rows that are not finite or not of unit length, or counts that do not
            agree.
    """

    features: Tensor
    n_id: int
    names: tuple[str, ...]
    logit_scale: float | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or len(self.features) != len(self.names):
            raise ValueError(
                f"features must be (C + M, D) with one name per row, got {tuple(self.features.shape)} "
                f"and {len(self.names)} names"
            )
        if not 1 <= self.n_id <= len(self.names):
            raise ValueError(f"n_id must be in [1, {len(self.names)}], got {self.n_id}")
        lengths = self.features.float().norm(dim=1)
        # of half precision, too; NaN compares as false
        bad = ~((lengths - 1).abs() < 1e-2)
        if bad.any():
            rows = ", ".join(map(str, bad.nonzero().squeeze(1).tolist()[:_NAMED]))
            raise ValueError(f"features must be finite rows of unit length; rows {rows} are not")
        scale = self.logit_scale
        if scale is not None and not 0 < scale < float("inf"):
            raise ValueError(f"logit_scale must be finite and above 0, got {scale}")

    @property
    def n_negatives(self) -> int:
        """M."""
        return len(self.names) - self.n_id

    @property
    def digest(self) -> str:
        """SHA-256 of the features, 64 hex digits."""
        return tensor_digest(self.features)

    @property
    def groups(self) -> int | None:
        """The groups that the negatives' recipe was published with, at most M; None if not known."""
        negatives = self.provenance.get("negatives")
        told = negatives.get("groups") if isinstance(negatives, dict) else None
        return None if told is None else max(1, min(int(told), self.n_negatives))

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``text.npz``, which ``load_features`` reads from a benchmark folder, and ``text.json``.

        Both carry the SHA-256 of all that they hold, which :meth:`load` checks.

        Returns:
            The path of ``text.npz``.
        """
        root = Path(folder)
        about = json.dumps(self.provenance, sort_keys=True, ensure_ascii=False)
        digest = _digest(self.features, self.n_id, self.names, self.logit_scale, about)
        arrays: dict[str, Any] = {
            "text_features": self.features.cpu().numpy(),
            "n_id": np.asarray(self.n_id, dtype=np.int64),
            "names": np.asarray(self.names, dtype=np.str_),
            "provenance": np.asarray(about, dtype=np.str_),
            "sha256": np.asarray(digest, dtype=np.str_),
        }
        if self.logit_scale is not None:
            arrays["logit_scale"] = np.asarray(self.logit_scale, dtype=np.float64)
        readable = json.dumps(
            {**self.provenance, "sha256": digest}, indent=1, sort_keys=True, ensure_ascii=False
        )
        # both are on the disk before either takes its name
        with atomic_path(root / "text.npz") as rows, atomic_path(root / "text.json") as told:
            told.write_text(readable + "\n", "utf-8")
            with rows.open("wb") as file:
                np.savez(file, **arrays)
        return root / "text.npz"

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        n_id: int | None = None,
        names: Sequence[str] | None = None,
    ) -> LabelFeatures:
        """Text features from a file: what :meth:`save` wrote, or the user's own, whatever made them.

        Args:
            path: ``.npz``, ``.safetensors``, ``.pt`` or ``.pth`` with the keys ``text_features``,
                ``n_id``, and optionally ``names`` (in ``.safetensors`` a JSON list in the header) and
                ``logit_scale``; or a tensor alone in ``.pt``. Nothing is unpickled.
            n_id: C, where the file does not say.
            names: C names of the ID rows, where the file does not say.

        Returns:
            The rows brought to unit length.

        Raises:
            ValueError: something is missing, wrong or damaged; the message names the file.
            FileNotFoundError: no such file.
        """
        file = Path(path)
        found = read_label_file(file)
        count = found.n_id if found.n_id is not None else n_id
        if count is None:
            raise ValueError(f"{file}: does not say how many of its rows are ID classes; give n_id")
        if n_id is not None and count != n_id:
            raise ValueError(f"{file}: holds n_id {count}, but {n_id} ID classes were asked for")
        own = found.names
        if own is None:
            known = tuple(names or ())[:count]
            own = (*known, *(f"label {row}" for row in range(len(known), len(found.features))))
        about: dict[str, Any] = {"file": str(file)}
        if found.sha256 is not None:
            text = found.provenance or "{}"
            if _digest(found.features, count, own, found.logit_scale, text) != found.sha256:
                raise ValueError(f"{file}: damaged, it does not have its checksum; make it again")
            about = json.loads(text)
        try:
            return cls(unit_rows(found.features), count, own, found.logit_scale, about)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error


def unit_rows(features: Tensor) -> Tensor:
    """Unit rows on the CPU; rows that have unit length already stay as they are, to the bit."""
    rows = features.detach().float().cpu()
    lengths = rows.norm(dim=-1)
    return rows if ((lengths - 1).abs() < 1e-6).all() else normalize(rows, dim=-1)


def _digest(
    features: Tensor, n_id: int, names: Sequence[str], logit_scale: float | None, provenance: str
) -> str:
    rest = json.dumps([n_id, list(names), logit_scale, provenance], ensure_ascii=True)
    return hashlib.sha256(f"{tensor_digest(features)} {rest}".encode()).hexdigest()
