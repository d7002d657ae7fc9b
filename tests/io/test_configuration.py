"""Settings from YAML: what is read, and what a mistake is told."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Optional

import pytest
from pydantic import Field

from adaneg_openood.io.checks import shown
from adaneg_openood.io.configuration import Number, Section, Whole, checked, read_yaml


class Inner(Section):
    limit: Whole = Field(3, ge=1)
    order: Literal["mixed", "id_first"] = "mixed"


class Outer(Section):
    former_names = {"amount": "share"}
    share: Optional[Number] = Field(None, gt=0, le=1)
    parts: dict[str, Inner] = {}
    fetch: bool = False
    name: str = "x"


def test_empty_values_leave_the_default_and_text_spells_numbers() -> None:
    made = checked(Outer, {"share": "1e-1", "fetch": "yes", "name": "", "parts": None}, "a.yml")
    assert made == Outer(share=0.1, fetch=True)
    assert checked(Inner, {"limit": "7"}, "a.yml").limit == 7


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"parts": {"a": {"limt": 1}}}, "a.yml: parts.a: unknown key 'limt'; did you mean 'limit'?"),
        ({"parts": {"a": {"limit": 0}}}, "a.yml: parts.a.limit must be at least 1, got 0"),
        ({"parts": {"a": {"limit": 1.5}}}, "parts.a.limit must be a whole number, got 1.5"),
        ({"parts": {"a": {"limit": True}}}, "parts.a.limit must be a number, got True"),
        ({"parts": {"a": {"order": "mixt"}}}, "'mixed', 'id_first', got 'mixt'; did you mean 'mixed'?"),
        ({"parts": {"a": 3}}, "parts.a must be a mapping, key: value, got 3"),
        ({"parts": {7: {}}}, "parts.7"),
        ({"share": 0}, "share must be above 0, got 0"),
        ({"share": "nan"}, "share must be a finite number, got 'nan'"),
        ({"amount": 1}, "unknown key 'amount'; it is now called share"),
        ({"fetch": "maybe"}, "fetch must be true or false, got 'maybe'"),
        ({"name": 3}, "name must be text, got 3"),
        ({3: 1}, "key 3 must be text; put it in quotes"),
        ([1], "a.yml: must be a mapping"),
    ],
)
def test_mistakes_name_file_key_value_and_what_is_allowed(values: object, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        checked(Outer, values, "a.yml")
    assert message in str(caught.value) and str(caught.value).startswith("a.yml: ")


def test_every_fault_has_its_line() -> None:
    with pytest.raises(ValueError) as caught:
        checked(Outer, {"share": 2, "fetch": 3, "parts": {"a": {"limit": -1}}}, "a.yml")
    assert str(caught.value).splitlines() == [
        "a.yml: 3 faults",
        "  share must be at most 1, got 2",
        "  parts.a.limit must be at least 1, got -1",
        "  fetch must be true or false, got 3",
    ]


def test_values_are_shown_shortened() -> None:
    assert len(shown("a" * 10_000)) <= 60 and len(shown([list(range(99))] * 99)) <= 60


def test_yaml_with_a_key_twice_or_with_objects_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.yml"
    for text, message in (
        ("a: 1\nb: {c: 1, c: 2}\n", "line 2: key 'c' is there twice"),
        ("a: [1\n", "not YAML"),
        ("a: !!python/object/apply:os.getcwd []\n", "not YAML"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_yaml(file)
    file.write_text("x: &x {a: 1}\nb: {<<: *x, c: 2}\n")
    assert read_yaml(file)["b"] == {"a": 1, "c": 2}
