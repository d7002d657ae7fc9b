"""From a benchmark's definition to features and results."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaneg_openood.benchmark.definition import Benchmark
from adaneg_openood.benchmark.definition import ImageSet as SetDefinition
from adaneg_openood.benchmark.sets import Stored, labels_of, open_set
from adaneg_openood.data import FeatureStore, ImageSet, read_feature_header
from adaneg_openood.data.feature_files import load_features
from adaneg_openood.data.feature_set import DEFAULT_LOGIT_SCALE, FeatureSet
from adaneg_openood.data.store_entries import default_store
from adaneg_openood.evaluation import Protocol, Run, replay
from adaneg_openood.io.processes import ALONE, Group
from adaneg_openood.text import (
    ClassNames,
    Corpus,
    LabelFeatures,
    Mining,
    TextCache,
    class_names,
    label_features,
)
from adaneg_openood.vlm import VisionLanguageModel, describe, load_model

logger = logging.getLogger(__name__)

_COMPARED = ("weights", "preprocessing", "dim")


@dataclass(frozen=True)
class Settings:
    """How a benchmark is encoded; changes no result beyond rounding.

    Attributes:
        device: of the model.
        batch_size: images a forward pass.
        workers: decoding processes; None takes as many as there are cores.
        skip_broken: leave out images that cannot be read.
        cache: folder of the feature cache; None is the user's.
        text_cache: folder of text features; None is the user's.
        progress: show bars.
    """

    device: str = "cpu"
    batch_size: int = 256
    workers: int | None = None
    skip_broken: bool = False
    cache: Path | None = None
    text_cache: Path | None = None
    progress: bool = False


@dataclass(frozen=True, eq=False)
class Encoding:
    """A benchmark's features and where they come from.

    Attributes:
        data: what detectors and sweeps take.
        names: set title (``"id"``, ``"near/tin"``) -> image names, where images exist.
        roots: set title -> folder of the image files, where they lie in files.
        provenance: model, labels and sets; JSON values.
        encoded: titles of the sets that were encoded now, and not found in the cache.
    """

    data: FeatureSet
    names: dict[str, tuple[str, ...]]
    roots: dict[str, Path]
    provenance: dict[str, Any]
    encoded: tuple[str, ...] = ()


def run_benchmark(
    benchmark: Benchmark,
    settings: Settings | None = None,
    group: Group = ALONE,
    **protocol: Any,
) -> tuple[Run, Encoding]:
    """Encode what is not in the cache, and replay every method of the benchmark.

    Args:
        benchmark: the definition.
        settings: see :class:`Settings`.
        group: ranks that share the encoding, and then the streams; all get the same results.
        protocol: fields of :class:`~adaneg_openood.evaluation.Protocol`, over the benchmark's own.

    Raises:
        ValueError, TypeError, OSError, ImportError: with a message for people; see
            :func:`~adaneg_openood.benchmark.check.check` for all of them at once.
    """
    settings = Settings() if settings is None else settings
    made = encode_benchmark(benchmark, settings, group)
    run = replay(
        made.data,
        {spec.name: spec.build(made.data) for spec in benchmark.methods},
        Protocol(**{**benchmark.protocol, **protocol}),
        device=settings.device,
        progress=settings.progress,
        group=group,
        provenance={
            **made.provenance,
            "methods": {spec.name: spec.to_dict() for spec in benchmark.methods},
        },
    )
    return run, made


def encode_benchmark(
    benchmark: Benchmark, settings: Settings | None = None, group: Group = ALONE
) -> Encoding:
    """The features of a benchmark, from the cache where they are in it.

    Args:
        benchmark: the definition.
        settings: see :class:`Settings`.
        group: ranks that share the encoding; they must see one cache folder.

    Raises:
        ValueError, TypeError, OSError, ImportError: with a message for people.
    """
    settings = Settings() if settings is None else settings
    about: dict[str, Any] = {"benchmark": benchmark.name, "definition": benchmark.origin}
    if benchmark.features is not None:
        file = benchmark.features
        data = group.local(lambda: load_features(file))
        if benchmark.logit_scale is not None:
            data = dataclasses.replace(data, logit_scale=benchmark.logit_scale)
        return Encoding(data, {}, {}, {**about, "features": str(benchmark.features)})
    folder = default_store() if settings.cache is None else settings.cache
    store = FeatureStore(folder)
    # lists first: a wrong path should not wait for a model to load
    opened = group.local(lambda: open_sets(benchmark, folder))
    classes = group.local(lambda: benchmark_classes(benchmark, opened["id"]))
    wanted = needs_model(benchmark, opened)
    model = group.local(lambda: _model(benchmark, settings) if wanted else None, first_alone=True)
    if model is not None:
        about["model"] = describe(model)
    labels = group.local(lambda: benchmark_labels(benchmark, classes, model, settings), first_alone=True)
    n_id = labels.n_id
    features: dict[str, Tensor] = {}
    id_labels: dict[str, Tensor] = {}
    names: dict[str, tuple[str, ...]] = {}
    roots: dict[str, Path] = {}
    fresh = []
    for item in benchmark.used_sets:
        part = opened[item.title]
        if item.labelled:
            id_labels[item.title] = group.local(functools.partial(labels_of, item, part, n_id))
        if isinstance(part, Stored):
            group.local(functools.partial(_refuse_other_model, part.file, model))
            features[item.title] = part.features
            continue
        assert model is not None
        found = store.get(
            part,
            model,
            batch_size=settings.batch_size,
            workers=settings.workers,
            skip_broken=settings.skip_broken,
            progress=settings.progress,
            group=group,
        )
        features[item.title], names[item.title] = found.features, found.names
        if item.labelled and found.labels is not None:
            id_labels[item.title] = found.labels  # without those of skipped images
        if part.base is not None:
            roots[item.title] = part.base
        if found.fresh:
            fresh.append(item.title)
    about["labels"] = labels.provenance
    about["sets"] = {
        item.title: _about_set(item, len(features[item.title])) for item in benchmark.used_sets
    }
    data = _joined(benchmark, labels, model, features, id_labels)
    return Encoding(data, names, roots, about, tuple(fresh))


def needs_model(benchmark: Benchmark, opened: Mapping[str, ImageSet | Stored]) -> bool:
    """Whether texts or images are to be encoded; ``opened`` are the sets by title."""
    return benchmark.text_features is None or any(isinstance(part, ImageSet) for part in opened.values())


def _model(benchmark: Benchmark, settings: Settings) -> VisionLanguageModel:
    return load_model(
        benchmark.backbone,
        device=settings.device,
        precision=benchmark.precision,
        preprocessing=benchmark.preprocessing,
    )


def given_classes(benchmark: Benchmark) -> ClassNames | None:
    """The ID classes that the definition tells; None where the ID set does."""
    if isinstance(benchmark.classes, tuple):
        return ClassNames(f"{benchmark.origin}: classes", benchmark.classes)
    if benchmark.classes == "demo":
        from adaneg_openood.demo.world import ID_NAMES

        return ClassNames("demo", ID_NAMES)
    if benchmark.classes is not None:
        return class_names(benchmark.classes)
    if benchmark.text_features is not None:
        made = LabelFeatures.load(benchmark.text_features)
        return ClassNames(str(benchmark.text_features), made.names[: made.n_id])
    return None


def benchmark_classes(benchmark: Benchmark, id_set: ImageSet | Stored | None) -> ClassNames:
    """The ID classes, from the definition or from the ID set.

    Raises:
        ValueError: neither tells them.
    """
    given = given_classes(benchmark)
    if given is None and isinstance(id_set, ImageSet):
        return id_set.class_names()
    if given is None:
        raise ValueError(
            f"{benchmark.origin}: classes is missing, and the ID set does not tell them; give a "
            "benchmark's name, a file or a list"
        )
    return given


def open_sets(benchmark: Benchmark, cache_folder: Path) -> dict[str, ImageSet | Stored]:
    """The sets that are used, by title; those with ID classes are matched with the names of these."""
    classes = given_classes(benchmark)
    opened: dict[str, ImageSet | Stored] = {}
    for item in benchmark.used_sets:  # the ID set is the first
        opened[item.title] = open_set(item, cache_folder, classes)
        if classes is None:
            classes = benchmark_classes(benchmark, opened[item.title])
    return opened


def benchmark_labels(
    benchmark: Benchmark,
    classes: ClassNames,
    model: VisionLanguageModel | None,
    settings: Settings,
) -> LabelFeatures:
    """The text rows of a benchmark, see :func:`~adaneg_openood.text.label_features`."""
    return label_features(
        model,
        classes,
        benchmark_negatives(benchmark),
        prompt=benchmark.prompt,
        learned_prompts=benchmark.prompts,
        text_features=benchmark.text_features,
        cache=TextCache(settings.text_cache),
        progress=settings.progress,
    )


def benchmark_negatives(benchmark: Benchmark) -> Path | Mining | None:
    """The negative labels, or how to mine them; the demo's words are put in."""
    wanted = benchmark.negatives
    if not isinstance(wanted, Mining) or wanted.corpus != "demo":
        return wanted
    from adaneg_openood.demo.world import ADJECTIVES, NOUNS

    return dataclasses.replace(wanted, corpus=Corpus(NOUNS, ADJECTIVES, "demo"))


def _joined(
    benchmark: Benchmark,
    labels: LabelFeatures,
    model: VisionLanguageModel | None,
    features: dict[str, Tensor],
    id_labels: dict[str, Tensor],
) -> FeatureSet:
    scale = benchmark.logit_scale or labels.logit_scale
    if scale is None:
        scale = DEFAULT_LOGIT_SCALE if model is None else float(model.logit_scale)
    ids = [item.title for item in benchmark.used_sets if item.labelled]
    sets = {
        split: {item.name: features[item.title] for item in benchmark.used_sets if item.split == split}
        for split in ("near", "far")
    }
    return FeatureSet(
        text_features=labels.features,
        n_id=labels.n_id,
        # one ID set stays memory-mapped
        id_features=features[ids[0]] if len(ids) == 1 else torch.cat([features[t] for t in ids]),
        id_labels=torch.cat([id_labels[title] for title in ids]),
        near=sets["near"],
        far=sets["far"],
        logit_scale=scale,
        names=labels.names,
        origins={
            "id_features": f"{benchmark.origin}: id",
            "text_features": f"{benchmark.origin}: text",
            **{item.title: f"{benchmark.origin}: {item.title}" for item in benchmark.used_sets},
        },
    )


def _about_set(item: SetDefinition, n_rows: int) -> dict[str, Any]:
    return {"kind": item.kind, "location": item.location, "images": n_rows}


def _refuse_other_model(file: Path, model: VisionLanguageModel | None) -> None:
    """Compare a feature file's header, if it has one, with the model the rest is made with."""
    if model is None or file.suffix != ".safetensors":
        return
    header, known = read_feature_header(file), describe(model)
    for key in _COMPARED:
        if key in header and key in known and header[key] != known[key]:
            raise ValueError(
                f"{file}: was made with {key} {header[key]!r}, but this benchmark's backbone "
                f"{model.name} has {known[key]!r}; their features cannot be compared"
            )
