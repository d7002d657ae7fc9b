"""Around libraries that load models: no code of a checkpoint runs, a silent hub is not waited for."""

from __future__ import annotations

import importlib.util
import logging
import os
import pickle
import sys
import types
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from adaneg_openood.io.checkpoints import is_torchscript

_PATIENCE = 3.0  # seconds
_NOISY = ("huggingface_hub", "transformers")


@contextmanager
def hub_access(needed: bool) -> Iterator[str]:
    """Load a model within the block: fast to fail, quiet, and without the caller's random state.

    A hub that cannot be reached is not tried again and again for a minute; what is in its cache is still
    used. Errors that are raised say everything, so what the libraries log beside them is left out.

    Args:
        needed: whether anything may be asked of the hub; only then is it looked whether it answers.

    Yields:
        Why nothing can be downloaded, or an empty text.
    """
    from huggingface_hub import constants

    # forked data loader workers would warn of it, among the bars
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    offline, root = constants.HF_HUB_OFFLINE, logging.getLogger()
    levels = {name: logging.getLogger(name).level for name in _NOISY}
    silent = needed and not offline and not _answers(constants.ENDPOINT)
    try:
        constants.HF_HUB_OFFLINE = offline or silent
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        root.addFilter(_not_of_open_clip)
        with torch.random.fork_rng(devices=[]):  # weights are drawn before they are read
            yield f"{constants.ENDPOINT} does not answer" if silent else ""
    finally:
        root.removeFilter(_not_of_open_clip)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        constants.HF_HUB_OFFLINE = offline


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_PATIENCE):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


def _not_of_open_clip(record: logging.LogRecord) -> bool:
    """open_clip logs to the root logger, and says there what its exceptions say."""
    return "open_clip" not in record.pathname


def check_checkpoint(path: str | os.PathLike[str]) -> None:
    """Refuse a checkpoint that cannot be read without running code from it.

    open_clip falls back to full unpickling when ``weights_only`` loading raises TypeError, which a
    crafted file can bring about; a file that passes here never takes that way.

    Raises:
        ValueError: damaged, a TorchScript archive, or holding pickled objects other than tensors.
    """
    file = Path(path)
    try:
        if file.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(file, framework="pt"):
                return
        with file.open("rb") as stream:
            zipped = stream.read(4) == b"PK\x03\x04"
        script = False
        if zipped:
            with zipfile.ZipFile(file) as archive:
                script = is_torchscript(archive)
        if not script:  # which some releases of torch would hand to torch.jit
            # mapped, not read: this only looks at what the file is made of
            torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file}: holds pickled objects other than tensors, which are never loaded "
            f"({_first_line(error)}); save the model's state_dict alone, "
            "or convert it to .safetensors where you trust it"
        ) from error
    except Exception as error:  # safetensors, zipfile and torch have kinds of their own
        raise ValueError(f"{file}: cannot be read as a checkpoint, {_first_line(error)}") from error
    if script:
        raise ValueError(
            f"{file}: is a TorchScript archive, as OpenAI's own .pt files are; load it by "
            "open_clip's tag (such as ViT-B-16/openai), or with OpenAI's clip package and wrap "
            "the model in adaneg_openood.vlm.OpenAIClip"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def import_clip() -> Any:
    """OpenAI's ``clip`` package.

    Raises:
        ImportError: not installed, or PyPI's clipboard tool of that name.
    """
    install = "pip install clip-anytorch (the package called clip on PyPI is a clipboard tool)"
    with pkg_resources_packaging():
        try:
            package = importlib.import_module("clip")
        except ImportError as error:
            raise ImportError(f"OpenAI's clip cannot be imported ({error}): {install}") from error
    if not hasattr(package, "load") or not hasattr(package, "available_models"):
        raise ImportError(f"{package.__file__} is another package called clip: {install}")
    return package


@contextmanager
def pkg_resources_packaging() -> Iterator[None]:
    """``pkg_resources.packaging``, which CLIP's packages import and newer setuptools lacks."""
    before: Any = None
    try:
        before = importlib.import_module("pkg_resources")
    except ImportError:
        before = sys.modules.get("pkg_resources")  # half of it may be there
    try:
        import packaging
        import packaging.version
    except ImportError:
        yield  # CLIP's import then says what is missing
        return
    if hasattr(before, "packaging"):
        yield
        return
    stand_in = types.ModuleType("pkg_resources", "Placeholder while CLIP's package is imported")
    stand_in.packaging = packaging  # type: ignore[attr-defined]
    stand_in.parse_version = packaging.version.parse  # type: ignore[attr-defined]
    sys.modules["pkg_resources"] = stand_in
    try:
        yield
    finally:
        sys.modules.pop("pkg_resources")
        if before is not None:
            sys.modules["pkg_resources"] = before
