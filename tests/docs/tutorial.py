"""docs/tutorial.md as cells: run in an empty folder, and written as a notebook.

``python tests/docs/tutorial.py`` runs the page's commands, puts what they print into the page, and
writes docs/tutorial.ipynb from it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
NOTEBOOK = PAGE.with_suffix(".ipynb")
FOLDER = "/home/me/tutorial"  # what the page calls the folder that it is run in
_BLOCK = re.compile(r"^```(\w+) ?(.*)\n((?:.*\n)*?)```\n", re.M)


class Block(NamedTuple):
    """A fenced block: commands (sh), Python, a file (yaml, with its name), or what was printed (text).

    ``about`` of printed text is how the shown paragraph begins; all is shown where it is empty.
    """

    kind: str
    about: str
    body: str


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return [Block(*found) for found in _BLOCK.findall(page)]


def cell(block: Block) -> str:
    """The block as the source of a notebook's cell."""
    if block.kind == "sh":
        return "\n".join(f"!{line}" for line in block.body.splitlines())
    return f"%%writefile {block.about}\n{block.body}" if block.kind == "yaml" else block.body


def notebook(page: str) -> str:
    """The page as a notebook, without what was printed."""
    cells = []
    place = 0
    for found in [*_BLOCK.finditer(page), None]:
        text = page[place : found.start() if found else None].strip()
        if text:
            cells.append({"cell_type": "markdown", "metadata": {}, "source": text})
        if found and found[1] != "text":
            source = cell(Block(*found.groups())).rstrip("\n")
            code = {"execution_count": None, "metadata": {}, "outputs": [], "source": source}
            cells.append({"cell_type": "code", **code})
        place = found.end() if found else place
    named = [{"id": f"cell-{number}", **content} for number, content in enumerate(cells)]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    content = {"cells": named, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def run(source: str, folder: Path) -> str:
    """Run a notebook's cell in a folder; what it prints, with the folder called :data:`FOLDER`."""
    if source.startswith("%%writefile "):
        first, _, body = source.partition("\n")
        (folder / first.split()[1]).write_text(f"{body}\n", "utf-8")
        return ""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "PYTHONUTF8": "1"}
    printed = ""
    commands = source.splitlines() if source.startswith("!") else [source]
    for command in commands:
        shell = command.startswith("!")
        done = subprocess.run(
            command[1:] if shell else [sys.executable, "-c", command],
            shell=shell,
            cwd=folder,
            env=env,
            capture_output=True,
            encoding="utf-8",
            timeout=300,
        )
        if done.returncode:
            raise RuntimeError(f"{command}\n{done.stdout}\n{done.stderr}")
        printed += done.stdout
    return printed.replace(str(folder), FOLDER).replace("\\", "/")


def shown(printed: str, start: str) -> str:
    """The paragraph that begins with ``start``; everything where that is empty."""
    if not start:
        return printed
    found = re.search(rf"^{re.escape(start)}(?:.*\n)(?:.+\n?)*", printed, re.M)
    if found is None:
        raise ValueError(f"no line begins with {start!r}:\n{printed}")
    return found[0].rstrip("\n") + "\n"


def played(source: list[Block], folder: Path) -> Iterator[tuple[Block, str]]:
    """Run the blocks in order; every block of printed text, and what is printed now."""
    printed = ""
    for block in source:
        if block.kind == "text":
            yield block, shown(printed, block.about)
        else:
            printed = run(cell(block).rstrip("\n"), folder)


def main() -> None:
    """Write the page's printed text and the notebook anew."""
    page = PAGE.read_text("utf-8")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder).resolve()
        os.environ["ADANEG_CACHE"] = str(place / "cache")
        fresh = iter([text for _, text in played(blocks(page), place)])

    def renewed(found: re.Match[str]) -> str:
        if found[1] != "text":
            return found[0]
        return f"```{f'text {found[2]}'.rstrip()}\n{next(fresh)}```\n"

    PAGE.write_text(_BLOCK.sub(renewed, page), "utf-8")
    NOTEBOOK.write_text(notebook(PAGE.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
