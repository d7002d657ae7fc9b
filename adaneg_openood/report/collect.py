"""Running detectors over a benchmark and keeping every image's score."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adaneg_openood._version import __version__
from adaneg_openood.benchmark.methods import standard_detectors
from adaneg_openood.evaluation import FeatureSet, Protocol, replay
from adaneg_openood.evaluation.streams import Detector
from adaneg_openood.io.digests import file_digest
from adaneg_openood.report.negatives import nearest_negatives, negative_scores
from adaneg_openood.report.pictures import check_images, examples
from adaneg_openood.report.record import RunRecord

if TYPE_CHECKING:
    from adaneg_openood.data import ImageSet

_PACKAGES = ("torch", "numpy", "scikit-learn", "pandas", "matplotlib", "openood", "open_clip_torch")


def collect(
    data: FeatureSet,
    detectors: Mapping[str, Detector] | None = None,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    batch_size: int = 256,
    order: str = "mixed",
    device: torch.device | str | None = None,
    features: str | os.PathLike[str] | None = None,
    images: Mapping[str, ImageSet] | None = None,
    example_method: str | None = None,
    about: Mapping[str, Any] | None = None,
) -> RunRecord:
    """Score every stream, as :func:`adaneg_openood.evaluation.replay` does, and keep it all.

    Args:
        data: the features.
        detectors: by method name; None takes the standard ones.
        seeds: of the stream orders.
        batch_size: images per batch.
        order: ``"mixed"`` or ``"id_first"``.
        device: where it runs; None leaves everything where it is.
        features: file or folder the features were read from, for the provenance.
        images: ``"id"`` or an OOD set -> its images in the order of the features, for the pictures.
        example_method: whose verdicts are listed, and whose confidences and memory choose the pictures;
            None takes the first with a bank, or the first.
        about: more for the provenance, as JSON values.

    Raises:
        ValueError: settings out of range, or images that do not fit the features.
    """
    detectors = dict(standard_detectors(data) if detectors is None else detectors)
    if example_method is not None and example_method not in detectors:
        raise ValueError(
            f"no method {example_method!r} to choose examples by; there are {', '.join(detectors)}"
        )
    check_images(images or {}, data)
    with_bank = [name for name, one in detectors.items() if getattr(one, "bank", None) is not None]
    run = replay(
        data,
        detectors,
        Protocol(tuple(seeds), batch_size, order),
        device=device,
        progress=False,
        watch_bank=True,
        provenance=about or {},
    )
    record = RunRecord(
        run,
        _provenance(data, features, device),
        example_method or next(iter((*with_bank, *detectors))),
        names={part: tuple(map(str, given.names)) for part, given in (images or {}).items()},
        nearest=nearest_negatives(data, device=device),
        negative_scores=negative_scores(detectors),
    )
    found = examples(record, images, data, detectors, device) if images else ()
    return replace(record, examples=found)


def _provenance(
    data: FeatureSet, features: str | os.PathLike[str] | None, device: torch.device | str | None
) -> dict[str, Any]:
    """What the run itself does not tell: versions, and the files that the features were read from."""
    versions = {"adaneg_openood": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    files = {}
    if features is not None and Path(features).exists():
        root = Path(features)
        found = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
        base = root.parent if root.is_file() else root
        files = {path.relative_to(base).as_posix(): file_digest(path) for path in found}
    return {
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions,
        "platform": platform.platform(),
        "device": str(data.id_features.device if device is None else device),
        "features": {
            "read from": "memory" if features is None else str(features),
            "width": int(data.text_features.shape[1]),
            "dtype": str(data.id_features.dtype).removeprefix("torch."),
            "logit scale": float(data.logit_scale),
        },
        "files": files,
    }
