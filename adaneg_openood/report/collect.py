"""Running detectors over a benchmark and keeping every image's score."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from adaneg_openood.benchmark.methods import standard_detectors
from adaneg_openood.evaluation import FeatureSet, Protocol, replay
from adaneg_openood.evaluation.streams import Detector
from adaneg_openood.report.examples import extreme_examples
from adaneg_openood.report.provenance import describe_run
from adaneg_openood.report.record import RunRecord

if TYPE_CHECKING:
    from adaneg_openood.data import ImageSet


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
        batch_size: images a batch.
        order: ``"mixed"`` or ``"id_first"``.
        device: where it runs; None leaves everything where it is.
        features: file or folder the features were read from, for the provenance.
        images: ``"id"`` or an OOD set -> its images in the order of the features, for examples.
        example_method: whose confidences choose the examples; None takes the first with a bank.
        about: more for the provenance, as JSON values.

    Raises:
        ValueError: settings out of range, or images that do not fit the features.
    """
    detectors = dict(standard_detectors(data) if detectors is None else detectors)
    run = replay(
        data,
        detectors,
        Protocol(tuple(seeds), batch_size, order),
        device=device,
        progress=False,
        watch_bank=True,
    )
    place = data.id_features.device if device is None else torch.device(device)
    record = RunRecord(
        run,
        provenance={
            **describe_run(data, detectors, features, place),
            **({} if about is None else {"benchmark": dict(about)}),
        },
    )
    if not images:
        return record
    chosen = example_method or next(iter((*record.bank_methods[:1], *record.methods)))
    if chosen not in detectors:
        raise ValueError(f"no method {chosen!r} to choose examples by; there are {', '.join(detectors)}")
    found = extreme_examples(record, images, chosen)
    names = {part: tuple(map(str, given.names)) for part, given in images.items()}
    return replace(record, examples=found, example_method=chosen, names=names)
