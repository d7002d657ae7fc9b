"""Checkpoints are read as data: tensors, never code."""

from __future__ import annotations

import os
import pickle
import warnings
from pathlib import Path

import torch


def check_checkpoint(path: str | os.PathLike[str]) -> None:
    """Refuse a checkpoint that cannot be read without running code from it.

    open_clip falls back to full unpickling when ``weights_only`` loading raises TypeError, which a
    crafted file can bring about; a file that passes here never takes that way.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, a TorchScript archive, or holding pickled objects other than tensors.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such checkpoint file")
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, framework="pt"):
                return
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file}: not a readable safetensors file, {error}") from error
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*TorchScript archive")  # an error below
            # mapped, not read: this only looks at what the file is made of
            torch.load(file, map_location="cpu", weights_only=True, mmap=_is_zip(file))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file}: holds pickled objects other than tensors, which are never loaded "
            f"({_first_line(error)}); save the model's state_dict alone, "
            "or convert it to .safetensors where you trust it"
        ) from error
    except (RuntimeError, TypeError, ValueError, EOFError, OSError) as error:
        if "torchscript" in str(error).lower():
            raise ValueError(
                f"{file}: is a TorchScript archive, as OpenAI's own .pt files are; load it by "
                "open_clip's tag (such as ViT-B-16/openai), or with OpenAI's clip package and wrap "
                "the model in adaneg_openood.vlm.OpenAIClip"
            ) from error
        raise ValueError(f"{file}: cannot be read as a checkpoint, {_first_line(error)}") from error


def _is_zip(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
