"""What a setting may be, said in one place: the parameter, its value, and what is allowed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raise a ValueError that lists what is allowed and suggests the nearest, unless value is in it."""
    if value not in allowed:
        listed = ", ".join(map(repr, allowed))
        raise ValueError(f"{name} must be one of {listed}, got {value!r}{_hint(value, allowed)}")


def check_known(what: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Raise a ValueError that names the first name which is not known, and the nearest that is."""
    for name in given:
        if name not in known:
            listed = ", ".join(known) if known else "none"
            raise ValueError(f"{what}: unknown setting {name!r}{_hint(name, known)}; known are {listed}")


def check_int(name: str, value: object, least: int = 1) -> None:
    """Raise unless value is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_number(name: str, value: object, least: float = 0.0, most: float = math.inf) -> None:
    """Raise unless value is a finite number in [least, most]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not (math.isfinite(value) and least <= value <= most):
        allowed = f"finite and at least {least:g}" if most == math.inf else f"in [{least:g}, {most:g}]"
        raise ValueError(f"{name} must be {allowed}, got {value}")


def check_positive(name: str, value: object) -> None:
    """Raise unless value is a finite number above 0."""
    check_number(name, value, -math.inf)
    if not value > 0:  # type: ignore[operator]
        raise ValueError(f"{name} must be finite and above 0, got {value}")


def check_flag(name: str, value: object) -> None:
    """Raise unless value is true or false."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be true or false, got {value!r}")


def _hint(value: object, allowed: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(value), allowed, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
