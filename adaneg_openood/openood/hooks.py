"""Code that runs around the import of a module, without importing anything ahead of time."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any, Callable, Optional

Around = Callable[[], AbstractContextManager[Any]]
After = Callable[[ModuleType], None]


class ImportHooks(importlib.abc.MetaPathFinder):
    """Wraps the import of chosen modules; every other import is left alone.

    Args:
        around: module name -> function that returns a context manager its execution happens in.
        after: module name -> function called with the module once it was executed, before any other
            module can read a name from it.
    """

    def __init__(self, around: Mapping[str, Around], after: Mapping[str, After]) -> None:
        self.around, self.after = dict(around), dict(after)
        self._searching: set[str] = set()

    def find_spec(
        self,
        fullname: str,
        path: Optional[Sequence[str]] = None,  # noqa: UP045 - the base class's signature
        target: Optional[ModuleType] = None,  # noqa: UP045
    ) -> Optional[importlib.machinery.ModuleSpec]:  # noqa: UP045
        if fullname in self._searching or not (fullname in self.around or fullname in self.after):
            return None
        self._searching.add(fullname)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._searching.discard(fullname)
        if spec is None or spec.loader is None or not hasattr(spec.loader, "exec_module"):
            return spec
        self._wrap(spec.loader, fullname)
        return spec

    def _wrap(self, loader: Any, name: str) -> None:
        # A loader belongs to one spec. Replacing this one method keeps all its others (get_code,
        # get_source, resources), which a loader class of our own would have to repeat.
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            if module.__name__ != name:  # a zip importer is one loader for all its modules
                execute(module)
                return
            with self.around.get(name, nullcontext)():
                execute(module)
            if name in self.after:
                self.after[name](module)

        loader.exec_module = exec_module

    def install(self) -> None:
        """Put the hooks in front of the other finders; modules that are imported already are visited."""
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)
        for name, after in self.after.items():
            module = sys.modules.get(name)
            # one that is being executed right now has no names to replace yet
            if module is not None and not _is_initialising(module):
                after(module)

    def uninstall(self) -> None:
        """Take the hooks away; what they did stays."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)


def _is_initialising(module: ModuleType) -> bool:
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))
