"""Lists of names in the layouts that people have: columns are found, and what is no name is refused.

docs/file_layouts.md is the list of what is understood; each of its rows is a test.
"""

from __future__ import annotations

import ast
import csv
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaneg_openood.io.names import harmless
from adaneg_openood.text.columns import NUMBER, WNID, Columns, ListFile, is_index, peeled

_LONGEST = 1000  # characters of a line
# titles of columns, the likeliest first
_NAME_TITLES = (
    *("name", "names", "class_name", "classname", "class_names", "label_name", "labelname"),
    *("category_name", "text", "english", "words", "word", "lemma", "category", "categories", "class"),
    *("classes", "label", "labels", "title", "species", "common_name", "description", "synset"),
)
_INDEX_TITLES = (
    *("index", "idx", "id", "label_id", "class_id", "class_idx", "class_index", "target", "no", "#"),
)
_OTHER_TITLES = "wnid synset_id wordnet_id score count kind pos folder similarity".split()
_TITLES = frozenset((*_NAME_TITLES, *_INDEX_TITLES, *_OTHER_TITLES))
# those that nothing else can be: the first line of a file without columns
_TITLES_ALONE = _TITLES.difference(
    ("text", "english", "title", "species", "description", "count", "folder", "no", "#")
)
_CONTAINERS = (
    *("names", "classes", "class_names", "id2label", "label2id", "class_to_idx", "categories", "labels"),
    "words",
)
_PLACES = re.compile(r"/[a-z]/(.+)")  # Places365 sorts its classes under their first letter
_KINDS = {"adj": "adj", "adjective": "adj", "a": "adj", "s": "adj", "noun": "noun", "n": "noun"}
# what markup, code, paths and other layouts leave in a name
_STRANGE = re.compile(
    r"[{}<>\[\]|`\\\t=]|^(?:#|/|--|[-*!%]\s)|[,:;]$|\s(?:#|//)\s|://|\.(?:jpe?g|png|bmp|webp|gif)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Names:
    """The names of a file, in the order of their labels.

    Attributes:
        names: None where the file has wnids alone.
        wnids: None where it has none.
        kinds: ``"adj"`` or ``"noun"`` per word, None where the file does not say.
    """

    names: tuple[str, ...] | None
    wnids: tuple[str, ...] | None = None
    kinds: tuple[str, ...] | None = None


class _Pairs(list):  # type: ignore[type-arg]
    """The entries of a JSON object or Python dict, in order and with keys that are there twice."""


def read_names(path: Path, *, words: bool = False) -> Names:
    """Read a list of names.

    Args:
        path: the file.
        words: it holds words of a corpus or negative labels: their order is no label, numbers beside
            them are scores, and ``adj`` or ``noun`` beside them are kinds.

    Raises:
        ValueError: nothing is understood, or a line is no name; the message shows it.
        OSError: the file cannot be read.
    """
    file, content = ListFile(path, words), path.read_bytes()
    utf16 = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        what = "a word list" if words else "class names"
        raise ValueError(f"{path}: {what} must be UTF-8 text, {error}") from error
    value = _structured(file, text)
    return _assembled(file, _of_lines(file, text) if value is None else _of_value(file, value))


# -- JSON and Python ------------------------------------------------------------------------------------


def _structured(file: ListFile, text: str) -> Any:
    """The list or the entries that the text spells, or None where it is lines."""
    is_json = file.path.suffix == ".json"
    body = text.strip()
    if not is_json:
        assigned = re.match(r"\w+\s*=\s*(?=[\[{(])", body)
        body = body[assigned.end() :] if assigned else body
        if not body.startswith(("[", "{")):
            return None
    try:
        return json.loads(body, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        if is_json:
            raise ValueError(f"{file.path}: not JSON, {error}") from error
    try:
        return _value_of(ast.parse(body.rstrip(";"), mode="eval").body)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _value_of(node: ast.AST) -> Any:
    """A Python literal; nothing is evaluated."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (str, int, float)):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value_of(part) for part in node.elts]
    if isinstance(node, ast.Dict) and all(node.keys):
        return _Pairs((_value_of(k), _value_of(v)) for k, v in zip(node.keys, node.values) if k)
    raise ValueError("no literal")


def _of_value(file: ListFile, value: Any) -> Columns:
    if isinstance(value, _Pairs):
        parts = {str(key): part for key, part in reversed(value)}
        inner = [parts[key] for key in _CONTAINERS if isinstance(parts.get(key), list) and parts[key]]
        value = inner[0] if inner else value
    if not isinstance(value, list):
        raise ValueError(f"{file.path}: must be a list of names, or an object from label to name")
    if not value:
        raise ValueError(f"{file.path}: holds no {'word' if file.words else 'class name'}")
    rows: list[Any] = list(value)
    if isinstance(value, _Pairs):
        folded = [(str(key).lower().removesuffix("s"), part) for key, part in value]
        if file.words and all(key in _KINDS and isinstance(part, list) for key, part in folded):
            return _of_value(file, [[key, word] for key, part in folded for word in part])
        if all(isinstance(part, _Pairs) for _, part in value):
            rows = [_Pairs([("", key), *part]) for key, part in value]
        else:
            rows = [[key, *(part if isinstance(part, list) else [part])] for key, part in value]
        twice, n = Counter(str(key) for key, _ in value).most_common(1)[0]
        if n > 1:
            raise ValueError(f"{file.path}: key {twice[:80]!r} is there twice; keep one")
    file.places = [f"entry {row}" for row in range(len(rows))]
    file.shown = [str(row)[:200] for row in rows]
    for row, cells in enumerate(rows):
        plain = [part for _, part in cells] if isinstance(cells, _Pairs) else cells
        plain = plain if isinstance(plain, list) else [plain]
        if not all(isinstance(part, (str, int, float)) and not isinstance(part, bool) for part in plain):
            file.refuse("must be a name, or names and numbers", row)
        if not isinstance(cells, (list, str)):
            file.refuse("must be a list of names, or an object from label to name", row)
    if all(isinstance(cells, str) for cells in rows):
        columns, rest = peeled(file, [cells.strip() for cells in _not_too_long(file, rows)], False)
        return [*columns, ("", rest)] if any(rest) else columns
    if all(isinstance(cells, _Pairs) for cells in rows):
        titles = [str(title) for title, _ in rows[0]]
        for row, cells in enumerate(rows):
            if [str(title) for title, _ in cells] != titles:
                file.refuse(f"must have the keys {', '.join(titles)[:200]}", row)
        table = zip(*([str(part) for _, part in cells] for cells in rows))
        return [(_title(title), list(column)) for title, column in zip(titles, table)]
    width = len(rows[0])
    for row, cells in enumerate(rows):
        if not isinstance(cells, list) or isinstance(cells, _Pairs) or len(cells) != width or not width:
            file.refuse(f"must hold {width} values, as the first one", row)
    return [("", [str(part) for part in column]) for column in zip(*rows)]


def _not_too_long(file: ListFile, lines: list[str]) -> list[str]:
    for row, line in enumerate(lines):
        if len(line) > _LONGEST:
            file.refuse(f"is longer than {_LONGEST} characters", row)
    return lines


# -- lines ----------------------------------------------------------------------------------------------


def _of_lines(file: ListFile, text: str) -> Columns:
    lines = [line.strip(" \f\v") for line in re.split(r"\r\n|\n|\r", text.rstrip())]
    numbered = [(i, line) for i, line in enumerate(lines, 1) if not line.startswith(("#", "//"))]
    empty = [str(number) for number, line in numbered if not line.strip()]
    file.places = [f"line {number}" for number, line in numbered if line.strip()]
    file.shown = kept = [line for _, line in numbered if line.strip()]
    _not_too_long(file, kept)
    if not kept:
        raise ValueError(f"{file.path}: holds no {'word' if file.words else 'class name'}")
    if empty and not file.words:
        raise ValueError(
            f"{file.path}: line(s) {', '.join(empty)} are empty; line i names label i, so none may be"
        )
    titled = _titled(file, kept)
    if titled is not None:
        return titled
    if all(re.match(r"[-*]\s+\S", line) for line in kept):
        kept = [line[1:].strip() for line in kept]  # a list in YAML or Markdown
    # entries of a list in code end with a comma
    bare = [line[:-1].rstrip() if line.endswith((",", ";")) else line for line in kept]
    columns, rest = peeled(file, bare, strict=True)
    if not any(rest):
        return columns
    if all(map(_PLACES.fullmatch, rest)):
        rest = [_PLACES.sub(r"\1", name).replace("/", " ") for name in rest]
    separators = "\t,;" if file.path.suffix in (".csv", ".tsv") else "\t"
    for row, name in enumerate(rest):
        if any(sign in name for sign in separators) and _unquoted(name) == name:
            file.refuse("has several columns, and no header says which is the name", row)
    return [*columns, ("", rest)]


def _titled(file: ListFile, lines: list[str]) -> Columns | None:
    """The columns of a table with a header, or None where the first line is none."""
    for delimiter in "\t,;":
        try:
            cells = next(csv.reader(lines[:1], delimiter=delimiter))
        except csv.Error as error:  # before Python 3.11 of a NUL
            raise ValueError(f"{file.path}: no list of names, {error}") from error
        titles = [_title(cell) for cell in cells]
        alone = len(titles) == 1 and file.path.suffix in (".csv", ".tsv")
        known = [title in _TITLES for title in titles]
        data = any(re.fullmatch(rf"{WNID}|{NUMBER}", cell.strip()) for cell in cells)
        if data or not (any(known) if len(titles) > 1 else alone and all(known)):
            continue
        if len(set(titles)) < len(titles):
            file.refuse("names two columns alike", 0)
        try:
            rows = list(csv.reader(lines[1:], delimiter=delimiter, strict=True))
        except csv.Error as error:
            raise ValueError(f"{file.path}: not CSV, {error}") from error
        for row, found in enumerate(rows, 1):
            if len(found) != len(titles):
                said = f"has {len(found)} cells, the header {len(titles)}; put names in quotes"
                file.refuse(said, min(row, len(lines) - 1))  # a row may be several lines
        if not rows:
            file.refuse("is a header, and nothing follows", 0)
        file.places, file.shown = file.places[1:], file.shown[1:]
        table = zip(*([cell.strip() for cell in row] for row in rows))
        return [(title, list(column)) for title, column in zip(titles, table)]
    if _title(lines[0]) in _TITLES_ALONE and len(lines) > 1:
        file.refuse("looks like a header; remove the line, or call the file .csv", 0)
    return None


# -- columns to names -----------------------------------------------------------------------------------


def _assembled(file: ListFile, columns: Columns) -> Names:
    index = wnids = kinds = None
    texts: Columns = []
    for title, cells in columns:
        values = [value.strip() for value in cells]
        alone, of_kinds = len(columns) == 1, all(value.lower() in _KINDS for value in values)
        if all(re.fullmatch(WNID, value) for value in values):
            wnids = values if wnids is None else wnids
        elif file.words and title in ("", "kind", "pos") and of_kinds:
            kinds = [_KINDS[value.lower()] for value in values]
        elif alone or not all(re.fullmatch(NUMBER, value) for value in values):
            texts.append((title, [" ".join(_unquoted(value).split()) for value in values]))
        elif file.words:
            continue  # scores
        elif all(re.fullmatch(r"[0-9]{1,18}", value) for value in values):
            if is_index(values):
                order = [int(value) - min(map(int, values)) for value in values]
                if index is not None and index != order:
                    file.refuse("two columns hold numbers of labels, and they differ", 0)
                index = order
            elif title in ("", *_INDEX_TITLES, *_NAME_TITLES):
                of = f" of the column {title}" if title else ""
                file.refuse(f"the numbers{of} are not 0..C-1 or 1..C, so they are no labels", 0)
        elif not title:
            file.refuse("has a number that is no label", 0)
    names = _chosen(file, texts)
    if names is not None:
        _refuse_strange(file, names)
    elif wnids is None:
        file.refuse("holds numbers alone, no name", 0)
    rows = list(range(len(columns[0][1])))
    if index is not None:
        rows.sort(key=lambda row: index[row])

    def ordered(values: list[str] | None) -> tuple[str, ...] | None:
        return None if values is None else tuple(values[row] for row in rows)

    return Names(ordered(names), ordered(wnids), ordered(kinds))


def _chosen(file: ListFile, texts: Columns) -> list[str] | None:
    """The column of names."""
    if len(texts) > 1:
        texts = [column for title in _NAME_TITLES for column in texts if column[0] == title] or texts
        if texts[0][0] not in _NAME_TITLES:
            titles = ", ".join(title or "without a title" for title, _ in texts)[:200]
            file.refuse(f"has several columns of text ({titles}); call the one of the names 'name'", 0)
    return texts[0][1] if texts else None


def _refuse_strange(file: ListFile, names: list[str]) -> None:
    if len(file.places) != len(names):  # cells of several lines
        file.places = [f"row {row}" for row in range(len(names))]
        file.shown = names
    for row, name in enumerate(names):
        if not name:
            file.refuse(f"empty class name for label(s) {row}" if not file.words else "empty word", row)
        if _STRANGE.search(name) or name.count('"') % 2 or harmless(name) != name:
            file.refuse("is no name", row)
    if all(re.fullmatch(NUMBER, name) for name in names):
        file.refuse("holds numbers alone, no name", 0)
    if len(names) > 1 and all(re.search(r"(\s[0-9]+){2}$", name) for name in names):
        file.refuse("every line ends in several numbers, and no header says what they are", 0)


def _title(cell: str) -> str:
    return cell.strip().strip("\"'").strip().lower().replace(" ", "_").replace("-", "_")


def _unquoted(text: str) -> str:
    for quote in "\"'":
        if len(text) > 1 and text[0] == text[-1] == quote:
            return text[1:-1].replace(quote * 2, quote)
    return text
