"""Postprocessor settings out of OpenOOD's configuration, checked; nothing unknown is let through."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaneg_openood.detectors import AdaNegConfig
from adaneg_openood.io.configuration import read_yaml
from adaneg_openood.text.prompts import templates

PROTOCOLS = {"mixed": "mixed", "sequential": "id_first"}  # name -> evaluation.streams order


@dataclass(frozen=True)
class StreamSettings:
    """How images are put before a detector that remembers them.

    Args:
        protocol: ``"mixed"`` (the paper's: ID and OOD images shuffled, one stream an OOD set) or
            ``"sequential"`` (all ID images first, as OpenOOD does with its own methods).
        batch_size: images a batch of the stream; OpenOOD's batch size only matters for encoding.
        seed: seed of the shuffle.
    """

    protocol: str = "mixed"
    batch_size: int = 256
    seed: int = 0


@dataclass(frozen=True)
class LabelSettings:
    """Where text features come from; an empty string stands for "not given".

    Args:
        negatives: text file of negative labels: what ``adaneg-openood mine`` writes, or one word a line.
        candidates: word list, or a folder of them, to mine negatives from; by default WordNet is mined.
        n_negatives: M, how many are mined.
        percentile: of a candidate's cosines to the ID names that it is judged by.
        template: prompt of ID names and nouns, see :func:`adaneg_openood.text.templates`.
        adjective_template: prompt of adjectives.
        class_names: text file of ID names, one a line, or a benchmark's name such as imagenet, for a
            network that does not know them.
        text_features: ``.pt`` or ``.safetensors`` file of (C + M, D) text features, ID rows first;
            then no text tower is needed.
        logit_scale: s; 0 asks the network.
        cache_dir: where text features are kept.
        skip_broken: leave out images that cannot be read, instead of stopping.
    """

    negatives: str = ""
    candidates: str = ""
    n_negatives: int = 10_000
    percentile: float = 0.95
    template: str = "The nice {}."
    adjective_template: str = "This is a {} photo."
    class_names: str = ""
    text_features: str = ""
    logit_scale: float = 0.0
    cache_dir: str = ""
    skip_broken: bool = False


@dataclass(frozen=True)
class GroupSettings:
    """NegLabel's own."""

    groups: int = 5
    permute: bool = True


@dataclass(frozen=True)
class TemperatureSettings:
    """MCM's own: ``tau`` divides cosines."""

    tau: float = 1.0


@dataclass(frozen=True)
class ReleasedSetting:
    """``released``: reproduce the released implementation, see ``AdaNegConfig.released``."""

    released: bool = False


METHOD_SETTINGS: dict[str, tuple[type, ...]] = {
    "adaneg": (AdaNegConfig, ReleasedSetting, StreamSettings, LabelSettings),
    "neglabel": (GroupSettings, LabelSettings),
    "mcm": (TemperatureSettings, LabelSettings),
}


def defaults(method: str) -> dict[str, Any]:
    """All settings of a method with their defaults."""
    return {
        field.name: field.default
        for group in METHOD_SETTINGS[method]
        for field in dataclasses.fields(group)
    }


def scoring_names(method: str) -> list[str]:
    """The settings that scores depend on, beside those that make the text features."""
    fixed = {field.name for field in dataclasses.fields(LabelSettings)}
    return [name for name in defaults(method) if name not in fixed]


def read_settings(method: str, given: Mapping[str, Any] | None, where: str) -> dict[str, Any]:
    """Check and complete settings that come from YAML or a command line.

    Args:
        method: ``"adaneg"``, ``"neglabel"`` or ``"mcm"``.
        given: name -> value; None and an empty string leave the default.
        where: named in errors, such as the YAML's path.

    Returns:
        Every setting of the method, of its proper type.

    Raises:
        ValueError: an unknown name (the nearest known one is suggested), or a value that is no such
            thing. Text is converted, because YAML reads ``1e-8`` as text.
    """
    allowed = defaults(method)
    given = dict(given or {})
    unknown = [name for name in given if name not in allowed]
    if unknown:
        said = "; ".join(unknown_message("setting", name, allowed) for name in unknown)
        raise ValueError(f"{where}: {said}")
    settings = dict(allowed)
    for name, value in given.items():
        if value is not None and value != "":
            settings[name] = convert(name, value, allowed[name], where)
    check_values(settings, where)
    return settings


def check_values(settings: Mapping[str, Any], where: str) -> None:
    """Raise a ValueError, naming ``where``, unless every value is allowed."""
    try:
        if "gamma" in settings:
            adaneg_config(settings)
        if "protocol" in settings and settings["protocol"] not in PROTOCOLS:
            allowed = ", ".join(map(repr, PROTOCOLS))
            raise ValueError(f"protocol must be one of {allowed}, got {settings['protocol']!r}")
        for name, least in (("batch_size", 1), ("seed", 0), ("groups", 1), ("n_negatives", 1)):
            if name in settings and settings[name] < least:
                raise ValueError(f"{name} must be at least {least}, got {settings[name]}")
        if "tau" in settings and not (math.isfinite(settings["tau"]) and settings["tau"] > 0):
            raise ValueError(f"tau must be finite and above 0, got {settings['tau']}")
        if not 0.0 <= settings["percentile"] <= 1.0:
            raise ValueError(f"percentile must be in [0, 1], got {settings['percentile']}")
        scale = settings["logit_scale"]
        if not (math.isfinite(scale) and scale >= 0):
            raise ValueError(
                f"logit_scale must be finite and at least 0 (0: the network's), got {scale}"
            )
        for name in ("template", "adjective_template"):
            try:
                templates(settings[name])
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from None


def adaneg_config(settings: Mapping[str, Any]) -> AdaNegConfig:
    """The detector's part of the settings."""
    names = [field.name for field in dataclasses.fields(AdaNegConfig)]
    chosen = {name: settings[name] for name in names}
    return AdaNegConfig.released(**chosen) if settings["released"] else AdaNegConfig(**chosen)


def convert(name: str, value: Any, default: Any, where: str) -> Any:
    """``value`` as the type of ``default``, or a ValueError that says what was expected."""
    if isinstance(default, bool):
        if isinstance(value, bool):
            return value
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if str(value).strip().lower() in words:
            return words[str(value).strip().lower()]
        raise ValueError(f"{where}: {name} must be true or false, got {value!r}")
    if isinstance(default, (int, float)):
        what = "an integer" if isinstance(default, int) else "a number"
        try:
            if isinstance(value, bool):
                raise ValueError
            number = float(value)
            if isinstance(default, int):
                if number != int(number):
                    raise ValueError
                return int(number)
            return number
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{where}: {name} must be {what}, got {value!r}") from None
    if isinstance(value, (list, dict, bool)):
        raise ValueError(f"{where}: {name} must be text, got {value!r}")
    return str(value)


def read_sweep(method: str, given: Mapping[str, Any] | None, where: str) -> dict[str, list[Any]]:
    """The values to search over, by setting name, in the order given.

    OpenOOD's YAMLs call them ``gap_list`` or ``gap``; both are understood.

    Raises:
        ValueError: an unknown name, something other than a list with values, or a value not allowed.
    """
    allowed = defaults(method)
    sweep: dict[str, list[Any]] = {}
    for key, values in dict(given or {}).items():
        if values is None:
            continue
        name = key[: -len("_list")] if key.endswith("_list") else key
        if name not in allowed:
            raise ValueError(f"{where}: {unknown_message('setting', name, allowed)}")
        if name not in scoring_names(method):
            raise ValueError(f"{where}: {name} cannot be searched over; it changes the text features")
        if not isinstance(values, (list, tuple)) or not values:
            raise ValueError(f"{where}: {key} must be a list with at least one value, got {values!r}")
        sweep[name] = [convert(name, value, allowed[name], where) for value in values]
        for value in sweep[name]:
            check_values({**allowed, name: value}, where)
    return sweep


def fingerprint(config: Mapping[str, Any]) -> str:
    """Text that two configurations share only if they say the same."""
    return json.dumps(config, sort_keys=True, default=str)


def read_section(path: Path, name: str) -> dict[str, Any]:
    """The ``postprocessor:`` section of a YAML.

    Raises:
        ValueError: the file holds none, or one of another method than ``name``.
    """
    content = read_yaml(path)
    section = content.get("postprocessor") if isinstance(content, dict) else None
    if not isinstance(section, dict):
        raise ValueError(
            f"{path}: there is no section 'postprocessor:' with 'name: {name}' and 'postprocessor_args:'"
            + ("; the file is empty" if content is None else "")
        )
    if section.get("name", name) != name:
        raise ValueError(
            f"{path}: name is {section['name']!r}, but the file is read for {name!r}; correct the name, "
            f"or ask for {section['name']!r}"
        )
    return section


def unknown_message(what: str, name: str, allowed: Iterable[str]) -> str:
    """What is said of a name that is none of ``allowed``."""
    allowed = [str(known) for known in allowed]
    near = difflib.get_close_matches(str(name), allowed, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(allowed)}"
    return f"unknown {what} {name!r}, {hint}"
