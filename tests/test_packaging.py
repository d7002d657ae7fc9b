"""What the wheel holds."""

from __future__ import annotations

import configparser
from pathlib import Path

from setuptools import find_packages

ROOT = Path(__file__).parents[1]


def test_every_package_is_listed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = setup["options"]["packages"].split()
    found = find_packages(str(ROOT), include=["adaneg_openood*"])
    assert sorted(listed) == sorted([*found, "adaneg_openood.configs"])
