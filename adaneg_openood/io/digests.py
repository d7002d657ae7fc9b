"""SHA-256 of tensors, files and JSON values."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_BLOCK = 1 << 20  # bytes of a file read at a time


def tensor_bytes(tensor: Tensor) -> memoryview:
    """A tensor's bytes, copied only where it is not contiguous or not on the CPU."""
    # viewed as bytes, because numpy has no bfloat16
    plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return memoryview(plain.numpy())  # type: ignore[arg-type]


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's dtype, shape and bytes, 64 hex digits."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def state_hash(state: Mapping[str, Tensor]) -> Any:
    """The running SHA-256 of a state dict's names, dtypes, shapes and bytes, whatever their order."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(tensor_bytes(value))
    return digest


def state_version(module: Any) -> tuple[tuple[int, int], ...]:
    """Changes when a module's parameters or buffers are replaced or written to; costs no look at values.

    What is written through ``tensor.data`` is not noticed. Of an object without parameters it is empty.
    """
    return tuple(
        # tensors made in inference mode are not counted, and cannot be trained
        (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
        for kind in ("parameters", "buffers")
        for tensor in getattr(module, kind, tuple)()
    )


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, 64 hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def digest_of(value: Any, length: int = 16) -> str:
    """Hex digits of a hash of JSON values; the same for the same values on every machine."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]
