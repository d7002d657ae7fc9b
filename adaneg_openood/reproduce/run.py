"""Running a target."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from adaneg_openood.detectors import AdaNegConfig
from adaneg_openood.evaluation import FeatureSet, stream_order
from adaneg_openood.evaluation.streams import check_seeds
from adaneg_openood.reproduce import geometry
from adaneg_openood.reproduce.compare import beside_published
from adaneg_openood.reproduce.published import select_protocol
from adaneg_openood.reproduce.result import Reproduction, summarised
from adaneg_openood.reproduce.targets import TARGETS, Target
from adaneg_openood.reproduce.trials import RECORD_COLUMNS, Protocol, Trial, run_trials

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

_GEOMETRY_NOTES = (
    "near_id, near_ood: mean cosine of ID and of OOD images with their nearest negative",
    "ratio = near_id / near_ood: lower is better, 1 tells nothing apart",
    "margin: mean over OOD images of (cosine with the nearest negative - with the nearest ID label)",
    "separation: AUROC of telling OOD from ID images by that margin, in percent",
    "the list of published figures holds none for this target",
)


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
        batch_size: images a batch; None takes the target's.
        settings: of :class:`~adaneg_openood.AdaNegConfig`, over the target's own.
        streams: OOD set -> (n_ood + n_id,) order over concat(OOD, ID), in place of the seeds'.
        backbone: what the features were made with, for the published figures to compare.
        double: score in float64, free of rounding ties.
        device: where it runs.

    Raises:
        ValueError: unknown target or setting, several sets for a target that takes one, seeds or
            streams that do not fit.
    """
    import pandas as pd

    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {target!r}")
    spec = TARGETS[target]
    labelled = {"": features} if isinstance(features, FeatureSet) else dict(features)
    if not labelled or (len(labelled) > 1 and not spec.several):
        several = ", ".join(name for name, other in TARGETS.items() if other.several)
        raise ValueError(
            f"{target} takes one feature set, got {len(labelled)}; several are for {several}"
        )
    check_seeds(seeds)
    config = _config(spec, settings or {})
    protocol = Protocol(tuple(seeds), batch_size or spec.batch_size, dict(streams or {}), double, device)
    if protocol.batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")
    about = {
        "seeds": list(protocol.seeds),
        "batch_size": protocol.batch_size,
        "given_orders": sorted(protocol.streams),
        "settings": asdict(config),
        "device": str(device),
        "precision": "float64" if double else "float32",
        "backbone": backbone,
    }
    common: dict[str, Any] = {"target": target, "title": spec.title, "source": spec.source}
    if spec.geometry:
        data = next(iter(labelled.values()))
        records, points = _geometry(spec, data, config, protocol)
        return Reproduction(
            **common,
            records=records,
            comparison=pd.DataFrame(),
            notes=_GEOMETRY_NOTES,
            protocol=about,
            points=points,
        )
    changed = _changes(spec, config, protocol)
    records, comparison, notes, splits = _detection(spec, labelled, config, protocol, backbone, changed)
    return Reproduction(
        **common,
        records=records,
        comparison=comparison,
        notes=tuple(notes),
        protocol=about,
        splits=splits,
        varies=spec.varies,
    )


def _detection(
    spec: Target,
    labelled: Mapping[str, FeatureSet],
    config: AdaNegConfig,
    protocol: Protocol,
    backbone: str,
    changed: Sequence[str],
) -> tuple[pd.DataFrame, pd.DataFrame, list[str], dict[str, str]]:
    import pandas as pd

    records: list[dict[str, Any]] = []
    trials: dict[str, Sequence[Trial]] = {}
    protocols: dict[str, str] = {}
    comparable: dict[str, bool] = {}
    notes: list[str] = []
    splits: dict[str, str] = {}
    for label, whole in labelled.items():
        data, apart = whole, ["the list of published figures holds none for this target"]
        if spec.protocols:
            protocols[label], data, apart = select_protocol(spec.protocols, whole)
            apart = [*apart, *changed]
        comparable[label] = not apart
        if apart:
            where = f"{label}: " if label else ""
            said = "; ".join(apart)
            notes.append(f"{where}no difference is taken from published figures: {said}")
        splits.update({**dict.fromkeys(data.near, "near"), **dict.fromkeys(data.far, "far")})
        trials[label] = spec.plan(data, config, label)
        records += run_trials(trials[label], data, protocol, label)
        logger.info("%s: %d rows on %s", spec.title, len(trials[label]), label or "the features")
    frame = pd.DataFrame(records, columns=list(RECORD_COLUMNS))
    comparison = pd.DataFrame()
    if protocols:
        table = summarised(frame, splits)
        comparison = beside_published(table, trials, protocols, comparable, backbone)
        with_figures = set(comparison["features"])
        notes += [
            f"{label or backbone}: the list of published figures holds none for these rows"
            for label, same in comparable.items()
            if same and label not in with_figures
        ]
    return frame, comparison, notes, splits


def _geometry(
    spec: Target, data: FeatureSet, config: AdaNegConfig, protocol: Protocol
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    import pandas as pd

    rows: list[dict[str, Any]] = []
    planes = []
    for name, ood in {**data.near, **data.far}.items():
        joined = torch.cat([ood.to(protocol.device), data.id_features.to(protocol.device)])
        for seed in protocol.seeds:
            order = protocol.streams.get(name)
            if order is None:
                order = stream_order(len(ood), len(data.id_features), seed)
            detector = geometry.stream_bank(data, config, joined, order, protocol.batch_size)
            found = geometry.measure(data, detector, joined, len(ood), config.beta)
            rows += [{"dataset": name, "seed": seed, **row} for row in found]
            if spec.geometry == "tsne" and seed == protocol.seeds[0]:
                planes.append(
                    geometry.plane(data, detector, joined, len(ood), seed).assign(dataset=name)
                )
    points = pd.concat(planes, ignore_index=True) if planes else None
    return pd.DataFrame(rows, columns=list(geometry.COLUMNS)), points


def _config(spec: Target, settings: Mapping[str, Any]) -> AdaNegConfig:
    known = asdict(AdaNegConfig())
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ValueError(f"unknown setting {', '.join(unknown)}; settings are {', '.join(known)}")
    return AdaNegConfig(**{**spec.config, **settings})


def _changes(spec: Target, config: AdaNegConfig, protocol: Protocol) -> list[str]:
    """What the caller changed of the published settings."""
    published = AdaNegConfig(**spec.config)
    changed = [
        f"{name} is {value}, published with {getattr(published, name)}"
        for name, value in asdict(config).items()
        if value != getattr(published, name)
    ]
    if protocol.batch_size != spec.batch_size:
        changed.append(f"batch size {protocol.batch_size}, published with {spec.batch_size}")
    return changed
