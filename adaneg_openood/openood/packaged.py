"""What this package brings for OpenOOD, beside its methods."""

from __future__ import annotations

from pathlib import Path

NETWORK = "adaneg_clip"
EVALUATOR = "adaneg"


def packaged_config(kind: str, name: str) -> Path:
    """A YAML of this package: ``kind`` is "postprocessors" or "networks".

    Raises:
        FileNotFoundError: the installation lacks it.
    """
    package = Path(__file__).resolve().parents[1]
    # in the wheel the folder lies inside the package, in a checkout beside it
    places = [root / "configs" / kind / f"{name}.yml" for root in (package, package.parent)]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f"this installation lacks {kind}/{name}.yml; looked at {places}")
