"""``python -m adaneg_openood``: OpenOOD's scripts with this package's methods known, or the commands.

``python -m adaneg_openood main.py --config ...`` runs a Python script as ``python main.py --config ...``
would; anything else goes to ``adaneg-openood``.
"""

from __future__ import annotations

import difflib
import logging
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from adaneg_openood.openood import compat

logger = logging.getLogger(__name__)


def main() -> None:
    """Run what the command line names."""
    if len(sys.argv) > 1 and sys.argv[1].endswith(".py"):
        run_script(sys.argv[1], sys.argv[2:])
    else:
        from adaneg_openood.cli import app

        app(prog_name="python -m adaneg_openood")


def run_script(script: str, arguments: Sequence[str]) -> None:
    """Run a script as ``python script arguments`` would, in this process, which ends with it.

    A file after ``--config`` that is not there, but that this package brings
    (``configs/postprocessors/adaneg.yml``), is taken from here. And on a machine without CUDA,
    ``.cuda()`` and ``clip.load(device="cuda")`` stay on the CPU, because OpenOOD's scripts know nothing
    else.

    Raises:
        SystemExit: there is no such script; or the script's own.
    """
    import torch

    path = Path(script)
    if not path.is_file():
        raise SystemExit(
            f"there is no script {script} here ({Path.cwd()}); run this in OpenOOD's checkout, or give "
            "the script's path"
        )
    sys.argv = [script, *_with_shipped_configs(arguments)]
    sys.path[0] = str(path.resolve().parent)  # where python would look first
    if not torch.cuda.is_available():
        compat.ImportHooks({}, {"clip": _load_on_cpu}).install()
    try:
        with compat.cuda_calls_go_to("cpu"):
            runpy.run_path(script, run_name="__main__")
    except ModuleNotFoundError as error:
        top = (error.name or "").partition(".")[0]
        if top not in compat.PACKAGES or "pip install" in str(error):
            raise
        what, command = compat.PACKAGES[top]
        raise ModuleNotFoundError(
            f"{error}; it is needed for {what}. To have it: {command}", name=error.name
        ) from error


def _with_shipped_configs(arguments: Sequence[str]) -> list[str]:
    """The arguments, with configuration files that only this package has replaced by its own."""
    out, in_config = [], False
    for argument in arguments:
        if argument.startswith("--"):
            in_config = argument == "--config"
        elif in_config and argument.strip():
            if not Path(argument).is_file():
                argument = str(_shipped(Path(argument)))
            if not Path(argument).read_text(encoding="utf-8").strip():
                raise SystemExit(f"the configuration {argument} is empty")
        out.append(argument)
    return out


def _shipped(wanted: Path) -> Path:
    from adaneg_openood.io.configuration import shipped

    known = shipped(wanted.parent.name)
    if wanted.stem not in known:
        names = [*known, *(path.stem for path in wanted.parent.glob("*.yml"))]
        near = difflib.get_close_matches(wanted.stem, names, n=1)
        hint = f"; did you mean {wanted.with_name(near[0] + '.yml')}?" if near else ""
        raise SystemExit(f"there is no configuration {wanted}{hint}")
    logger.info("%s: taken from %s", wanted, known[wanted.stem])
    return known[wanted.stem]


def _load_on_cpu(clip: ModuleType) -> None:
    """``clip.load`` loads to the CPU, whatever device it is asked for."""
    original = clip.load

    def load(name: str, device: object = "cpu", *args: object, **kwargs: object) -> object:
        return original(name, "cpu", *args, **kwargs)

    clip.load = load  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
