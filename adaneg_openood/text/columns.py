"""What stands beside the name in every line of a list: indices, wnids, kinds, scores."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from adaneg_openood.io.names import harmless

_SEPARATOR = r"(?:\s*(?:->|=>|[:;,|=\t])\s*|\s+-\s+|\s+)"
WNID = r"n[0-9]{8}"
NUMBER = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
# what may stand before (True) or after the name in every line
_BESIDE = (
    ("wnid", re.compile(rf"({WNID})(?:(?:{_SEPARATOR}|-)(.*))?"), True),
    ("index", re.compile(rf"[\[(]?([0-9]{{1,7}})(?:[\])]\s*:?\s*|\.\s+|{_SEPARATOR})(.*)"), True),
    ("joined index", re.compile(r"([0-9]{1,7})[._-](\D.*)"), True),
    ("kind", re.compile(rf"(adj|noun){_SEPARATOR}(.+)"), True),
    ("number", re.compile(rf"({NUMBER})\s*[,;\t]\s*(.+)"), True),
    ("wnid", re.compile(rf"(.+?){_SEPARATOR}({WNID})"), False),
    ("index", re.compile(rf"(.+?){_SEPARATOR}([0-9]{{1,7}})"), False),
    ("kind", re.compile(rf"(.+?){_SEPARATOR}(adj|noun)"), False),
    ("number", re.compile(rf"(.+?)(?:\s*[,;\t:]\s*({NUMBER})|\s+([-+]?[0-9]*\.[0-9]+))"), False),
)
Columns = list[tuple[str, list[str]]]  # the header's title, folded and empty without one; the cells
HINT = (
    "Understood are one name per line, 'wnid name', 'index name', a CSV file with a header, and JSON; a "
    "JSON list of names is taken as it stands"
)


class ListFile:
    """A list of names that is being read.

    Args:
        path: for messages.
        words: whether it holds words, or class names.
    """

    def __init__(self, path: Path, words: bool) -> None:
        self.path, self.words = path, words
        self.places: list[str] = []  # of the rows, for messages
        self.shown: list[str] = []

    def refuse(self, why: str, row: int | None = None) -> NoReturn:
        place = "" if row is None else f", {self.places[row]}"
        got = "" if row is None else f"; got {harmless(self.shown[row])[:80]!r}"
        raise ValueError(f"{self.path}{place}: {why}{got}. {HINT}")


def peeled(file: ListFile, lines: list[str], strict: bool) -> tuple[Columns, list[str]]:
    """Take off what stands before or after the name in every line."""
    columns: Columns = []
    while any(lines):
        for kind, pattern, leading in _BESIDE:
            if kind in ("kind", "number") and not file.words:
                continue
            pairs = _split(lines, pattern, leading)
            if pairs is None:
                continue
            values, rest = [value for value, _ in pairs], [name for _, name in pairs]
            if kind.endswith("index") and not is_index(values, rest):
                if strict and kind == "index":  # "8-ball" and "9-pin" are names
                    _look_at_numbers(file, lines, values, leading)
                continue
            columns.append(("", values))
            lines = [name.strip() for name in rest]
            break
        else:
            break
    mixed = [bool(re.match(rf"{WNID}\b", line)) for line in lines]
    if any(mixed):
        file.refuse("has no wnid, unlike others", mixed.index(False) if not all(mixed) else 0)
    return columns, lines


def _split(lines: list[str], pattern: re.Pattern[str], leading: bool) -> list[tuple[str, str]] | None:
    """What stands beside the name, and the name, of every line; None if a line has none."""
    pairs = []
    for line in lines:
        match = pattern.fullmatch(line)
        if match is None:
            return None
        parts = [part or "" for part in match.groups()] if leading else [*filter(None, match.groups())]
        pairs.append((parts[0], parts[1]) if leading else (parts[1], parts[0]))
    return pairs


def is_index(values: Sequence[str], rest: Sequence[str] = ()) -> bool:
    """Whether numbers are 0..C-1 or 1..C, beside names that tell the rows apart."""
    numbers = sorted(map(int, values))
    first = numbers[0]
    in_order = first in (0, 1) and numbers == list(range(first, first + len(numbers)))
    # "thing 1", "thing 2": the number is a part of the name
    return in_order and (len(set(rest)) > len(rest) // 2 or not any(rest))


def _look_at_numbers(file: ListFile, lines: list[str], values: list[str], leading: bool) -> None:
    """Refuse numbers in every line that are labels with gaps, or scores that nothing sets apart."""
    apart = re.compile(r"[0-9]+\s*[,;\t].*" if leading else r".*[,;\t:]\s*[0-9]+")
    in_column = all(apart.fullmatch(line) for line in lines)
    if not file.words:
        if leading or in_column:
            file.refuse("every line has a number, and they are not 0..C-1 or 1..C", 0)
        return
    years = all(1900 <= int(value) < 2100 for value in values)
    if not in_column and not years and not is_index(values):
        file.refuse("every line has a number; put a comma between it and the word", 0)
