"""OpenOOD's source folder, whose scripts and configurations are not part of what pip installs."""

from __future__ import annotations

import importlib.metadata
import json
import os
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest


def checkout() -> Path | None:
    """Where it is: OPENOOD_SOURCE, what pip was given, or nowhere."""
    named = os.environ.get("OPENOOD_SOURCE")
    places = [Path(named)] if named else []
    record = importlib.metadata.distribution("openood").read_text("direct_url.json")
    if record:
        places.append(Path(unquote(urlparse(json.loads(record)["url"]).path)))
    return next((place for place in places if (place / "main.py").is_file()), None)


needs_checkout = pytest.mark.skipif(
    checkout() is None, reason="no checkout of OpenOOD: set OPENOOD_SOURCE to its folder"
)
