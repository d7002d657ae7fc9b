"""Where a run comes from: versions, settings, hashes."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from adaneg_openood._version import __version__
from adaneg_openood.data.feature_set import named_tensors
from adaneg_openood.evaluation import FeatureSet
from adaneg_openood.evaluation.provenance import settings_of
from adaneg_openood.evaluation.streams import Detector
from adaneg_openood.io.digests import file_digest, tensor_bytes

_PACKAGES = ("torch", "numpy", "scikit-learn", "pandas", "matplotlib", "openood", "open_clip_torch")


def describe_run(
    data: FeatureSet,
    detectors: Mapping[str, Detector],
    features: str | os.PathLike[str] | None,
    device: torch.device | str | None,
) -> dict[str, Any]:
    """Versions, methods' settings and the features' shapes and hashes, as plain values.

    Args:
        data: the features.
        detectors: by method name.
        features: file or folder they were read from; None if they were not.
        device: where it ran.
    """
    versions = {"adaneg_openood": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    sets = {**data.near, **data.far}
    return {
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions,
        "platform": platform.platform(),
        "device": str(device or "cpu"),
        "features": {
            "read from": "memory" if features is None else str(features),
            "files": _file_hashes(features),
            "content sha256": content_hash(data),
            "text rows": f"{data.n_id} ID + {len(data.text_features) - data.n_id} negative",
            "width": int(data.text_features.shape[1]),
            "dtype": str(data.id_features.dtype).removeprefix("torch."),
            "logit scale": float(data.logit_scale),
            "ID images": len(data.id_features),
            "OOD images": {name: len(part) for name, part in sets.items()},
        },
        "methods": {name: settings_of(detector) for name, detector in detectors.items()},
    }


def content_hash(data: FeatureSet) -> str:
    """SHA-256 over every tensor of the features, whatever file they lie in."""
    digest = hashlib.sha256()
    for name, part in named_tensors(data):
        digest.update(f"{name} {part.dtype} {tuple(part.shape)}\n".encode())
        digest.update(tensor_bytes(part))
    return digest.hexdigest()


def _file_hashes(features: str | os.PathLike[str] | None) -> dict[str, str]:
    if features is None or not Path(features).exists():
        return {}
    root = Path(features)
    files = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
    base = root.parent if root.is_file() else root
    return {path.relative_to(base).as_posix(): file_digest(path) for path in files}
