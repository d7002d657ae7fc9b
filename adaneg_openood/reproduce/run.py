"""Running a target: its rows meet the streams, and published figures are put beside them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from adaneg_openood.data.feature_set import FeatureSet
from adaneg_openood.detectors import AdaNegConfig
from adaneg_openood.evaluation import Protocol, Run, StreamResult, replay
from adaneg_openood.reproduce import geometry
from adaneg_openood.reproduce.published import beside_published, select_protocol
from adaneg_openood.reproduce.result import FPR_ID, FPR_OOD, RECORD_COLUMNS, Reproduction, summarised
from adaneg_openood.reproduce.targets import TARGETS, Row, Target

logger = logging.getLogger(__name__)

_TOGETHER = 8  # detectors at a time: each holds a bank of its own
_NAMES = {"FPR@95": FPR_OOD, "FPR@95 (ID positive)": FPR_ID}


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
    found = Reproduction(
        target=target,
        title=spec.title,
        source=spec.source,
        varies=spec.varies,
        protocol={
            "seeds": list(protocol.seeds),
            "batch_size": protocol.batch_size,
            "given_orders": sorted(streams or {}),
            "settings": base,
            "device": str(device),
            "precision": "float64" if double else "float32",
            "backbone": backbone,
        },
    )
    how = _How(protocol, dict(streams or {}), device, double)
    if spec.geometry:
        data = next(iter(labelled.values()))
        config, planes = AdaNegConfig(**base), spec.geometry == "tsne"
        records, points = geometry.measured(data, config, protocol, how.streams, device, planes)
        return replace(found, records=records, points=points, notes=geometry.NOTES)
    return _detection(found, spec, labelled, base, how)


def _base(spec: Target, settings: Mapping[str, Any]) -> dict[str, Any]:
    """AdaNeg's settings of a target, with the caller's over them."""
    known = asdict(AdaNegConfig())
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ValueError(f"unknown setting {', '.join(unknown)}; settings are {', '.join(known)}")
    return asdict(AdaNegConfig(**{**spec.config, **settings}))


def _detection(
    found: Reproduction,
    spec: Target,
    labelled: Mapping[str, FeatureSet],
    base: Mapping[str, Any],
    how: _How,
) -> Reproduction:
    import pandas as pd

    records: list[dict[str, Any]] = []
    rows: dict[str, list[Row]] = {}
    protocols: dict[str, str] = {}
    apart: dict[str, list[str]] = {}
    splits: dict[str, str] = {}
    for label, whole in labelled.items():
        data, apart[label] = whole, ["the list of published figures holds none for this target"]
        if spec.protocols:
            protocols[label], data, reasons = select_protocol(spec.protocols, whole)
            apart[label] = [*reasons, *_changes(spec, base, how.protocol)]
        splits.update({**dict.fromkeys(data.near, "near"), **dict.fromkeys(data.far, "far")})
        rows[label] = [_named(row, label, base) for row in spec.rows_for(data)]
        # a sum and its parts must meet the same streams
        together = len(rows[label]) if any(row.sum_of for row in rows[label]) else _TOGETHER
        for start in range(0, len(rows[label]), together):
            part = rows[label][start : start + together]
            for record in _records(part, data, base, how):
                records.append({"features": label, **record})
        logger.info("%s: %d rows on %s", spec.title, len(rows[label]), label or "the features")
    frame = pd.DataFrame(records, columns=list(RECORD_COLUMNS))
    notes = [
        f"{f'{label}: ' if label else ''}no difference is taken from published figures: {'; '.join(why)}"
        for label, why in apart.items()
        if why
    ]
    comparison = pd.DataFrame()
    if protocols:
        comparable = {label: not why for label, why in apart.items()}
        table = summarised(frame, splits)
        backbone = str(found.protocol["backbone"])
        comparison = beside_published(table, rows, protocols, comparable, backbone)
        listed = set(zip(comparison["features"], comparison["method"]))
        for label, same in comparable.items():
            if same and label not in set(comparison["features"]):
                notes.append(
                    f"{label or backbone}: the list of published figures holds none for these rows"
                )
            notes += [
                f"{row.method}: no difference is taken from published figures: {row.apart}"
                for row in rows[label]
                if same and row.apart and (label, row.method) in listed
            ]
    return replace(found, records=frame, comparison=comparison, notes=tuple(notes), splits=splits)


def _named(row: Row, label: str, base: Mapping[str, Any]) -> Row:
    """A row with its names filled in."""
    names = {"label": label, "prompt": "nice" if "nice" in label.lower() else "simple"}
    return replace(
        row,
        method=row.method.format(groups=base["groups"]),
        figures=tuple((method.format(**names), source) for method, source in row.figures),
    )


def _records(
    rows: Sequence[Row],
    data: FeatureSet,
    base: Mapping[str, Any],
    how: _How,
) -> Iterator[dict[str, Any]]:
    """Records of a few rows, whose detectors meet each stream side by side."""
    runs: dict[int, Run] = {}
    parts = list(dict.fromkeys((row.ratio, row.n_images) for row in rows))
    for ratio, n_images in parts:
        chosen = {
            str(place): row.build(data, base)
            for place, row in enumerate(rows)
            if (row.ratio, row.n_images) == (ratio, n_images) and not row.sum_of
        }
        if how.double:
            for detector in chosen.values():
                detector.double()
        run = replay(
            data,
            chosen,
            replace(how.protocol, ratio=ratio, n_images=n_images),
            device=how.device,
            progress=False,
            keep_parts=any(row.sum_of for row in rows),
            given_orders=how.streams if (ratio, n_images) == (None, None) else None,
        )
        runs.update(dict.fromkeys((int(place) for place in chosen), run))
    places = {row.method: place for place, row in enumerate(rows)}
    for dataset in {**data.near, **data.far}:
        for seed in how.protocol.seeds:
            met = {place: run.stream(str(place), dataset, seed) for place, run in runs.items()}
            for place, row in enumerate(rows):
                if row.sum_of:
                    result = _added([met[places[name]] for name in row.sum_of], row, base)
                else:
                    result = met[place]
                yield {
                    "method": row.method,
                    "setting": row.setting,
                    "dataset": dataset,
                    "seed": seed,
                    "n_id": result.n_id,
                    "n_ood": result.n_ood,
                    **{_NAMES.get(name, name): value for name, value in result.metrics.items()},
                }


def _added(parts: Sequence[StreamResult], row: Row, base: Mapping[str, Any]) -> StreamResult:
    """S_ta + S_sa (+ lambda S_nl): the bank does not depend on the score, so parts can be added."""
    first, second = parts
    assert first.s_adaptive is not None and second.s_adaptive is not None
    assert first.s_neglabel is not None
    lam = base["lam"] if row.lam is None else row.lam
    conf = first.s_adaptive + second.s_adaptive + lam * first.s_neglabel
    return replace(first, conf=conf)


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
