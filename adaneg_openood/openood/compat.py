"""What lets today's OpenOOD be imported and run with today's packages, with or without CUDA.

OpenOOD imports many packages at the top of its modules that most of its methods never use, and some
of them do not install any more. For each OpenOOD module that does so, :data:`NEEDS` says what it wants.
*While that one module is being executed*, a package that is not there is represented by a placeholder,
which raises :class:`ModuleNotFoundError` with the command that mends it as soon as something from it is
used. Before and after, nothing is in ``sys.modules`` that was not installed: ``import timm`` in other
code fails, or not, as it always did. Packages that are installed are used.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import itertools
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType
from typing import Any, Callable, NoReturn

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


# OpenAI CLIP's mean and std, which importing open_clip for would take a second
CLIP_NORMALIZATION = [[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]]


def installed() -> bool:
    """Whether OpenOOD itself can be found; a plain folder called ``openood`` on the path is not it."""
    spec = importlib.util.find_spec("openood")
    return spec is not None and spec.origin is not None


class ImportHooks(importlib.abc.MetaPathFinder):
    """Wraps the import of chosen modules; every other import is left alone.

    ``around`` gives the context in which a module is executed. ``after`` is called with the module once
    it was executed, before any other module can read a name from it.
    """

    def __init__(
        self,
        around: Mapping[str, Callable[[], AbstractContextManager[Any]]],
        after: Mapping[str, Callable[[ModuleType], None]],
    ) -> None:
        self.around, self.after = dict(around), dict(after)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname not in self.around and fullname not in self.after:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            # a loader belongs to one spec; replacing this one method keeps all its others
            loader: Any = spec.loader
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                with self.around.get(fullname, nullcontext)():
                    execute(module)
                self.after.get(fullname, lambda _: None)(module)

            loader.exec_module = exec_module
        return spec

    def install(self) -> None:
        """Put the hooks in front of the other finders; modules that are imported already are visited."""
        sys.meta_path.insert(0, self)
        for name, after in self.after.items():
            module = sys.modules.get(name)
            # one that is being executed right now has no names to replace yet
            if module is not None and not getattr(module.__spec__, "_initializing", False):
                after(module)


class MissingName:
    """A name from a package that is not installed; whatever is done with it says what installs it."""

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


class MissingModule(ModuleType):
    """Stands in for a module that cannot be imported; its names are :class:`MissingName`."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []  # a package, so that submodules can be looked up in sys.modules
        self._reason = reason

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
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
    reasons = {name: why for name in modules if (why := _why_not(name))}
    added: dict[str, ModuleType] = {}
    try:
        for name, reason in reasons.items():
            above = ""
            for full in itertools.accumulate(name.split("."), "{}.{}".format):
                if full not in sys.modules:
                    added[full] = sys.modules[full] = MissingModule(full, reason)
                    if above in added:
                        setattr(added[above], full.rpartition(".")[2], added[full])
                above = full
        yield
    finally:
        for full, module in added.items():
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
