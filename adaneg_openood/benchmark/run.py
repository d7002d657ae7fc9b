"""From an open benchmark to features, and on to a run."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaneg_openood.benchmark.definition import BenchmarkSet, read_benchmark
from adaneg_openood.benchmark.labels import make_labels
from adaneg_openood.benchmark.methods import MethodSpec, further_inputs
from adaneg_openood.benchmark.opening import OpenBenchmark, open_benchmark
from adaneg_openood.benchmark.sets import StoredFeatures
from adaneg_openood.data import FeatureStore, ImageSet, read_feature_header
from adaneg_openood.data.feature_set import DEFAULT_LOGIT_SCALE, FeatureSet
from adaneg_openood.data.headers import differing
from adaneg_openood.data.store_entries import store_folder
from adaneg_openood.detectors import TextDetector
from adaneg_openood.evaluation import Protocol, Run, replay
from adaneg_openood.io.processes import ALONE, Group
from adaneg_openood.text import LabelFeatures
from adaneg_openood.vlm import VisionLanguageModel, describe, load_model


@dataclass(frozen=True)
class EncodeOptions:
    """How a benchmark is encoded; changes no result beyond rounding.

    Attributes:
        device: of the model.
        batch_size: images per forward pass.
        workers: decoding processes; None takes as many as there are cores.
        progress: show bars.
    """

    device: str = "cpu"
    batch_size: int = 256
    workers: int | None = None
    progress: bool = False


@dataclass(frozen=True, eq=False)
class Encoding:
    """A benchmark's features and where they come from.

    Attributes:
        data: what detectors and sweeps take.
        labels: the text rows; None where one file holds the whole benchmark.
        images: set title (``"id"``, ``"near/tin"``) -> its images in the order of the features.
        provenance: model, labels and sets; JSON values.
        inputs: what some methods take beside text rows, such as TANL's noise features.
        encoded: titles of the sets that were encoded now, and not found in the store.
    """

    data: FeatureSet
    labels: LabelFeatures | None
    images: dict[str, ImageSet]
    provenance: dict[str, Any]
    inputs: dict[str, Tensor] = field(default_factory=dict)
    encoded: tuple[str, ...] = ()

    def detectors(self, methods: Mapping[str, MethodSpec]) -> dict[str, TextDetector]:
        """The detectors of methods over these features, by title."""
        return {
            title: method.build(self.data, self.labels, self.inputs) for title, method in methods.items()
        }


def run_benchmark(
    opened: OpenBenchmark,
    options: EncodeOptions | None = None,
    group: Group = ALONE,
    **replayed: Any,
) -> tuple[Run, Encoding]:
    """Encode what is not in the store, and replay every method of the benchmark.

    Args:
        opened: see :func:`~adaneg_openood.benchmark.opening.open_benchmark`.
        options: see :class:`EncodeOptions`.
        group: ranks that share the encoding, and then the streams; all get the same run.
        replayed: further arguments of :func:`~adaneg_openood.evaluation.replay`.

    Raises:
        FileNotFoundError: the benchmark is not complete.
        ValueError, TypeError, OSError, ImportError: with a message for people.
    """
    options = EncodeOptions() if options is None else options
    made = encode_benchmark(opened, options, group)
    benchmark = opened.definition
    run = replay(
        made.data,
        made.detectors(benchmark.methods),
        Protocol(benchmark.seeds, benchmark.batch_size, benchmark.order),
        device=options.device,
        progress=options.progress,
        group=group,
        provenance=made.provenance,
        **replayed,
    )
    return run, made


def encode_benchmark(
    opened: OpenBenchmark, options: EncodeOptions | None = None, group: Group = ALONE
) -> Encoding:
    """The features of a benchmark, from the store where they are in it.

    Args:
        opened: see :func:`~adaneg_openood.benchmark.opening.open_benchmark`.
        options: see :class:`EncodeOptions`.
        group: ranks that share the encoding; they must see one cache folder.

    Raises:
        FileNotFoundError: the benchmark is not complete.
        ValueError, TypeError, OSError, ImportError: with a message for people.
    """
    opened.refuse_missing()
    options = EncodeOptions() if options is None else options
    benchmark = opened.definition
    about: dict[str, Any] = {"benchmark": benchmark.name, "definition": benchmark.origin}
    if opened.whole is not None:
        return Encoding(opened.whole, None, {}, {**about, "features": str(benchmark.features)})
    model = group.local(lambda: _model(opened, options), first_alone=True)
    if model is not None:
        about["model"] = describe(model)
    labels = group.local(lambda: _labels(opened, model, options), first_alone=True)
    used = [method.detector for method in benchmark.methods.values()]
    parts = {}
    store = FeatureStore(store_folder(benchmark.cache))
    for part in benchmark.sets:
        encode = functools.partial(_encoded, part, opened, labels.n_id, model, store, options, group)
        parts[part.title] = encode()
    about["labels"] = labels.provenance
    about["sets"] = {
        part.title: {
            "kind": part.definition.kind,
            "location": part.definition.location,
            "images": len(parts[part.title].features),
        }
        for part in benchmark.sets
    }
    return Encoding(
        _joined(opened, labels, model, parts),
        labels,
        {title: part.images for title, part in parts.items() if part.images is not None},
        about,
        group.local(lambda: further_inputs(used, model), first_alone=True),
        tuple(title for title, part in parts.items() if part.fresh),
    )


def benchmark_features(source: str | os.PathLike[str], device: str = "cpu") -> FeatureSet:
    """The features of a benchmark by its name or YAML file, with the options of its definition.

    Example:
        >>> benchmark_features("demo").n_id  # doctest: +SKIP
        20
    """
    return encode_benchmark(open_benchmark(read_benchmark(source)), EncodeOptions(device)).data


@dataclass(frozen=True, eq=False)
class _Part:
    features: Tensor
    labels: Tensor | None
    images: ImageSet | None = None
    fresh: bool = False


def _model(opened: OpenBenchmark, options: EncodeOptions) -> VisionLanguageModel | None:
    if not opened.needs_model:
        return None
    own = opened.definition
    return load_model(
        own.model, device=options.device, precision=own.precision, preprocessing=own.preprocessing
    )


def _labels(
    opened: OpenBenchmark, model: VisionLanguageModel | None, options: EncodeOptions
) -> LabelFeatures:
    if opened.labels is not None:
        return opened.labels
    benchmark = opened.definition
    return make_labels(
        model,
        opened.classes,
        benchmark,
        negatives=opened.negatives,
        with_negatives=any(method.needs_negatives for method in benchmark.methods.values()),
        cache=benchmark.cache,
        progress=options.progress,
    )


def _encoded(
    part: BenchmarkSet,
    opened: OpenBenchmark,
    n_id: int,
    model: VisionLanguageModel | None,
    store: FeatureStore,
    options: EncodeOptions,
    group: Group,
) -> _Part:
    found = opened.sets[part.title]
    if isinstance(found, StoredFeatures):
        group.local(functools.partial(_refuse_other_model, found.file, model))
        return _Part(found.features, found.id_labels(n_id) if part.labelled else None)
    assert model is not None
    if part.labelled:
        found.check_labels(n_id)
    made = store.get(
        found,
        model,
        batch_size=options.batch_size,
        workers=options.workers,
        skip_broken=opened.definition.skip_broken,
        progress=options.progress,
        group=group,
    )
    return _Part(made.features, made.labels, found.without(made.skipped), made.fresh)


def _joined(
    opened: OpenBenchmark,
    labels: LabelFeatures,
    model: VisionLanguageModel | None,
    parts: dict[str, _Part],
) -> FeatureSet:
    benchmark = opened.definition
    scale = benchmark.logit_scale or labels.logit_scale
    if scale is None:
        scale = DEFAULT_LOGIT_SCALE if model is None else float(model.logit_scale)
    of_id = [parts[part.title] for part in benchmark.sets if part.labelled]
    id_labels = [part.labels for part in of_id if part.labels is not None]
    sets = {
        split: {part.name: parts[part.title].features for part in benchmark.sets if part.split == split}
        for split in ("near", "far")
    }
    return FeatureSet(
        text_features=labels.features,
        n_id=labels.n_id,
        # one ID set stays memory-mapped
        id_features=of_id[0].features if len(of_id) == 1 else torch.cat([p.features for p in of_id]),
        id_labels=torch.cat(id_labels),
        near=sets["near"],
        far=sets["far"],
        logit_scale=scale,
        names=labels.names,
        origins={
            "id_features": f"{benchmark.origin}: id",
            "text_features": f"{benchmark.origin}: text",
            **{part.title: f"{benchmark.origin}: {part.title}" for part in benchmark.sets},
        },
    )


def _refuse_other_model(file: Path, model: VisionLanguageModel | None) -> None:
    """Compare a feature file's header, if it has one, with the model the rest is made with."""
    if model is None or file.suffix != ".safetensors":
        return
    header, known = read_feature_header(file), describe(model)
    for key in differing(header, known, ("weights", "preprocessing", "dim")):
        raise ValueError(
            f"{file}: was made with {key} {header[key]!r}, but this benchmark's model {model.name} "
            f"has {known[key]!r}; their features cannot be compared"
        )
