"""Running a target: its rows meet the streams, and published figures are put beside them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from adaneg_openood.data.feature_set import FeatureSet
from adaneg_openood.detectors import AdaNegConfig
from adaneg_openood.evaluation import Protocol, replay
from adaneg_openood.evaluation.metrics import METRICS
from adaneg_openood.reproduce import geometry
from adaneg_openood.reproduce.published import COLUMNS, beside_published, select_protocol
from adaneg_openood.reproduce.result import Reproduction, summarised
from adaneg_openood.reproduce.targets import TARGETS, Row, Target

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

_TOGETHER = 8  # detectors at a time: each holds a bank of its own


class _How(NamedTuple):
    """How rows meet the images; see :func:`reproduce`."""

    protocol: Protocol
    streams: Mapping[str, np.ndarray]
    device: torch.device | str
    double: bool


def reproduce(
    target: str,
    features: FeatureSet | Mapping[str, FeatureSet],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    batch_size: int | None = None,
    settings: Mapping[str, Any] | None = None,
    streams: Mapping[str, np.ndarray] | None = None,
    backbone: str = "ViT-B/16",
    double: bool = False,
    device: torch.device | str = "cpu",
) -> Reproduction:
    """Run one target on features.

    Args:
        target: a key of :data:`~adaneg_openood.reproduce.TARGETS`.
        features: one set, or label -> set for targets that compare several.
        seeds: distinct seeds of the stream orders, >= 0.
        batch_size: images per batch; None takes the target's.
        settings: of :class:`~adaneg_openood.AdaNegConfig`, over the target's own.
        streams: OOD set -> (n_ood + n_id,) order over concat(OOD, ID), in place of the seeds'.
        backbone: what the features were made with, for the published figures to compare.
        double: score in float64. Confidences are then free of rounding ties; twice as slow.
        device: where it runs.

    Raises:
        ValueError: unknown target or setting, several sets for a target that takes one, seeds or
            streams that do not fit.
    """
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {target!r}")
    spec = TARGETS[target]
    labelled = {"": features} if isinstance(features, FeatureSet) else dict(features)
    if not labelled or (len(labelled) > 1 and not spec.several):
        several = ", ".join(name for name, other in TARGETS.items() if other.several)
        raise ValueError(
            f"{target} takes one feature set, got {len(labelled)}; several are for {several}"
        )
    base = _base(spec, settings or {})
    protocol = Protocol(tuple(seeds), spec.batch_size if batch_size is None else batch_size)
    about = {
        "seeds": list(protocol.seeds),
        "batch_size": protocol.batch_size,
        "given_orders": sorted(streams or {}),
        "settings": base,
        "device": str(device),
        "precision": "float64" if double else "float32",
        "backbone": backbone,
    }
    how = _How(protocol, streams or {}, device, double)
    if not spec.geometry:
        return _detection(target, about, labelled, how)
    data = next(iter(labelled.values()))
    records, points = geometry.measured(
        data, AdaNegConfig(**base), protocol, how.streams, device, spec.geometry == "tsne"
    )
    return Reproduction(target, about, records, geometry.NOTES, points=points)


def _base(spec: Target, settings: Mapping[str, Any]) -> dict[str, Any]:
    """AdaNeg's settings of a target, with the caller's over them."""
    known = asdict(AdaNegConfig())
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ValueError(f"unknown setting {', '.join(unknown)}; settings are {', '.join(known)}")
    return asdict(AdaNegConfig(**{**spec.config, **settings}))


def _detection(
    target: str, about: dict[str, Any], labelled: Mapping[str, FeatureSet], how: _How
) -> Reproduction:
    import pandas as pd

    spec, base, backbone = TARGETS[target], about["settings"], about["backbone"]
    frames, beside, splits = [], [], {}
    notes: list[str] = []
    for label, data in labelled.items():
        protocol, apart = "", ["the list of published figures holds none for this target"]
        if spec.protocols:
            protocol, data, apart = select_protocol(spec.protocols, data)
            apart = [*apart, *_changes(spec, base, how.protocol)]
        none_taken = "no difference is taken from published figures"
        if apart:
            notes.append(f"{f'{label}: ' if label else ''}{none_taken}: {'; '.join(apart)}")
        rows = [_named(row, label, base) for row in spec.rows_for(data)]
        records = pd.concat(_records(rows, data, base, how), ignore_index=True)
        frames.append(records.assign(features=label))
        of_label = {**dict.fromkeys(data.near, "near"), **dict.fromkeys(data.far, "far")}
        splits.update(of_label)
        if protocol:
            table, _ = summarised(frames[-1], of_label)
            listed = beside_published(table, label, rows, protocol, not apart, backbone)
            beside += listed
            if not (apart or listed):
                where = label or backbone
                notes.append(f"{where}: the list of published figures holds none for these rows")
            methods = {figure["method"] for figure in listed}
            notes += [
                f"{row.method}: {none_taken}: {row.apart}"
                for row in rows
                if not apart and row.apart and row.method in methods
            ]
        logger.info("%s: %d rows on %s", spec.title, len(rows), label or "the features")
    columns = ["features", "method", "setting", "dataset", "seed", "n_id", "n_ood", *METRICS]
    return Reproduction(
        target,
        about,
        pd.concat(frames, ignore_index=True)[columns],
        tuple(notes),
        pd.DataFrame(beside, columns=list(COLUMNS)),
        splits=splits,
    )


def _named(row: Row, label: str, base: Mapping[str, Any]) -> Row:
    """A row with its names filled in."""
    names = {"label": label, "prompt": "nice" if "nice" in label.lower() else "simple"}
    return replace(
        row,
        method=row.method.format(groups=base["groups"]),
        figures=tuple((method.format(**names), source) for method, source in row.figures),
    )


def _records(
    rows: Sequence[Row], data: FeatureSet, base: Mapping[str, Any], how: _How
) -> Iterator[pd.DataFrame]:
    """Records of each row; detectors that meet the same images meet them side by side."""
    alike: dict[Any, list[Row]] = {}
    for row in rows:
        alike.setdefault((row.ratio, row.n_images), []).append(row)
    for (ratio, n_images), same in alike.items():
        protocol = replace(how.protocol, ratio=ratio, n_images=n_images)
        given = how.streams if (ratio, n_images) == (None, None) else None
        for start in range(0, len(same), _TOGETHER):
            part = same[start : start + _TOGETHER]
            detectors = {str(place): row.build(data, base) for place, row in enumerate(part)}
            if how.double:
                for detector in detectors.values():
                    detector.double()
            run = replay(
                data, detectors, protocol, device=how.device, progress=False, given_orders=given
            )
            for place, row in enumerate(part):
                mine = run.records[run.records["method"] == str(place)]
                yield mine.assign(method=row.method, setting=row.setting)


def _changes(spec: Target, base: Mapping[str, Any], protocol: Protocol) -> list[str]:
    """What the caller changed of the published settings."""
    published = asdict(AdaNegConfig(**spec.config))
    changed = [
        f"{name} is {value}, published with {published[name]}"
        for name, value in base.items()
        if value != published[name]
    ]
    if protocol.batch_size != spec.batch_size:
        changed.append(f"batch size {protocol.batch_size}, published with {spec.batch_size}")
    return changed
