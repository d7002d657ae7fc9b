"""The least that lets today's OpenOOD be imported on today's numpy and setuptools.

OpenOOD imports many packages at the top of its modules that most of its methods never use, and some
of them do not install any more. For each OpenOOD module that does so, :data:`NEEDS` says what it wants.
*While that one module is being executed*, a package that is not there is represented by a placeholder,
which raises :class:`ModuleNotFoundError` with the command that mends it as soon as something from it is
used. Before and after, nothing is in ``sys.modules`` that was not installed: ``import timm`` in other
code fails, or not, as it always did. Packages that are installed are used.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn

logger = logging.getLogger(__name__)

# OpenOOD module -> modules it imports that may be missing
NEEDS: dict[str, tuple[str, ...]] = {
    "openood.attacks.misc": ("timm",),
    "openood.evaluation_api.attackdataset": ("foolbox", "foolbox.attacks", "foolbox.criteria"),
    "openood.evaluation_api.datasets": ("gdown",),
    "openood.evaluators.patchcore_evaluator": ("cv2",),
    "openood.postprocessors.adascale_postprocessor": (
        "statsmodels.distributions.empirical_distribution",
    ),
    "openood.postprocessors.cider_postprocessor": ("faiss",),
    "openood.postprocessors.grood": ("faiss",),
    "openood.postprocessors.knn_postprocessor": ("faiss",),
    "openood.postprocessors.nnguide_postprocessor": ("faiss",),
    "openood.postprocessors.npos_postprocessor": ("faiss",),
    "openood.postprocessors.openmax_postprocessor": ("libmr",),
    "openood.postprocessors.patchcore_postprocessor": ("faiss",),
    "openood.preprocessors.draem_preprocessor": ("cv2", "imgaug.augmenters"),
    "openood.trainers.csi_trainer": ("diffdist.functional",),
    "openood.trainers.npos_trainer": ("faiss.contrib.torch_utils",),
    "openood.trainers.udg_trainer": ("faiss",),
}

# top-level package -> (what needs it, what installs it)
PACKAGES: dict[str, tuple[str, str]] = {
    "clip": ("OpenOOD's own CLIP network (CLIPZeroshot)", "pip install clip-anytorch"),
    "cv2": ("DRAEM and PatchCore", "pip install opencv-python-headless"),
    "diffdist": ("training CSI", "pip install diffdist"),
    "faiss": ("knn, nnguide, cider, npos, grood, patchcore", "pip install faiss-cpu"),
    "foolbox": ("attack datasets", "pip install foolbox eagerpy"),
    "gdown": ("downloading OpenOOD's data", "pip install gdown"),
    "imgaug": ("DRAEM", "pip install imgaug"),
    "libmr": (
        "openmax",
        "pip install cython numpy setuptools wheel && pip install --no-build-isolation libmr",
    ),
    "statsmodels": ("adascale_a and adascale_l", "pip install statsmodels"),
    "timm": ("attack datasets", "pip install timm"),
}


def installed() -> bool:
    """Whether OpenOOD itself can be found; a plain folder called ``openood`` on the path is not it."""
    spec = importlib.util.find_spec("openood")
    return spec is not None and spec.origin is not None


class MissingName:
    """A name from a package that is not installed.

    Calling, indexing or subclassing it raises ModuleNotFoundError, and reading an attribute raises
    AttributeError; both say what installs the package.
    """

    def __init__(self, name: str, reason: str) -> None:
        self.__dict__.update(_name=name, _reason=reason)

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        refuse(self.__dict__["_name"], self.__dict__["_reason"])

    __call__ = __iter__ = __len__ = __getitem__ = __enter__ = __mro_entries__ = _refuse

    def __getattr__(self, attribute: str) -> Any:
        # hasattr and getattr with a default must work, so this is no ModuleNotFoundError
        raise AttributeError(_explain(f"{self.__dict__['_name']}.{attribute}", self.__dict__["_reason"]))

    def __repr__(self) -> str:
        return f"<{self.__dict__['_name']}: not installed>"


class MissingModule(types.ModuleType):
    """Stands in for a module that cannot be imported; its names are :class:`MissingName`."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, f"Placeholder: {reason}")
        self.__path__: list[str] = []  # a package, so that submodules can be looked up in sys.modules
        self._reason = reason

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return MissingName(f"{self.__name__}.{name}", self._reason)


def refuse(name: str, reason: str) -> NoReturn:
    """Raise the error of a missing package."""
    raise ModuleNotFoundError(_explain(name, reason), name=name.partition(".")[0])


def _explain(name: str, reason: str) -> str:
    top = name.partition(".")[0]
    what, command = PACKAGES.get(top, ("it", f"pip install {top}"))
    return f"{name} was used, and {reason}. OpenOOD needs {top} for {what}; to have it: {command}"


@contextmanager
def placeholders(modules: tuple[str, ...]) -> Iterator[None]:
    """Within the block, those of ``modules`` that cannot be imported are placeholders."""
    with ExitStack() as stack:
        if any(name.partition(".")[0] == "imgaug" for name in modules):
            stack.enter_context(numpy_sctypes())
        reasons: dict[str, str] = {}
        for name in modules:
            reason = _why_not(name)
            if reason is not None:
                reasons[name] = reason
        stack.enter_context(_stand_ins(reasons))
        yield


@contextmanager
def _stand_ins(reasons: dict[str, str]) -> Iterator[None]:
    added: list[tuple[str, types.ModuleType]] = []
    try:
        for name, reason in reasons.items():
            parts = name.split(".")
            for depth in range(1, len(parts) + 1):
                full = ".".join(parts[:depth])
                if full in sys.modules:
                    continue
                module: types.ModuleType = MissingModule(full, reason)
                sys.modules[full] = module
                added.append((full, module))
                parent: Any = sys.modules.get(".".join(parts[: depth - 1])) if depth > 1 else None
                if isinstance(parent, MissingModule):
                    setattr(parent, parts[depth - 1], module)
        yield
    finally:
        for full, module in added:
            if sys.modules.get(full) is module:
                del sys.modules[full]


def _why_not(name: str) -> str | None:
    """Why a module cannot be imported, or None; it is imported if it can be."""
    top = name.partition(".")[0]
    if top not in sys.modules and importlib.util.find_spec(top) is None:
        return f"{top} is not installed"
    try:
        importlib.import_module(name)
    except Exception as error:  # an installed package may fail in any way
        logger.warning("%s is installed but cannot be imported: %s", top, error)
        return f"{top} is installed but cannot be imported ({type(error).__name__}: {error})"
    return None


@contextmanager
def numpy_sctypes() -> Iterator[None]:
    """``numpy.sctypes``, gone in numpy 2, for the import of imgaug 0.4."""
    import numpy as np

    if "sctypes" in vars(np):
        yield
        return
    stand_in = {
        "int": [np.int8, np.int16, np.int32, np.int64],
        "uint": [np.uint8, np.uint16, np.uint32, np.uint64],
        "float": [np.float16, np.float32, np.float64],
        "complex": [np.complex64, np.complex128],
        "others": [bool, object, bytes, str, np.void],
    }
    np.sctypes = stand_in  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del np.sctypes  # type: ignore[attr-defined]


@contextmanager
def cuda_calls_go_to(device: Any = "cpu") -> Iterator[None]:
    """Where there is no CUDA, ``.cuda()`` within the block moves to ``device`` instead.

    OpenOOD's scripts and many of its postprocessors call it on every tensor and network. With CUDA
    nothing changes.
    """
    import torch

    if torch.cuda.is_available():
        yield
        return

    def move(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.to(device)

    kept = torch.Tensor.cuda, torch.nn.Module.cuda
    torch.Tensor.cuda = move  # type: ignore[method-assign,assignment]
    torch.nn.Module.cuda = move  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.Tensor.cuda, torch.nn.Module.cuda = kept  # type: ignore[method-assign]
