"""OpenOOD's YAML of a postprocessor, read by the one schema."""

from __future__ import annotations

import pytest

from adaneg_openood.benchmark.postprocessor import (
    check_postprocessor_name,
    detector_settings,
    postprocessor_settings,
    read_postprocessor,
)
from adaneg_openood.benchmark.settings import LabelSettings, StorageSettings, read_seeds, shifted
from adaneg_openood.detectors import DETECTORS, default_settings


def read(section: object, detector: str = "adaneg", **overrides: object):  # type: ignore[no-untyped-def]
    return read_postprocessor(detector, section, f"{detector}.yml", overrides)


@pytest.mark.parametrize("detector", list(DETECTORS))
def test_defaults_are_the_detectors_own(detector: str) -> None:
    settings = read({"name": detector}, detector).settings
    own = {name: getattr(settings, name) for name in default_settings(detector)}
    assert own == default_settings(detector)
    info = DETECTORS[detector].info
    assert isinstance(settings, LabelSettings) == info.needs_negatives
    assert isinstance(settings, StorageSettings) and settings.cache is None
    assert ("batch_size" in postprocessor_settings(detector).model_fields) == info.keeps_state


def test_openoods_oddities_are_understood() -> None:
    made = read(
        {
            "APS_mode": "True",
            "postprocessor_args": {"gamma": "1e-1", "groups": "7", "negatives": "", "cache": None},
            "postprocessor_sweep": {"gap_list": [0, "2e-1"], "seed": [3, "4"]},
        },
        beta="2",
    )
    assert (made.settings.gamma, made.settings.groups, made.settings.beta) == (0.1, 7, 2.0)
    assert made.settings.negatives is None and made.settings.logit_scale is None
    assert made.search and made.sweep == {"gap": [0.0, 0.2], "seed": [3, 4]}


def test_released_settings_are_those_that_reproduce_results() -> None:
    made = read({"postprocessor_args": {"released": True, "adagap": True}})
    settings = detector_settings("adaneg", made.settings)
    assert settings["beta"] == 5 and settings["lam"] == 1.0 and "released" not in settings


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (None, "holds no section postprocessor; write 'postprocessor: {name: adaneg}'"),
        ({"name": "neglabel"}, "postprocessor.name is 'neglabel', but this file was asked for adaneg"),
        ({"gap": 0.5}, "unknown key 'gap'. Known are name, APS_mode"),
        ({"postprocessor_args": {"gama": 1}}, "unknown key 'gama'; did you mean 'gamma'?"),
        ({"postprocessor_args": {"template": "a {}"}}, "it is now called prompt"),
        ({"postprocessor_args": {"gamma": 3}}, "gamma must be in [0, 1], got 3"),
        ({"postprocessor_args": {"proxy": "tsk"}}, "did you mean 'task'?"),
        ({"postprocessor_args": {"order": "sequential"}}, "order must be one of 'mixed', 'id_first'"),
        ({"postprocessor_args": [3]}, "postprocessor_args must be a mapping"),
        ({"APS_mode": True}, "postprocessor_sweep names nothing to search over"),
        ({"APS_mode": "perhaps"}, "APS_mode must be true or false"),
        ({"postprocessor_sweep": {"gap": []}}, "must be a list with at least one value, got []"),
        ({"postprocessor_sweep": {"gap": [2]}}, "gap must be in [0, 1], got 2"),
        ({"postprocessor_sweep": {"prompt": ["a {}"]}}, "it changes the text rows"),
        ({"postprocessor_sweep": {"gpa_list": [1]}}, "unknown key 'gpa'; did you mean 'gap'?"),
    ],
)
def test_mistakes_are_named(section: object, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        read(section)
    assert message in str(caught.value) and "adaneg.yml" in str(caught.value)


def test_methods_without_negatives_take_no_settings_of_them() -> None:
    with pytest.raises(ValueError, match="unknown key 'negatives'"):
        read({"postprocessor_args": {"negatives": "list.txt"}}, "mcm")


def test_a_misspelt_postprocessor_is_named() -> None:
    check_postprocessor_name("adaneg", ["msp", "adaneg"])
    with pytest.raises(ValueError, match="got 'adneg'; did you mean 'adaneg'?"):
        check_postprocessor_name("adneg", ["msp", "adaneg"])


def test_seeds_as_a_list_a_number_or_text() -> None:
    assert read_seeds(3) == read_seeds("3") == (0, 1, 2) and read_seeds("4,7") == read_seeds([4, 7])
    assert shifted((0, 1, 2), 7) == (7, 8, 9) and shifted((4, 7), None) == (4, 7)
    with pytest.raises(ValueError, match=r"one by one \(\[3, 4\]\), and a first seed \(7\) too"):
        shifted((3, 4), 7)
    for wrong in (0, [], "0", [1, 1], True, "x", [1.5], -1, None):
        with pytest.raises(ValueError, match="distinct whole numbers"):
            read_seeds(wrong)
