"""What is installed, what is missing, what that disables, and the command that mends it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from adaneg_openood._version import __version__
from adaneg_openood.benchmark.opening import Item
from adaneg_openood.data.image_files import read_imglist
from adaneg_openood.openood import compat
from adaneg_openood.openood.benchmark_files import image_lists, missing_files
from adaneg_openood.text.wordnet import WordNetMissing, find_wordnet

INSTALL_OPENOOD = "pip install --no-deps git+https://github.com/Jingkang50/OpenOOD"
INSTALL_EXTRA = 'pip install "adaneg_openood[openood]"'
GET_DATA = "bash scripts/download/download.sh in OpenOOD's checkout (https://github.com/Jingkang50/OpenOOD#data)"
_LISTED = 6


def diagnose(
    data_root: str | os.PathLike[str] | None = None, benchmark: str | None = None, *, full: bool = False
) -> list[Item]:
    """Look at the machine, the packages and, if a data folder is given, the benchmarks in it.

    An item says what was found, what cannot be done without it, and the command that brings it; an item
    whose ``ok`` is None is good to know. :func:`~adaneg_openood.benchmark.opening.to_text` shows them.

    Args:
        data_root: OpenOOD's data folder; None looks at ``./data`` if it is there.
        benchmark: one of OpenOOD's; None takes those of which anything is there.
        full: look for the images of training lists too (1.3 million for ImageNet).
    """
    items = [*_machine(), *_openood(), _clip(), _weights(), _wordnet()]
    if data_root is not None or Path("data").is_dir():
        return [*items, *_data(Path("data" if data_root is None else data_root), benchmark, full)]
    return [
        *items,
        Item("data", None, "no data folder given, and no ./data", "name it with --data-root"),
    ]


def _lacks(what: str, ok: bool | None, found: str, disables: str, mend: str = "") -> Item:
    return Item(what, ok, f"{found}; without it: {disables}", mend)


def _machine() -> Iterator[Item]:
    versions = ", ".join(
        f"{name} {_version(name) or '?'}" for name in ("torch", "numpy", "open_clip_torch")
    )
    yield Item("adaneg_openood", True, f"{__version__}, Python {platform.python_version()}, {versions}")
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
        yield Item("CUDA", True, f"{torch.cuda.device_count()} device(s): {', '.join(sorted(names))}")
    else:
        mps = getattr(torch.backends, "mps", None)
        other = "MPS" if mps is not None and mps.is_available() else "the CPU"
        build = "this torch is built without CUDA" if torch.version.cuda is None else "no device is seen"
        disables = (
            "encoding ImageNet takes hours; OpenOOD's scripts need python -m adaneg_openood SCRIPT"
        )
        yield _lacks("CUDA", None, f"{build}, {other} is used", disables)


def _openood() -> Iterator[Item]:
    disables = "postprocessor_name='adaneg', the classic pipeline, compare"
    if not compat.installed():
        mend = f"{INSTALL_EXTRA} && {INSTALL_OPENOOD}"
        yield _lacks("OpenOOD", False, "not installed", disables, mend)
        return
    try:
        importlib.import_module("openood.evaluation_api")
        yield Item("OpenOOD", True, f"{_version('openood') or 'found'}, imports; adaneg is registered")
    except Exception as error:  # a broken installation may raise anything
        reason = f"installed, but does not import ({type(error).__name__}: {error})"
        yield _lacks("OpenOOD", False, reason, disables, INSTALL_EXTRA)
    optional = [name for name in compat.PACKAGES if name != "clip"]
    absent = [name for name in optional if importlib.util.find_spec(name) is None]
    present = [name for name in optional if name not in absent]
    yield Item("  it can use", True, ", ".join(present) or "none of its optional packages")
    for name in absent:
        needed_for, mend = compat.PACKAGES[name]
        wanted = name in ("faiss", "gdown")  # of this package's own extra
        yield _lacks(f"  {name}", False if wanted else None, "not installed", needed_for, mend)


def _clip() -> Item:
    disables = "OpenOOD's CLIPZeroshot and its foundation-models script; adaneg_clip does not need it"
    mend = "pip install clip-anytorch"
    found = importlib.util.find_spec("clip")
    if found is None:
        return _lacks("clip", None, "OpenAI's package is not installed", disables, mend)
    # without importing it, which may want what is not there
    if not any((Path(place) / "clip.py").is_file() for place in found.submodule_search_locations or ()):
        wrong = "PyPI's clip is installed, a clipboard tool, and not OpenAI's"
        return _lacks("clip", False, wrong, disables, f"pip uninstall -y clip && {mend}")
    return Item("clip", True, "OpenAI's package")


def _weights() -> Item:
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    hub, own = Path(named or os.path.join(home, "hub")).expanduser(), Path("~/.cache/clip").expanduser()
    models = [path for path in hub.glob("models--*") if "clip" in path.name.lower()]
    names = sorted(
        path.name.replace("models--", "").replace("--", "/") for path in (*own.glob("*.pt"), *models)
    )
    if names:
        listed = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        return Item("CLIP weights", True, listed)
    return _lacks(
        "CLIP weights",
        False,
        f"none in {own} and {hub}",
        "encoding images offline; online they are fetched at first use",
        "python -c \"import open_clip; open_clip.create_model('ViT-B-16', 'openai')\"",
    )


def _wordnet() -> Item:
    try:
        return Item("WordNet", True, find_wordnet())
    except WordNetMissing:
        disables = "mining negative labels without a word list of your own"
        return _lacks("WordNet", False, "not found", disables, "python -m nltk.downloader wordnet")


def _data(root: Path, benchmark: str | None, full: bool) -> Iterator[Item]:
    if not compat.installed():
        yield Item("data", None, f"{root}: not looked at, because OpenOOD is not installed")
        return
    if not root.is_dir():
        yield Item("data", False, f"there is no folder {root}", GET_DATA)
        return
    from openood.evaluation_api.datasets import DATA_INFO

    lists = root / "benchmark_imglist"
    names = [name for name in DATA_INFO if (lists / name).is_dir()] if benchmark is None else [benchmark]
    for name in names:
        said = [*missing_files(root, name), *_lists_lacking_images(root, name, full)]
        more = f"; and {len(said) - _LISTED} more" if len(said) > _LISTED else ""
        listed = f"missing: {'; '.join(said[:_LISTED])}{more}" if said else f"complete in {root}"
        yield Item(f"data {name}", not said, listed, GET_DATA if said else "")
    if not names:
        yield Item("data", False, f"{root} holds no image list of a benchmark", GET_DATA)


def _lists_lacking_images(root: Path, id_name: str, full: bool) -> Iterator[str]:
    for name, entry in image_lists(id_name):
        path, folder = root / entry["imglist_path"], root / entry["data_dir"]
        if path.is_file() and (full or name != "id train"):
            images = read_imglist(path)
            gone = sum(not (folder / image).is_file() for image, _ in images)
            if gone:
                yield f"{gone} of {len(images)} images of {name}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        module: Any = sys.modules.get(name)
        return getattr(module, "__version__", None)
