"""Names from strangers' files, made harmless for where they are printed, and lists of names."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

# what moves a cursor, colours a screen, ends a line, hides or turns text round, or is half a character
_INVISIBLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff]"
)
_MARKDOWN = re.compile(r"[\\`*_{}\[\]()#+!|~]")
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{sign: f"\\{sign}" for sign in "{}$&#_%"},
}
PLACES = ("terminal", "csv", "markdown", "latex", "html")


def harmless(text: object, place: str = "terminal") -> str:
    r"""A name as it may be shown: what it holds is seen, and does nothing.

    Args:
        text: the name, or anything whose ``str`` is one.
        place: ``"terminal"`` (and logs), ``"csv"``, ``"markdown"``, ``"latex"`` or ``"html"``.

    Raises:
        ValueError: unknown place.

    Example:
        >>> harmless("red\x1b[2J\nfox")
        'red\\x1b[2J\\x0afox'
        >>> harmless("=1+1", "csv"), harmless("a|b", "markdown"), harmless("<b>", "html")
        ("'=1+1", 'a\\|b', '&lt;b&gt;')
    """
    if place not in PLACES:
        raise ValueError(f"place must be one of {', '.join(map(repr, PLACES))}, got {place!r}")
    shown = _INVISIBLE.sub(lambda sign: _escaped(sign.group()), str(text))
    if place == "csv" and shown.lstrip().startswith(("=", "+", "-", "@")):
        return f"'{shown}"  # spreadsheets take what begins so for a formula
    if place == "markdown":
        return _MARKDOWN.sub(r"\\\g<0>", html.escape(shown, quote=False))
    if place == "latex":
        return "".join(_LATEX.get(sign, sign) for sign in shown)
    return html.escape(shown) if place == "html" else shown


def listed(parts: Iterable[object], most: int = 8) -> str:
    """The first few of some things, joined by commas, with dots where there are more."""
    shown = [str(part) for part in parts]
    return ", ".join(shown[:most]) + (", ..." if len(shown) > most else "")


def harmless_lines(text: str) -> str:
    """Text of several lines, such as a table or a message, as a terminal may show it."""
    return "\n".join(map(harmless, text.split("\n")))


def harmless_table(frame: pd.DataFrame) -> pd.DataFrame:
    """A copy whose texts a spreadsheet takes for texts; numbers and gaps stay as they are."""

    def shown(value: object) -> object:
        return harmless(value, "csv") if isinstance(value, str) else value

    words = frame.columns.difference(frame.select_dtypes(["number", "bool"]).columns)
    return frame.assign(**{column: frame[column].map(shown) for column in words})


def _escaped(sign: str) -> str:
    return f"\\x{ord(sign):02x}" if ord(sign) < 256 else f"\\u{ord(sign):04x}"
