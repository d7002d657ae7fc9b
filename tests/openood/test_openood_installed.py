"""What counts as OpenOOD being installed."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from adaneg_openood.openood import compat


def test_a_plain_folder_called_openood_is_not_openood(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "openood"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert not compat.installed()
    (tmp_path / "openood").mkdir()
    importlib.invalidate_caches()
    assert not compat.installed()
    (tmp_path / "openood" / "__init__.py").touch()
    importlib.invalidate_caches()
    assert compat.installed()
