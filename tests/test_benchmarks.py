"""The benchmarks use names that the package has; they are too slow to run here."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

MODULES = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("module", MODULES, ids=[module.stem for module in MODULES])
def test_what_a_benchmark_imports_is_there(module: Path) -> None:
    tree = ast.parse(module.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level]
    for node in imports:
        if (node.module or "").startswith("adaneg_openood"):
            held = importlib.import_module(node.module or "")
            missing = [name.name for name in node.names if not hasattr(held, name.name)]
            assert not missing, f"line {node.lineno}: {node.module} has no {missing}"
