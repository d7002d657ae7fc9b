"""The public names and signatures, pinned; clean imports; documentation that builds.

``tests/data/api.txt`` is the list. ``python tests/test_api.py --write`` refreshes it.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from adaneg_openood.openood import compat

SNAPSHOT = Path(__file__).parent / "data" / "api.txt"
MODULES = (
    "adaneg_openood",
    "adaneg_openood.io.processes",
    "adaneg_openood.data",
    "adaneg_openood.evaluation",
    "adaneg_openood.openood",
    "adaneg_openood.predictor",
    "adaneg_openood.text",
    "adaneg_openood.vlm",
)
HAS_OPENOOD = compat.installed()
# what an import of this package must not bring along, because it takes seconds
HEAVY = (
    "IPython matplotlib nltk open_clip openood pandas PIL scipy sklearn torchvision transformers typer "
    "yaml tqdm safetensors"
).split()


def public_names(module):
    """``__all__``, or what a module without it defines itself."""
    named = getattr(module, "__all__", None)
    if named is not None:
        return sorted(named)
    return sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    )


def signature(what):
    """As it is written in the source, without the addresses of default objects."""
    try:
        text = str(inspect.signature(what))
    except (TypeError, ValueError):
        return "(...)"
    # annotations are text here, and inspect puts it in quotes
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)
    return re.sub(r"<(?:[\w.]*\.)?(\w+) object at 0x\w+>", r"<\1>", text)


def own_members(kind):
    """Public members that this package gives a class, the bases' included."""
    found = {}
    for base in reversed(kind.__mro__):
        if base.__module__.startswith("adaneg_openood"):
            found.update({name: value for name, value in vars(base).items() if not name.startswith("_")})
    return sorted(found.items())


def described(path, value):
    if not inspect.isclass(value):
        return [f"{path}{signature(value)}" if callable(value) else f"{path}: {type(value).__name__}"]
    fields = (
        {field.name for field in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else set()
    )
    is_protocol = getattr(value, "_is_protocol", False)
    lines = [path if is_protocol else f"{path}{signature(value).replace(' -> None', '')}"]
    for name, member in own_members(value):
        if name in fields:
            continue  # in the constructor
        if isinstance(member, property):
            lines.append(f"  .{name}")
        elif isinstance(member, (classmethod, staticmethod)):
            lines.append(f"  .{name}{signature(getattr(value, name))}  [{type(member).__name__}]")
        elif inspect.isfunction(member):
            lines.append(f"  .{name}{signature(member)}")
        else:
            lines.append(f"  .{name}")
    return lines


def api(module_name):
    """The lines of a module."""
    module = importlib.import_module(module_name)
    lines = [f"== {module_name}"]
    for name in public_names(module):
        lines += described(name, getattr(module, name))
    return lines


def saved():
    parts = SNAPSHOT.read_text("utf-8").split("\n\n")
    return {part.splitlines()[0][3:]: part.splitlines() for part in parts if part.strip()}


@pytest.mark.parametrize("name", MODULES)
def test_public_names_and_signatures(name):
    if name == "adaneg_openood.openood" and not HAS_OPENOOD:
        pytest.skip("OpenOOD is not importable here, and this module's classes are its subclasses")
    now, then = api(name), saved()[name]
    changed = "\n".join(difflib.unified_diff(then, now, "pinned", "now", lineterm="", n=1))
    assert now == then, (
        f"the public interface changed; meant? python tests/test_api.py --write\n{changed}"
    )


def test_everything_public_is_typed_and_documented():
    bare, silent = [], []
    for module_name in MODULES:
        if module_name == "adaneg_openood.openood" and not HAS_OPENOOD:
            continue
        module = importlib.import_module(module_name)
        assert module.__doc__, module_name
        for name in public_names(module):
            value = getattr(module, name)
            members = own_members(value) if inspect.isclass(value) else []
            functions = [(name, value)] if inspect.isfunction(value) else []
            functions += [(f"{name}.{key}", f) for key, f in members if inspect.isfunction(f)]
            if callable(value) and not (value.__doc__ or "").strip():
                silent.append(f"{module_name}.{name}")
            for path, function in functions:
                own = inspect.signature(function)
                missing = [
                    p for p in own.parameters.values() if p.annotation is p.empty and p.name != "self"
                ]
                if missing or own.return_annotation is own.empty:
                    bare.append(f"{module_name}.{path}")
    assert not bare and not silent
    assert (Path(importlib.import_module("adaneg_openood").__file__).parent / "py.typed").is_file()


def python(code, *options):
    made = subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert made.returncode == 0, made.stderr
    return made.stdout.split()


def test_import_is_clean_and_light():
    code = (
        "import torch, sys; before = set(sys.modules); import adaneg_openood; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    loaded = python(code, "-W", "error")
    assert "adaneg_openood" in loaded
    assert not set(loaded) & set(HEAVY)


def test_the_other_modules_import_without_warnings():
    modules = [name for name in MODULES if HAS_OPENOOD or name != "adaneg_openood.openood"]
    heavy = "open_clip torchvision transformers pandas matplotlib sklearn nltk".split()
    code = f"import {', '.join(modules)}, sys; print(*[m for m in {heavy} if m in sys.modules], '.')"
    assert python(code, "-W", "error") == ["."]


@pytest.mark.skipif(sys.version_info < (3, 10), reason="pdoc evaluates annotations of Python 3.10")
def test_documentation_builds(tmp_path):
    pytest.importorskip("pdoc", reason="pdoc is not installed: pip install -e '.[docs]'")
    # named one by one, because the package's own __all__ names no modules; as in CONTRIBUTING.md
    names = [name for name in MODULES if name != "adaneg_openood.openood"]
    command = [sys.executable, "-m", "pdoc", "--docformat", "google", "-o", str(tmp_path), *names]
    made = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert made.returncode == 0, made.stderr
    assert "Traceback" not in made.stderr and "Error" not in made.stderr, made.stderr
    contributing = (SNAPSHOT.parents[2] / "CONTRIBUTING.md").read_text("utf-8")
    assert f"pdoc --docformat google -o build/docs {' '.join(names)}" in contributing.replace(
        " \\\n        ", " "
    )
    page = (tmp_path / "adaneg_openood" / "data.html").read_text("utf-8")
    assert "Encode images into a feature file" in page
    page = (tmp_path / "adaneg_openood" / "evaluation.html").read_text("utf-8")
    assert "Score every OOD set of a benchmark together with the ID images" in page


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        raise SystemExit("usage: python tests/test_api.py --write")
    if not HAS_OPENOOD:
        raise SystemExit("OpenOOD must be importable to write the whole list")
    SNAPSHOT.write_text("\n\n".join("\n".join(api(name)) for name in MODULES) + "\n", "utf-8")
