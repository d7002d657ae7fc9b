"""Files of text features, as they are: read and checked for kinds, not for sense."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaneg_openood.io.archives import refuse_bombs
from adaneg_openood.io.checkpoints import StoredTensor, read_checkpoint
from adaneg_openood.io.files import read_json_object

_CHECKPOINTS = (".pt", ".pth", ".tar", ".bin")


@dataclass(frozen=True)
class LabelFile:
    """What a file says.

    Attributes:
        features: (C + M, D) floating point.
        n_id, names, logit_scale: None where the file does not say.
        provenance: JSON text; None where there is none.
        sha256: of the whole, in files of this package.
    """

    features: Tensor
    n_id: int | None = None
    names: tuple[str, ...] | None = None
    logit_scale: float | None = None
    provenance: str | None = None
    sha256: str | None = None


def read_label_file(file: Path) -> LabelFile:
    """Read ``.npz``, ``.safetensors`` or ``.pt``; see ``LabelFeatures.load``.

    Raises:
        ValueError: something is missing or of another kind; the message names the file.
        FileNotFoundError: no such file.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file of text features")
    try:
        if file.suffix == ".npz":
            found = _from_npz(file)
        elif file.suffix == ".safetensors":
            found = _from_safetensors(file)
        elif file.suffix in _CHECKPOINTS:
            found = _from_checkpoint(file)
        else:
            raise ValueError("must be .npz, .safetensors or .pt")
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds over damaged files
        text = (str(error) or type(error).__name__).removeprefix(f"{file}: ")
        raise ValueError(f"{file}: cannot be read as text features, {text}") from error
    if "text_features" not in found:
        raise ValueError(
            f"{file}: needs the key text_features, found {', '.join(map(str, sorted(found)))}"
        )
    features = found["text_features"]
    if not isinstance(features, Tensor) or features.ndim != 2 or not features.is_floating_point():
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"{file}: text_features must be (C + M, D) floating point, got {shape}")
    names = found.get("names")
    if names is not None and not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
        raise ValueError(f"{file}: names must be a list of strings")
    count = _number(file, "n_id", found.get("n_id"))
    if count is not None and count != int(count):
        raise ValueError(f"{file}: n_id must be a whole number, got {count}")
    scale = _number(file, "logit_scale", found.get("logit_scale"))
    about, digest = found.get("provenance"), found.get("sha256")
    _check_readable_copy(file, digest, about)
    return LabelFile(
        features,
        None if count is None else int(count),
        None if names is None else tuple(names),
        scale,
        *(None if value is None else str(value) for value in (about, digest)),
    )


def _check_readable_copy(file: Path, digest: Any, about: Any) -> None:
    """``text.json`` beside a file of this package must be of the same making."""
    copy = file.with_suffix(".json")
    if digest is None or not copy.is_file():
        return
    told = read_json_object(copy)
    if told.pop("sha256", None) != str(digest) or told != json.loads(str(about)):
        raise ValueError(f"{copy}: belongs to other text features than {file}; make both again")


def _number(file: Path, key: str, value: Any) -> float | None:
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        value = value.item()
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise ValueError(f"{file}: {key} must be one number")
    if value is not None and not abs(value) < 2**53:
        raise ValueError(f"{file}: {key} must be a number within reason, got {value}")
    return value


def _from_npz(file: Path) -> dict[str, Any]:
    with zipfile.ZipFile(file) as archive:
        refuse_bombs(file, archive)
    found: dict[str, Any] = {}
    with np.load(file, allow_pickle=False) as arrays:
        for key in arrays.files:
            array = np.asarray(arrays[key])
            if array.dtype.kind == "U":
                found[key] = [str(text) for text in array.ravel()] if array.ndim else str(array)
            else:
                found[key] = torch.from_numpy(array)
    return found


def _from_safetensors(file: Path) -> dict[str, Any]:
    from safetensors import safe_open

    found: dict[str, Any] = {}
    with safe_open(file, framework="pt") as opened:
        found.update((key, opened.get_tensor(key)) for key in opened.keys())
        names = (opened.metadata() or {}).get("names")
    if names is not None:
        found["names"] = json.loads(names)
    return found


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
