"""Importing OpenAI's ``clip`` where setuptools no longer brings the module that it imports."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_INSTALL = "pip install clip-anytorch (the package called clip on PyPI is a clipboard tool)"


def import_clip() -> Any:
    """The ``clip`` package.

    Raises:
        ImportError: not installed, or PyPI's clipboard tool of that name.
    """
    with pkg_resources_packaging():
        try:
            package = importlib.import_module("clip")
        except ImportError as error:
            raise ImportError(f"OpenAI's clip cannot be imported ({error}): {_INSTALL}") from error
    if not hasattr(package, "load") or not hasattr(package, "available_models"):
        raise ImportError(f"{package.__file__} is another package called clip: {_INSTALL}")
    return package


@contextmanager
def pkg_resources_packaging() -> Iterator[None]:
    """``pkg_resources.packaging``, which CLIP's packages import and newer setuptools lacks."""
    missing = object()
    before = sys.modules.get("pkg_resources", missing)
    if before is missing and importlib.util.find_spec("pkg_resources") is not None:
        try:
            before = importlib.import_module("pkg_resources")
        except ImportError:  # half of it is there
            before = sys.modules.get("pkg_resources", missing)
    if hasattr(before, "packaging"):
        yield
        return
    try:
        import packaging
        import packaging.version
    except ImportError:
        yield  # CLIP's import then says what is missing
        return
    stand_in = types.ModuleType("pkg_resources", "Placeholder while CLIP's package is imported")
    stand_in.packaging = packaging  # type: ignore[attr-defined]
    stand_in.parse_version = packaging.version.parse  # type: ignore[attr-defined]
    sys.modules["pkg_resources"] = stand_in
    try:
        yield
    finally:
        if before is missing:
            sys.modules.pop("pkg_resources", None)
        else:
            sys.modules["pkg_resources"] = before  # type: ignore[assignment]
