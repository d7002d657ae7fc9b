"""What is published: the packages of the wheel, the version, and the Pythons that are tested."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import yaml
from setuptools import find_packages

from adaneg_openood import __version__

ROOT = Path(__file__).parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")


def test_every_package_is_listed():
    listed = SETUP["options"]["packages"].split()
    found = find_packages(str(ROOT), include=["adaneg_openood*"])
    assert sorted(listed) == sorted([*found, "adaneg_openood.configs"])


def test_the_version_is_the_same_everywhere():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    newest = re.search(r"^## (\S+) \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert newest and newest.groups() == (__version__, str(cited["date-released"]))
    assert str(cited["version"]) == __version__
    assert SETUP["metadata"]["version"] == "attr: adaneg_openood._version.__version__"


def test_the_workflow_runs_the_pythons_that_are_stated():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text("utf-8"))
    tested = workflow["jobs"]["suite"]["strategy"]["matrix"]["python"]
    stated = re.findall(r":: (3\.\d+)$", SETUP["metadata"]["classifiers"], re.M)
    assert tested == stated and SETUP["options"]["python_requires"] == f">={stated[0]}"
    readme = re.findall(r"^    (pip install -e .*)$", (ROOT / "README.md").read_text("utf-8"), re.M)
    assert [step["run"] for step in workflow["jobs"]["suite"]["steps"] if "run" in step][:2] == readme[
        :2
    ]
