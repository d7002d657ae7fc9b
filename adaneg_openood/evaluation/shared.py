"""Streams of an evaluation spread over the processes of a group."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adaneg_openood.data.feature_set import FeatureSet
from adaneg_openood.evaluation.results import Results
from adaneg_openood.evaluation.streams import Detector
from adaneg_openood.io.processes import ALONE, Group


def evaluate_shared(
    detectors: Mapping[str, Detector],
    data: FeatureSet,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    batch_size: int = 256,
    order: str = "mixed",
    device: torch.device | str | None = None,
    group: Group = ALONE,
) -> Results:
    """:func:`~adaneg_openood.evaluation.evaluate` with its streams spread over the ranks.

    A stream, one OOD set under one seed, depends on nothing before it, so every number is the one that
    ``evaluate`` gives, on every rank.

    Args:
        detectors, data, seeds, batch_size, order, device: see
            :func:`~adaneg_openood.evaluation.evaluate`; the same on every rank.
        group: the ranks.

    Raises:
        ValueError: as ``evaluate`` does.
    """
    from adaneg_openood.detectors.diagnosis import BankDiagnosis
    from adaneg_openood.evaluation.results import Results, plain_rows, records_frame
    from adaneg_openood.evaluation.runner import evaluate
    from adaneg_openood.evaluation.streams import one_order_is_enough

    sets = [(split, name) for split in ("near", "far") for name in getattr(data, split)]
    seeds = tuple(seeds)
    once = {name: one_order_is_enough(detector, order) for name, detector in detectors.items()}

    def run(job: tuple[str, str, int]) -> dict[str, Any]:
        split, name, seed = job
        empty: dict[str, Tensor] = {}
        one = {"near": empty, "far": empty, split: {name: getattr(data, split)[name]}}
        chosen = {m: d for m, d in detectors.items() if seed == seeds[0] or not once[m]}
        if not chosen:
            return {"records": [], "diagnoses": {}}
        part = dataclasses.replace(data, **one)  # type: ignore[arg-type]
        made = evaluate(
            chosen,
            part,
            seeds=(seed,),
            batch_size=batch_size,
            order=order,
            progress=False,
            device=device,
        )
        told = {method: dataclasses.asdict(state) for (method, _, _), state in made.diagnoses.items()}
        return {"records": plain_rows(made.records), "diagnoses": told}

    jobs = [(*item, seed) for item in sets for seed in seeds]
    answers = group.share(jobs, run)
    found = {
        (row["method"], row["split"], row["dataset"], row["seed"]): row
        for answer in answers
        for row in answer["records"]
    }
    diagnoses = {
        (method, name, seed): BankDiagnosis(**state)
        for (_, name, seed), answer in zip(jobs, answers)
        for method, state in answer["diagnoses"].items()
    }
    records = [
        {**found[(method, split, name, seeds[0] if once[method] else seed)], "seed": seed}
        for method in detectors
        for split, name in sets
        for seed in seeds
    ]
    return Results(records_frame(records), order, seeds, batch_size, diagnoses=diagnoses)
