"""Made once for all tests of commands; nobody writes into it."""

from __future__ import annotations

import pytest
from fault_commands import write_trial, write_world


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Images, words, features and a saved run."""
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def trial(world):
    """The benchmark in OpenOOD's layout, in that folder."""
    pytest.importorskip("openood.evaluation_api", reason="OpenOOD is not installed")
    write_trial(world)
