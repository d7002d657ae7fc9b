"""The text rows of a detector: ID names first, then negative labels."""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from adaneg_openood.io.checkpoints import StoredTensor, read_checkpoint
from adaneg_openood.io.digests import tensor_digest
from adaneg_openood.io.files import atomic_path, read_json_object, refuse_bombs
from adaneg_openood.text.words import fold, synonyms

_NAMED = 8  # rows that a message lists
_NAMELESS = re.compile(r"(class|label) [0-9]+")  # of rows whose names nobody told


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
            names: C names of the ID rows; those in the file, if any, must be the same.

        Returns:
            The rows brought to unit length.

        Raises:
            ValueError: something is missing, wrong or damaged; the message names the file.
            FileNotFoundError: no such file.
        """
        file = Path(path)
        found = _read(file)
        rows, own = unit_rows(found["text_features"]), found.get("names")
        count: Any = found.get("n_id")
        if count is None and n_id is None:
            raise ValueError(f"{file}: does not say how many of its rows are ID classes; give n_id")
        if None not in (count, n_id) and count != n_id:
            raise ValueError(f"{file}: holds n_id {count}, but {n_id} ID classes were asked for")
        count = n_id if count is None else count
        if own is None:
            own = list(names or ())[:count]
            own += [f"label {row}" for row in range(len(own), len(rows))]
        _refuse_other_names(file, own, names or ())
        scale, about = found.get("logit_scale"), {"file": str(file)}
        if "sha256" in found:
            told = str(found.get("provenance", "{}"))
            if _digest(found["text_features"], count, own, scale, told) != found["sha256"]:
                raise ValueError(f"{file}: damaged, it does not have its checksum; make it again")
            about = json.loads(told)
        try:
            return cls(rows, count, tuple(own), scale, about)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error


def _refuse_other_names(file: Path, own: Sequence[str], names: Sequence[str]) -> None:
    for row, both in enumerate(zip(own, names)):
        one, other = ({fold(word) for word in synonyms(name)} for name in both)
        if not (one & other or any(map(_NAMELESS.fullmatch, both))):
            raise ValueError(
                f"{file}: its ID row {row} is {both[0]!r}, but the class names that were given have "
                f"{both[1]!r} there; give them in the order of the file's rows, or leave them out"
            )


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


def _read(file: Path) -> dict[str, Any]:
    """What a file says, each key of its kind; what it does not say is left out."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file of text features")
    try:
        if file.suffix == ".npz":
            found = _from_npz(file)
        elif file.suffix == ".safetensors":
            found = _from_safetensors(file)
        elif file.suffix in (".pt", ".pth", ".tar", ".bin"):
            found = _from_checkpoint(file)
        else:
            raise ValueError("must be .npz, .safetensors or .pt")
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds over damaged files
        text = (str(error) or type(error).__name__).removeprefix(f"{file}: ")
        raise ValueError(f"{file}: cannot be read as text features, {text}") from error
    found = {str(key): value for key, value in found.items() if value is not None}
    if "text_features" not in found:
        raise ValueError(f"{file}: needs the key text_features, found {', '.join(sorted(found))}")
    features, names = found["text_features"], found.get("names", [])
    if not isinstance(features, Tensor) or features.ndim != 2 or not features.is_floating_point():
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"{file}: text_features must be (C + M, D) floating point, got {shape}")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{file}: names must be a list of strings")
    for key in {"n_id", "logit_scale"} & set(found):
        value = found[key]
        if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{file}: {key} must be one number")
        if not abs(value) < 2**53:
            raise ValueError(f"{file}: {key} must be a number within reason, got {value}")
        if key == "n_id" and value != int(value):
            raise ValueError(f"{file}: n_id must be a whole number, got {value}")
        found[key] = int(value) if key == "n_id" else value
    readable, about = file.with_suffix(".json"), str(found.get("provenance", "{}"))
    if "sha256" in found and readable.is_file():
        told = read_json_object(readable)
        if told.pop("sha256", None) != found["sha256"] or told != json.loads(about):
            raise ValueError(f"{readable}: belongs to other text features than {file}; make both again")
    return found


def _from_npz(file: Path) -> dict[str, Any]:
    with zipfile.ZipFile(file) as archive:
        refuse_bombs(file, archive)
    with np.load(file, allow_pickle=False) as arrays:
        return {
            key: array.tolist() if array.dtype.kind == "U" else torch.from_numpy(array)
            for key, array in arrays.items()
        }


def _from_safetensors(file: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        found = {key: opened.get_tensor(key) for key in opened.keys()}
        names = (opened.metadata() or {}).get("names")
    return found if names is None else {**found, "names": json.loads(names)}


def _from_checkpoint(file: Path) -> dict[str, Any]:
    loaded = read_checkpoint(file)
    if isinstance(loaded, StoredTensor):
        return {"text_features": loaded.load()}
    if not isinstance(loaded, dict):
        raise ValueError(f"it holds {type(loaded).__name__}, and must hold a tensor or a dict")
    kept = ("text_features", "n_id", "names", "logit_scale")
    return {
        key: value.load() if isinstance(value, StoredTensor) and key in kept else value
        for key, value in loaded.items()
    }
