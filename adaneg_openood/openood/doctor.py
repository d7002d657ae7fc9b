"""What is installed, what is missing, what that disables, and the command that mends it."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaneg_openood.openood import compat

INSTALL_OPENOOD = "pip install --no-deps git+https://github.com/Jingkang50/OpenOOD"
INSTALL_EXTRA = 'pip install "adaneg_openood[openood]"'
_OPENOOD_PACKAGES = (
    "faiss",
    "gdown",
    "libmr",
    "statsmodels",
    "timm",
    "foolbox",
    "cv2",
    "imgaug",
    "diffdist",
)


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: what was looked at.
        ok: whether it is as it should be; None for what is merely good to know.
        found: what was found.
        disables: what cannot be done without it.
        mend: the command or step that brings it.
    """

    name: str
    ok: bool | None
    found: str
    disables: str = ""
    mend: str = ""


def diagnose(
    data_root: str | os.PathLike[str] | None = None, benchmark: str | None = None, *, full: bool = False
) -> list[Check]:
    """Look at the machine, the packages and, if a data folder is given, the benchmarks in it.

    Args:
        data_root: OpenOOD's data folder; None looks at ``./data`` if it is there.
        benchmark: one of OpenOOD's; None takes those of which anything is there.
        full: look for the images of training lists too (1.3 million for ImageNet).
    """
    checks = [*_machine(), *_openood(), _clip(), _weights(), _wordnet()]
    if data_root is not None or Path("data").is_dir():
        checks += _data(Path("data" if data_root is None else data_root), benchmark, full)
    else:
        checks.append(
            Check("data", None, "no data folder given, and no ./data", mend="name it with --data-root")
        )
    return checks


def to_text(checks: list[Check], width: int | None = None) -> str:
    """The report, for a screen."""
    width = width or min(shutil.get_terminal_size((100, 24)).columns, 120)
    marks = {True: "ok ", False: "-- ", None: "   "}
    indent = " " * 19
    lines = []
    for check in checks:
        head = f"{marks[check.ok]}{check.name:<16}"
        lines += textwrap.wrap(check.found, width, initial_indent=head, subsequent_indent=indent) or [
            head
        ]
        if check.ok is not True:
            for label, text in (("without it: ", check.disables), ("to mend: ", check.mend)):
                if text:
                    # commands are left whole, so that they can be copied
                    lines.append(indent + label + text)
    missing = sum(check.ok is False for check in checks)
    lines.append(f"\n{missing} thing(s) missing." if missing else "\nNothing is missing.")
    return "\n".join(lines)


def to_dict(checks: list[Check]) -> list[dict[str, Any]]:
    """The same as JSON values."""
    return [dataclasses.asdict(check) for check in checks]


def _machine() -> Iterator[Check]:
    import torch

    from adaneg_openood._version import __version__

    versions = ", ".join(
        f"{name} {_version(name) or '?'}" for name in ("torch", "numpy", "open_clip_torch")
    )
    yield Check("adaneg_openood", True, f"{__version__}, Python {platform.python_version()}, {versions}")
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
        yield Check("CUDA", True, f"{torch.cuda.device_count()} device(s): {', '.join(sorted(names))}")
    else:
        mps = getattr(torch.backends, "mps", None)
        other = "MPS" if mps is not None and mps.is_available() else "the CPU"
        build = "this torch is built without CUDA" if torch.version.cuda is None else "no device is seen"
        yield Check(
            "CUDA",
            None,
            f"{build}; {other} is used",
            "encoding ImageNet takes hours; OpenOOD's own scripts need python -m adaneg_openood SCRIPT",
        )


def _openood() -> Iterator[Check]:
    disables = "postprocessor_name='adaneg', the classic pipeline, compare"
    if not compat.installed():
        yield Check("OpenOOD", False, "not installed", disables, f"{INSTALL_EXTRA} && {INSTALL_OPENOOD}")
        return
    try:
        importlib.import_module("openood.evaluation_api")
        yield Check("OpenOOD", True, f"{_version('openood') or 'found'}, imports; adaneg is registered")
    except Exception as error:  # a broken installation may raise anything
        reason = f"installed, but does not import ({type(error).__name__}: {error})"
        yield Check("OpenOOD", False, reason, disables, INSTALL_EXTRA)
    absent = [name for name in _OPENOOD_PACKAGES if importlib.util.find_spec(name) is None]
    present = [name for name in _OPENOOD_PACKAGES if name not in absent]
    yield Check("  it can use", True, ", ".join(present) or "none of its optional packages")
    for name in absent:
        what, command = compat.PACKAGES[name]
        wanted = name in ("faiss", "gdown")  # of this package's own extra
        yield Check(f"  {name}", False if wanted else None, "not installed", what, command)


def _clip() -> Check:
    what = "OpenOOD's CLIPZeroshot and its foundation-models script; adaneg_clip does not need it"
    mend = "pip install clip-anytorch"
    if importlib.util.find_spec("clip") is None:
        return Check("clip", None, "OpenAI's package is not installed", what, mend)
    if importlib.util.find_spec("clip.clip") is None:
        wrong = (
            "a package called clip is installed that is not OpenAI's (PyPI's clip is a clipboard tool)"
        )
        return Check("clip", False, wrong, what, f"pip uninstall -y clip && {mend}")
    return Check("clip", True, "OpenAI's package")


def _weights() -> Check:
    found = [
        *(Path("~/.cache/clip").expanduser().glob("*.pt")),
        *(path for path in _hub_cache().glob("models--*") if "clip" in path.name.lower()),
    ]
    names = sorted(path.name.replace("models--", "").replace("--", "/") for path in found)
    if names:
        listed = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        return Check("CLIP weights", True, listed)
    return Check(
        "CLIP weights",
        False,
        f"none in ~/.cache/clip and {_hub_cache()}",
        "encoding images offline; online they are fetched at first use",
        "python -c \"import open_clip; open_clip.create_model('ViT-B-16', 'openai')\"",
    )


def _hub_cache() -> Path:
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    return Path(named or os.path.join(home, "hub")).expanduser()


def _wordnet() -> Check:
    from adaneg_openood.text.wordnet import WordNetMissing, find_wordnet

    try:
        return Check("WordNet", True, find_wordnet())
    except WordNetMissing:
        return Check(
            "WordNet",
            False,
            "not found",
            "mining negative labels without a word list of your own",
            "python -m nltk.downloader wordnet",
        )


def _data(root: Path, benchmark: str | None, full: bool) -> Iterator[Check]:
    if not compat.installed():
        yield Check("data", None, f"{root}: not looked at, because OpenOOD is not installed")
        return
    if not root.is_dir():
        yield Check("data", False, f"there is no folder {root}", "evaluation on images", _mend())
        return
    from openood.evaluation_api.datasets import DATA_INFO

    from adaneg_openood.openood.benchmark_files import missing_files

    seen = False
    for name in DATA_INFO if benchmark is None else (benchmark,):
        folder = root / "benchmark_imglist" / name
        if benchmark is None and not folder.is_dir():
            continue
        seen = True
        missing = missing_files(root, name)
        lacking = lists_lacking_images(root, name, full=full)
        if not missing and not lacking:
            yield Check(f"data {name}", True, f"complete in {root}")
            continue
        said = [
            *missing,
            *(f"{gone} of {total} images of {what}" for what, (gone, total) in lacking.items()),
        ]
        listed = "; ".join(said[:6]) + (f"; and {len(said) - 6} more" if len(said) > 6 else "")
        yield Check(f"data {name}", False, f"missing: {listed}", f"evaluation on {name}", _mend())
    if not seen:
        yield Check(
            "data", False, f"{root} holds no image list of a benchmark", "evaluation on images", _mend()
        )


def lists_lacking_images(root: Path, id_name: str, *, full: bool = False) -> dict[str, tuple[int, int]]:
    """Image lists whose images are not all there: name -> (missing, total)."""
    from adaneg_openood.openood.benchmark_files import image_lists

    lacking = {}
    for name, entry in image_lists(id_name):
        path = root / entry["imglist_path"]
        if not path.is_file() or (name == "id train" and not full):
            continue
        with path.open(encoding="utf-8") as lines:
            names = [line.strip().rpartition(" ")[0] for line in lines if line.strip()]
        gone = sum(not (root / entry["data_dir"] / image).is_file() for image in names)
        if gone:
            lacking[name] = gone, len(names)
    return lacking


def _mend() -> str:
    return "bash scripts/download/download.sh in OpenOOD's checkout (https://github.com/Jingkang50/OpenOOD#data)"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        module: Any = sys.modules.get(name)
        return getattr(module, "__version__", None)
