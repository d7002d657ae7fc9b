"""What a check found, item by item, and how it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """One thing that a benchmark needs.

    Attributes:
        what: such as ``"near/tin"`` or ``"negatives"``.
        ok: whether it is there and right; None for a warning.
        found: what was found or is wrong.
        mend: where to get it, and how large it is.
    """

    what: str
    ok: bool | None
    found: str
    mend: str = ""


def missing(items: Sequence[Item]) -> list[Item]:
    """Those that keep the work from being done."""
    return [item for item in items if item.ok is False]


def to_text(items: Sequence[Item]) -> str:
    """The items, for a screen."""
    marks = {True: "ok", False: "--", None: "  "}
    width = max((len(item.what) for item in items), default=0)
    lines = []
    for item in items:
        lines.append(f"{marks[item.ok]} {item.what:<{width}}  {item.found}")
        if item.mend and item.ok is not True:
            lines.append(f"   {'':<{width}}  to mend: {item.mend}")
    n_missing = len(missing(items))
    lines.append(f"\n{n_missing} part(s) missing or wrong." if n_missing else "\nNothing is missing.")
    return "\n".join(lines)


def readable_bytes(n: float) -> str:
    """Such as ``"1.5 GB"``.

    Example:
        >>> readable_bytes(1_500_000_000)
        '1.5 GB'
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n:.0f} B"
