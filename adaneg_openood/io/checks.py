"""What a setting may be, said in one place: the parameter, its value, and what is allowed."""

from __future__ import annotations

import difflib
import importlib.util
import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raise a ValueError that lists what is allowed and suggests the nearest, unless value is in it."""
    if value not in allowed:
        raise ValueError(f"{name} {not_allowed(value, allowed)}")


def check_known(what: str, given: Iterable[str], known: Sequence[str], kind: str = "setting") -> None:
    """Raise a ValueError that names the first name which is not known, and the nearest that is."""
    for name in given:
        if name not in known:
            listed = ", ".join(known) if known else "none"
            raise ValueError(f"{what}: unknown {kind} {name!r}{hint(name, known)}; known are {listed}")


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


def not_allowed(value: Any, allowed: Iterable[str]) -> str:
    """What to say of a value that is not one of those allowed.

    Example:
        >>> not_allowed("mixt", ["mixed", "id_first"])
        "must be one of 'mixed', 'id_first', got 'mixt'; did you mean 'mixed'?"
    """
    allowed = list(allowed)
    listed = ", ".join(map(repr, allowed))
    return f"must be one of {listed}, got {shown(value)}{hint(value, allowed)}"


def unknown_key(key: str, known: Iterable[str], former: Mapping[str, str] | None = None) -> str:
    """What to say of a key that means nothing; ``former`` has names of earlier versions.

    Example:
        >>> unknown_key("gama", ["gamma", "gap"])
        "unknown key 'gama'; did you mean 'gamma'? Known are gamma, gap"
    """
    known = list(known)
    if former and key in former:
        return f"unknown key {shown(key)}; it is now called {former[key]}"
    return f"unknown key {shown(key)}{hint(key, known) or '.'} Known are {', '.join(known)}"


def shown(value: Any) -> str:
    """A value for a message, at most 60 characters of it."""
    # not repr: a few lines of YAML aliases stand for gigabytes of it
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    text = short.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def hint(value: object, allowed: Iterable[str]) -> str:
    """``"; did you mean 'mixed'?"``, where something that is allowed is near; else nothing."""
    near = difflib.get_close_matches(str(value)[:80], list(allowed), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def is_installed(module: str) -> bool:
    """Whether a module can be imported; it is not."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that a submodule is in
        return False
    except ValueError:  # loaded without a spec, by hand
        return True
