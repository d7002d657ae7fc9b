"""Settings from a file: every key is known, every value is of its kind, every error says where."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

_MISSING: Any = object()
_KINDS = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    dict: "a mapping, key: value",
    list: "a list",
}


class Fields:
    """Takes the keys of a mapping one by one; what nobody took is unknown.

    Args:
        values: the mapping as YAML gives it.
        where: file and place, for messages, such as ``"my.yml: near.digits"``.

    Raises:
        ValueError: ``values`` is no mapping, or a key is not text.
    """

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, Mapping):
            raise ValueError(f"{where}: must be {_KINDS[dict]}, got {_shown(values)}")
        for key in values:
            if not isinstance(key, str):
                raise ValueError(f"{where}: key {key!r} must be text; put it in quotes")
        self.values, self.where = dict(values), where
        self._known: list[str] = []

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def at(self, key: str) -> str:
        """The place of a key, for messages."""
        return f"{self.where}{'.' if ': ' in self.where else ': '}{key}"

    def take(self, key: str, kind: type | None = None, default: Any = _MISSING) -> Any:
        """The value of a key; an empty one (``key:``) is as good as none.

        Raises:
            ValueError: not there and without default, or of another kind.
        """
        self._known.append(key)
        value = self.values.get(key)
        if value is None:
            if default is _MISSING:
                raise ValueError(f"{self.at(key)} is missing; it must be {_kind(kind)}")
            return default
        if kind is not None and not _is(value, kind):
            raise ValueError(f"{self.at(key)} must be {_kind(kind)}, got {_shown(value)}")
        return float(value) if kind is float else value

    def finish(self) -> None:
        """Refuse the keys that nobody took.

        Raises:
            ValueError: naming each, with the nearest known one.
        """
        unknown = [key for key in self.values if key not in self._known]
        if unknown:
            raise ValueError(f"{self.where}: {unknown_key(unknown[0], self._known)}")


def unknown_key(key: str, known: Sequence[str]) -> str:
    """What to say of a key that means nothing.

    Example:
        >>> unknown_key("gama", ["gamma", "gap"])
        "unknown key 'gama'; did you mean 'gamma'? Known are gamma, gap"
    """
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown key {key!r}{hint} Known are {', '.join(known)}"


def _is(value: Any, kind: type) -> bool:
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if kind is float else kind)


def _kind(kind: type | None) -> str:
    return "given" if kind is None else _KINDS[kind]


def _shown(value: Any) -> str:
    # not repr: a few lines of YAML aliases stand for gigabytes of it
    shown = reprlib.Repr()
    shown.maxstring = shown.maxother = shown.maxlong = 60
    text = shown.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
