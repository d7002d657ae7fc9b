"""OpenOOD's YAML of a postprocessor: OpenOOD's outer shape, and the settings of everywhere inside."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pydantic

from adaneg_openood.benchmark.methods import read_settings, settings_model
from adaneg_openood.benchmark.settings import (
    LabelSettings,
    NameSettings,
    StorageSettings,
    StreamSettings,
)
from adaneg_openood.detectors import DETECTORS
from adaneg_openood.io.checks import not_allowed, shown, unknown_key
from adaneg_openood.io.configuration import Section, Whole, checked


class PostprocessorSection(Section):
    """OpenOOD's outer shape; settings belong under ``postprocessor_args``."""

    name: str = ""
    APS_mode: bool = False
    postprocessor_args: dict[str, Any] = {}
    postprocessor_sweep: dict[str, Any] = {}


class OneStreamSettings(StreamSettings):
    """The stream that OpenOOD's evaluator sees: one order of the images."""

    seed: Whole = pydantic.Field(0, ge=0, description="Seed of the stream order.")


@dataclass(frozen=True)
class PostprocessorFile:
    """What the ``postprocessor`` section of OpenOOD's configuration says.

    Attributes:
        settings: all settings, each with its value or default.
        sweep: what OpenOOD's parameter search tries: setting -> values.
        search: whether it searches (``APS_mode``).
    """

    settings: Section
    sweep: Mapping[str, list[Any]]
    search: bool


@functools.cache
def postprocessor_settings(detector: str) -> type[Section]:
    """The model of ``postprocessor_args``: settings of the detector, its labels and its stream."""
    info = DETECTORS[detector].info
    # a setting of the method goes before one of the labels with its name
    bases: list[type[Section]] = [settings_model(detector), StorageSettings]
    bases.append(LabelSettings if info.needs_negatives else NameSettings)
    if info.keeps_state:
        bases.append(OneStreamSettings)
    return pydantic.create_model(f"{info.title}Postprocessor", __base__=tuple(bases))


def detector_settings(detector: str, settings: Section) -> dict[str, Any]:
    """The part of a postprocessor's settings that ``make_detector`` takes."""
    own = {name: getattr(settings, name) for name in settings_model(detector).model_fields}
    return read_settings(detector, own)


def read_postprocessor(
    detector: str, section: Any, where: str, overrides: Mapping[str, Any] | None = None
) -> PostprocessorFile:
    """Check and complete the ``postprocessor`` section of OpenOOD's configuration.

    Args:
        detector: the method that is asked for.
        section: the mapping under ``postprocessor``; an empty value leaves a default.
        where: named in errors, such as the YAML's path.
        overrides: settings that go before those of the section.

    Raises:
        ValueError: another method's section, an unknown key or setting, or a value that is not allowed.
    """
    if not isinstance(section, Mapping):
        raise ValueError(
            f"{where}: holds no section postprocessor; write 'postprocessor: {{name: {detector}}}'"
        )
    outer = checked(PostprocessorSection, section, f"{where}: postprocessor")
    name = outer.name or detector
    if name != detector:
        raise ValueError(
            f"{where}: postprocessor.name is {shown(name)}, but this file was asked for {detector}; "
            f"write name: {detector}, or ask for {name}"
        )
    given = {**outer.postprocessor_args, **(overrides or {})}
    settings = _settings(detector, given, f"{where}: postprocessor_args")
    sweep = _sweep(detector, settings, outer.postprocessor_sweep, f"{where}: postprocessor_sweep")
    if outer.APS_mode and not sweep:
        raise ValueError(
            f"{where}: APS_mode is on, but postprocessor_sweep names nothing to search over; "
            "give lists, such as groups_list: [1, 5]"
        )
    return PostprocessorFile(settings, sweep, outer.APS_mode)


def check_postprocessor_name(name: str, known: Iterable[str]) -> None:
    """Refuse a postprocessor that neither OpenOOD nor this package has.

    Raises:
        ValueError: naming those there are, and the nearest.
    """
    known = sorted(known)
    if name not in known:
        raise ValueError(f"postprocessor {not_allowed(name, known)}")


def _settings(detector: str, given: Mapping[str, Any], where: str) -> Section:
    settings = checked(postprocessor_settings(detector), given, where)
    try:
        detector_settings(detector, settings)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from None
    return settings


def _sweep(
    detector: str, settings: Section, given: Mapping[str, Any], where: str
) -> dict[str, list[Any]]:
    """OpenOOD's YAMLs call a list of values ``gap_list`` or ``gap``; both are understood."""
    able = [*settings_model(detector).model_fields]
    if isinstance(settings, OneStreamSettings):
        able += OneStreamSettings.model_fields
    found: dict[str, list[Any]] = {}
    for key, values in given.items():
        if values is None:
            continue
        name = key.removesuffix("_list")
        if name not in able:
            if name in type(settings).model_fields:
                raise ValueError(f"{where}: {name} cannot be searched over; it changes the text rows")
            raise ValueError(f"{where}: {unknown_key(name, able)}")
        if not isinstance(values, (list, tuple)) or not values:
            raise ValueError(
                f"{where}.{key} must be a list with at least one value, got {shown(values)}"
            )
        found[name] = [getattr(_settings(detector, {name: one}, where), name) for one in values]
    return found
