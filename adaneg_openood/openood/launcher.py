"""Runs OpenOOD's own scripts, unchanged, with this package's methods registered."""

from __future__ import annotations

import difflib
import logging
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from adaneg_openood.openood import compat
from adaneg_openood.openood.hooks import ImportHooks
from adaneg_openood.openood.packaged import packaged_config
from adaneg_openood.openood.registration import register

logger = logging.getLogger(__name__)


def run_script(script: str, arguments: Sequence[str]) -> None:
    """Run a script as ``python script arguments`` would, in this process.

    Three things differ. This package is registered with OpenOOD. A file after ``--config`` that is not
    there, but that this package brings (``configs/postprocessors/adaneg.yml``), is taken from here. And
    on a machine without CUDA, ``.cuda()`` and ``clip.load(device="cuda")`` stay on the CPU while the
    script runs, because OpenOOD's scripts know nothing else.

    Raises:
        SystemExit: there is no such script; or the script's own.
    """
    path = Path(script)
    if not path.is_file():
        raise SystemExit(
            f"there is no script {script} here ({Path.cwd()}); run this in OpenOOD's checkout, or give "
            "the script's path"
        )
    register()
    argv, first = sys.argv, sys.path[0]
    sys.argv = [script, *with_packaged_configs(arguments)]
    sys.path[0] = str(path.resolve().parent)  # where python would look first
    try:
        with compat.cuda_calls_go_to("cpu"), _clip_stays_on_cpu():
            runpy.run_path(script, run_name="__main__")
    except ModuleNotFoundError as error:
        top = (error.name or "").partition(".")[0]
        if top not in compat.PACKAGES or "pip install" in str(error):
            raise
        what, command = compat.PACKAGES[top]
        raise ModuleNotFoundError(
            f"{error}; it is needed for {what}. To have it: {command}", name=error.name
        ) from error
    finally:
        sys.argv, sys.path[0] = argv, first


def with_packaged_configs(arguments: Sequence[str]) -> list[str]:
    """The arguments, with configuration files that only this package has replaced by its own.

    Raises:
        SystemExit: a file after ``--config`` that is nowhere, or that is empty.
    """
    out, in_config = [], False
    for argument in arguments:
        if argument.startswith("--"):
            in_config = argument == "--config"
        elif in_config and argument.strip():
            if not Path(argument).is_file():
                argument = str(_packaged(Path(argument)))
            if not Path(argument).read_text(encoding="utf-8").strip():
                raise SystemExit(f"the configuration {argument} is empty")
        out.append(argument)
    return out


def _packaged(wanted: Path) -> Path:
    kind = wanted.parent.name
    try:
        found = packaged_config(kind, wanted.stem)
    except FileNotFoundError:
        known = {path.stem for path in wanted.parent.glob("*.yml")}
        known |= {path.stem for path in packaged_config("postprocessors", "adaneg").parent.glob("*.yml")}
        near = difflib.get_close_matches(wanted.stem, known, n=1)
        hint = f"; did you mean {wanted.with_name(near[0] + '.yml')}?" if near else ""
        raise SystemExit(f"there is no configuration {wanted}{hint}") from None
    logger.info("%s: taken from %s", wanted, found)
    return found


@contextmanager
def _clip_stays_on_cpu() -> Iterator[None]:
    """Without CUDA, ``clip.load`` loads to the CPU whatever device it is asked for."""
    import torch

    if torch.cuda.is_available():
        yield
        return
    hooks = ImportHooks({}, {"clip.clip": _load_on_cpu})
    hooks.install()
    try:
        yield
    finally:
        hooks.uninstall()
        module = sys.modules.get("clip.clip")
        for place in (module, sys.modules.get("clip")):
            original = getattr(getattr(place, "load", None), "_adaneg_original", None)
            if place is not None and original is not None:
                place.load = original  # type: ignore[attr-defined]


def _load_on_cpu(module: ModuleType) -> None:
    original = module.load  # type: ignore[attr-defined]
    if hasattr(original, "_adaneg_original"):
        return

    def load(name: str, device: object = "cpu", *args: object, **kwargs: object) -> object:
        return original(name, "cpu", *args, **kwargs)

    load._adaneg_original = original  # type: ignore[attr-defined]
    module.load = load  # type: ignore[attr-defined]
    package = sys.modules.get("clip")
    if getattr(package, "load", None) is original:
        package.load = load  # type: ignore[union-attr]
