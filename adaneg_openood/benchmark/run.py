"""From an open benchmark to features, and on to a run."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from adaneg_openood.benchmark.definition import Benchmark, read_benchmark
from adaneg_openood.benchmark.labels import make_labels
from adaneg_openood.benchmark.methods import MethodSpec, further_inputs
from adaneg_openood.benchmark.opening import OpenBenchmark, open_benchmark
from adaneg_openood.benchmark.sets import Opened, StoredFeatures
from adaneg_openood.benchmark.settings import EncodeOptions
from adaneg_openood.data import FeatureStore, ImageFeatures, ImageSet
from adaneg_openood.data.feature_set import DEFAULT_LOGIT_SCALE, FeatureSet
from adaneg_openood.data.mixing import differing
from adaneg_openood.detectors import TextDetector
from adaneg_openood.evaluation import Protocol, Run, replay
from adaneg_openood.io.files import cache_folder
from adaneg_openood.io.processes import ALONE, Group
from adaneg_openood.text import LabelFeatures, Mining
from adaneg_openood.vlm import VisionLanguageModel, describe, load_model

__all__ = ["EncodeOptions", "Encoding", "benchmark_features", "encode_benchmark", "run_benchmark"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Encoding:
    """A benchmark's features and where they come from.

    Attributes:
        data: what detectors and sweeps take.
        labels: the text rows; None where one file holds the whole benchmark.
        images: set title (``"id"``, ``"near/tin"``) -> its images in the order of the features.
        provenance: model, labels and sets; JSON values.
        inputs: what some methods take beside text rows, such as TANL's noise features, or as
            ``"corpus"`` in place of them.
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
        opened, options, group: see :func:`encode_benchmark`; all ranks get the same run.
        replayed: further arguments of :func:`~adaneg_openood.evaluation.replay`.

    Raises:
        FileNotFoundError: the benchmark is not complete.
        ValueError, TypeError, OSError, ImportError: with a message for people.
    """
    options = (options or EncodeOptions()).on(group)
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
    options = (options or EncodeOptions()).on(group)
    benchmark = opened.definition
    about: dict[str, Any] = {"benchmark": benchmark.name, "definition": benchmark.origin}
    if opened.whole is not None:
        _corpus(opened, None, options)
        return Encoding(opened.whole, None, {}, {**about, "features": str(benchmark.features)})
    model = group.local(lambda: _model(opened, options), first_alone=True)
    if model is not None:
        about["model"] = describe(model)
    labels = group.local(lambda: _labels(opened, model, options), first_alone=True)
    store = FeatureStore(cache_folder("features", benchmark.cache))
    made: dict[str, ImageFeatures | StoredFeatures] = {}
    images: dict[str, ImageSet] = {}
    for part in benchmark.sets:
        found = opened.sets[part.title]
        group.local(functools.partial(_refuse_other_model, found, model))
        if isinstance(found, StoredFeatures):
            made[part.title] = found
            continue
        assert model is not None
        made[part.title] = encoded = store.get(
            found,
            model,
            batch_size=options.batch_size,
            workers=options.workers,
            skip_broken=benchmark.skip_broken,
            progress=options.progress,
            group=group,
        )
        images[part.title] = found.without(encoded.skipped)
    about["labels"] = labels.provenance
    about["sets"] = {
        part.title: {
            "kind": part.definition.kind,
            "location": part.definition.location,
            "images": len(made[part.title].features),
            "limit": part.definition.limit,
            "skipped": len(getattr(made[part.title], "skipped", ())),
        }
        for part in benchmark.sets
    }
    used = [method.detector for method in benchmark.methods.values()]
    inputs = group.local(lambda: further_inputs(used, model), first_alone=True)
    corpus = group.local(lambda: _corpus(opened, model, options), first_alone=True)
    if corpus is not None:
        inputs["corpus"], about["corpus"] = corpus.features, corpus.provenance
    return Encoding(
        _joined(benchmark, labels, model, made),
        labels,
        images,
        about,
        inputs,
        tuple(title for title, part in made.items() if getattr(part, "fresh", False)),
    )


def benchmark_features(source: str | os.PathLike[str], device: str = "cpu") -> FeatureSet:
    """The features of a benchmark by its name or YAML file, with the options of its definition."""
    return encode_benchmark(open_benchmark(read_benchmark(source)), EncodeOptions(device)).data


def _model(opened: OpenBenchmark, options: EncodeOptions) -> VisionLanguageModel | None:
    if not opened.needs_model:
        return None
    own = opened.definition
    return load_model(
        own.model, device=options.device, precision=own.precision, preprocessing=own.preprocessing
    )


def _labels(
    opened: OpenBenchmark,
    model: VisionLanguageModel | None,
    options: EncodeOptions,
    takes_corpus: bool = False,
) -> LabelFeatures:
    if opened.labels is not None:
        return opened.labels
    benchmark = opened.definition
    return make_labels(
        model,
        opened.classes,
        benchmark,
        negatives=opened.negatives,
        takes_corpus=takes_corpus,
        with_negatives=any(method.needs_negatives for method in benchmark.methods.values()),
        cache=benchmark.cache,
        progress=options.progress,
    )


def _corpus(
    opened: OpenBenchmark, model: VisionLanguageModel | None, options: EncodeOptions
) -> LabelFeatures | None:
    """The text rows of methods that choose their negatives among all words, if those are known."""
    takers = [title for title, method in opened.definition.methods.items() if method.takes_corpus]
    if not takers:
        return None
    if opened.labels is not None or not isinstance(opened.negatives, Mining):
        logger.warning(
            "%s: chooses its negatives among the listed ones, not in a whole corpus", takers[0]
        )
        return None
    if opened.negatives.config.resolved().n_negatives == "all":
        return None
    return _labels(opened, model, options, takes_corpus=True)


def _refuse_other_model(found: Opened, model: VisionLanguageModel | None) -> None:
    """Compare a feature file's header, if it has one, with the model the rest is made with."""
    if model is None or isinstance(found, ImageSet):
        return
    known = describe(model)
    for key in differing(found.header, known, ("weights", "preprocessing", "dim")):
        raise ValueError(
            f"{found.file}: was made with {key} {found.header[key]!r}, but this benchmark's model "
            f"{model.name} has {known[key]!r}; their features cannot be compared"
        )


def _joined(
    benchmark: Benchmark,
    labels: LabelFeatures,
    model: VisionLanguageModel | None,
    made: Mapping[str, ImageFeatures | StoredFeatures],
) -> FeatureSet:
    scale = benchmark.logit_scale or labels.logit_scale
    if scale is None:
        scale = DEFAULT_LOGIT_SCALE if model is None else float(model.logit_scale)
    of_id = [made[part.title] for part in benchmark.sets if part.labelled]
    id_labels = [part.labels for part in of_id if part.labels is not None]
    near, far = (
        {part.name: made[part.title].features for part in benchmark.sets if part.split == split}
        for split in ("near", "far")
    )
    return FeatureSet(
        text_features=labels.features,
        n_id=labels.n_id,
        # one ID set stays memory-mapped
        id_features=of_id[0].features if len(of_id) == 1 else torch.cat([p.features for p in of_id]),
        id_labels=torch.cat(id_labels),
        near=near,
        far=far,
        logit_scale=scale,
        names=labels.names,
        origins={
            "id_features": f"{benchmark.origin}: id",
            "text_features": f"{benchmark.origin}: text",
            **{part.title: f"{benchmark.origin}: {part.title}" for part in benchmark.sets},
        },
    )
