"""What a benchmark is made of: sets, labels, model, methods, protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaneg_openood.benchmark.methods import STANDARD, MethodSpec
from adaneg_openood.detectors import AdaNegConfig
from adaneg_openood.text import Mining
from adaneg_openood.vlm import DEFAULT_MODEL

SPLITS = ("csid", "near", "far")
KINDS = ("imglist", "folder", "features", "torchvision", "huggingface", "demo")


@dataclass(frozen=True)
class ImageSet:
    """One set of images, or of their features.

    Attributes:
        name: as tables show it.
        split: ``"id"``, ``"csid"``, ``"near"`` or ``"far"``.
        kind: one of :data:`KINDS`.
        location: the list, folder or feature file; the dataset's name of the other kinds.
        root: what an imglist's paths are relative to, or where torchvision keeps its files.
        options: arguments of a torchvision or Hugging Face dataset.
        limit: take the first so many images; None takes all.
        images: how many images there should be; None where unknown.
        size: how large the download is, for people.
        source: where to get it, for people.
    """

    name: str
    split: str
    kind: str
    location: str
    root: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    images: int | None = None
    size: str = ""
    source: str = ""

    @property
    def labelled(self) -> bool:
        """Whether its images have ID classes."""
        return self.split in ("id", "csid")

    @property
    def title(self) -> str:
        """``"id"``, ``"near/ssb_hard"`` and so on."""
        return self.name if self.split == "id" else f"{self.split}/{self.name}"


@dataclass(frozen=True)
class Benchmark:
    """Everything an evaluation needs; see ``template.yml`` for what each part means.

    Attributes:
        name: for tables and reports.
        origin: the YAML file it was read from.
        description: one line for people.
        features: a feature file or folder that holds the whole benchmark; then no set, class or
            model is given.
        classes: a benchmark's name, a file, or the names themselves; None takes them from the ID set.
        backbone, preprocessing, precision: of the model, see ``load_model``.
        prompt: template of ID names and nouns; None is the one of the negatives, or ``"nice"``.
        prompts: a checkpoint of learned prompts.
        text_features: a file of text features, instead of backbone, prompt and negatives.
        logit_scale: None takes the model's or the text file's.
        negatives: a list file, or :class:`Mining`; None where prompts or text_features bring them.
        sets: ID, csid, near and far sets, in this order.
        full_spectrum: whether csid images count as ID; otherwise they are left out.
        methods: what is compared.
        seeds, batch_size, order: the protocol, see ``evaluate``.
    """

    name: str
    origin: str
    description: str = ""
    features: Path | None = None
    classes: str | tuple[str, ...] | None = None
    backbone: str = DEFAULT_MODEL
    preprocessing: str = "model"
    precision: str = "auto"
    prompt: str | None = None
    prompts: Path | None = None
    text_features: Path | None = None
    logit_scale: float | None = None
    negatives: Path | Mining | None = None
    sets: tuple[ImageSet, ...] = ()
    full_spectrum: bool = False
    methods: tuple[MethodSpec, ...] = STANDARD
    seeds: tuple[int, ...] = (0, 1, 2)
    batch_size: int = 256
    order: str = "mixed"

    @property
    def used_sets(self) -> tuple[ImageSet, ...]:
        """The sets that are evaluated: without csid unless ``full_spectrum``."""
        return tuple(s for s in self.sets if self.full_spectrum or s.split != "csid")

    @property
    def protocol(self) -> dict[str, Any]:
        """Seeds, batch size and order, as ``evaluate`` takes them."""
        return {"seeds": self.seeds, "batch_size": self.batch_size, "order": self.order}

    def config_of(self, method: str) -> AdaNegConfig:
        """The settings of an AdaNeg method.

        Raises:
            ValueError: no such method, or another detector.
        """
        found = {spec.name: spec for spec in self.methods}
        if method not in found or found[method].config is None:
            able = [name for name, spec in found.items() if spec.config is not None]
            raise ValueError(
                f"{self.origin}: {method!r} is no AdaNeg method here; there are "
                f"{', '.join(map(repr, able)) or 'none'}"
            )
        config = found[method].config
        assert config is not None
        return config
