"""Settings from YAML: every key is known, every value is of its kind, every error says where.

The models are pydantic's; this module adds what people meet: a YAML reader that refuses a key given
twice, and messages that name the file, the key, the value and what is allowed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import pydantic

from adaneg_openood.io.checks import not_allowed, shown, unknown_key

_Section = TypeVar("_Section", bound="Section")
_KINDS = {
    "bool": "true or false",
    "dict": "a mapping, key: value",
    "finite": "a finite number",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "model": "a mapping, key: value",
    "path": "a path",
    "string": "text",
}
_BOUNDS = {
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "below {lt:g}",
    "less_than_equal": "at most {le:g}",
}


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):  # Python counts true as 1
        raise ValueError(f"must be a number, got {value!r}")
    return value


Whole = Annotated[int, pydantic.BeforeValidator(_no_truth)]
Number = Annotated[float, pydantic.BeforeValidator(_no_truth), pydantic.Field(allow_inf_nan=False)]


class Section(pydantic.BaseModel):
    """A mapping of settings.

    A key without a value, and the empty text that stands for none in OpenOOD's files, leave the default.
    Text is read as the number or the truth value it spells, because YAML reads ``1e-8`` as text.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)
    former_names: ClassVar[Mapping[str, str]] = {}

    @pydantic.model_validator(mode="before")
    @classmethod
    def _only_known(cls, values: Any) -> dict[str, Any]:
        given = given_values(values)
        for key in given:
            if key not in cls.model_fields:
                raise ValueError(unknown_key(key, cls.model_fields, cls.former_names))
        return given


def given_values(values: Any) -> dict[str, Any]:
    """The keys of a mapping that have a value.

    Raises:
        ValueError: no mapping, or a key that is not text.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"must be {_KINDS['dict']}, got {shown(values)}")
    for key in values:
        if not isinstance(key, str):
            raise ValueError(f"key {shown(key)} must be text; put it in quotes")
        if isinstance(values[key], bytes):  # pydantic would read them as text
            raise ValueError(f"{key} must be text, got {shown(values[key])}")
    return {key: value for key, value in values.items() if value is not None and value != ""}


def checked(
    kind: type[_Section], values: Any, where: str, context: Mapping[str, Any] | None = None
) -> _Section:
    """Values as a section, or one ValueError that names every key at fault.

    Args:
        kind: the model.
        values: a mapping, as YAML gives it.
        where: the file or command that they come from, for messages.
        context: for validators, such as the folder that paths are relative to.
    """
    try:
        return kind.model_validate(values, context=dict(context or {}))
    except pydantic.ValidationError as error:
        raise ValueError(told(error, where)) from None


def told(error: pydantic.ValidationError, where: str) -> str:
    """A validation error for people: each fault in its own line; without ``where``, all in one."""
    faults = []
    for fault in error.errors(include_url=False):
        place = ".".join(str(part) for part in fault["loc"])
        said = _said(fault)
        joint = " " if said.startswith(("must ", "is ")) else ": "
        faults.append(f"{place}{joint}{said}" if place else said)
    if not where:
        return "; ".join(faults)
    if len(faults) == 1:
        return f"{where}: {faults[0]}"
    return f"{where}: {len(faults)} faults" + "".join(f"\n  {fault}" for fault in faults)


def _said(fault: Any) -> str:
    kind, about, value = fault["type"], fault.get("ctx", {}), fault["input"]
    if kind == "missing":
        return "is missing"
    if kind == "value_error":
        return str(about["error"])
    if kind == "literal_error":
        return not_allowed(value, re.findall(r"'([^']*)'", about["expected"]))
    wanted = _BOUNDS.get(kind, "").format(**about) or _KINDS.get(kind.partition("_")[0])
    return f"must be {wanted}, got {shown(value)}" if wanted else f"{fault['msg']}, got {shown(value)}"


def shipped(kind: str) -> dict[str, Path]:
    """Name -> YAML file of those that come with this package.

    Args:
        kind: ``"benchmarks"``, ``"networks"`` or ``"postprocessors"``.
    """
    package = Path(__file__).parents[1]
    # in the wheel the folder lies inside the package, in a checkout beside it
    places = [root / "configs" / kind for root in (package, package.parent)]
    return {path.stem: path for place in places for path in sorted(place.glob("*.yml"))}


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """What a YAML file holds, as Python values; nothing is executed.

    Raises:
        ValueError: not YAML, or a key given twice; the message names the file and the line.
        OSError: it cannot be read.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """safe_load that refuses a key given twice, of which YAML silently keeps the last."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[Any] = set()
            for key_node, _ in node.value:
                key = str(key_node.value)  # a list is a key, too, in YAML
                if key_node.tag != "tag:yaml.org,2002:merge" and key in seen:
                    line = key_node.start_mark.line + 1
                    raise ValueError(f"{path}, line {line}: key {key!r} is there twice; keep one")
                seen.add(key)
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(Path(path).read_text("utf-8-sig"), Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML, {error}") from error
    # what it says of dates that do not exist, of endless numbers and of a thousand brackets
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        text = str(error)
        raise ValueError(text if str(path) in text else f"{path}: not YAML, {text}") from error
