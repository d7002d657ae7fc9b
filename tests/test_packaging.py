"""What the wheel holds, and that the oldest Python can read it."""

from __future__ import annotations

import ast
import configparser
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from setuptools import find_packages

from adaneg_openood.benchmark import definition, postprocessor  # noqa: F401, whose settings are counted
from adaneg_openood.cli import app
from adaneg_openood.io.configuration import Section

ROOT = Path(__file__).parents[1]


def test_every_package_is_listed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = setup["options"]["packages"].split()
    found = find_packages(str(ROOT), include=["adaneg_openood*"])
    assert sorted(listed) == sorted([*found, "adaneg_openood.configs"])


def sections(kind: type = Section) -> Iterator[type]:
    for found in kind.__subclasses__():
        yield found
        yield from sections(found)


COMMANDS = [command.callback for command in app.registered_commands]


@pytest.mark.parametrize(
    "read", list(dict.fromkeys([*sections(), *COMMANDS])), ids=lambda read: read.__qualname__
)
def test_annotations_that_run_are_read_by_python_39(read):
    """pydantic and typer evaluate annotations, and Python 3.9 has no ``int | None``."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(read))).body
    body = tree.body if isinstance(tree, ast.ClassDef) else [*tree.args.args, *tree.args.kwonlyargs]
    for part in body:
        if isinstance(part, (ast.AnnAssign, ast.arg)) and part.annotation is not None:
            kinds = [type(node.op) for node in ast.walk(part.annotation) if isinstance(node, ast.BinOp)]
            assert ast.BitOr not in kinds, ast.unparse(part.annotation)
