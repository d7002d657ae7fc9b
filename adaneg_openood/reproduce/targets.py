"""What can be reproduced, as data: for each target its rows, its settings and the published figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from adaneg_openood.data.feature_set import FeatureSet
from adaneg_openood.detectors import (
    AdaNegConfig,
    Scores,
    TextDetector,
    default_settings,
    make_detector,
)
from adaneg_openood.evaluation.streams import Protocol, Ratio

SAMPLES_RATIO = (5, 4)
_SIZES = (90, 180, 450, 900, 1_800, 4_500, 9_000, 18_000, 45_000, 90_000)
_SHARED = ("groups", "permute")  # settings of the target that methods besides AdaNeg take as well


@dataclass(frozen=True)
class Row:
    """One row of a table: a method with settings, on some images.

    Attributes:
        method: name of the row; may hold ``{groups}``.
        detector: a key of :data:`~adaneg_openood.detectors.DETECTORS`, or ``"sum"`` of both proxies'
            adaptive scores and ``lam`` times the NegLabel score.
        settings: over the target's own. ``released`` stands for ``AdaNegConfig.released``.
        setting: what is varied, such as ``"gamma = 0.3"``; empty where nothing is.
        ratio, n_images: which images are met, see :class:`~adaneg_openood.evaluation.Protocol`.
        figures: (method, part of the source) pairs of published figures under the same settings; may
            hold ``{label}``, the name of the features, and ``{prompt}``, nice or simple.
        apart: what else sets the figures apart from this row, so that no difference is taken.
        negatives: least number of negative labels it needs.
    """

    method: str
    detector: str = "adaneg"
    settings: Mapping[str, Any] = field(default_factory=dict)
    setting: str = ""
    ratio: Ratio | None = None
    n_images: int | None = None
    figures: tuple[tuple[str, str], ...] = ()
    apart: str = ""
    negatives: int = 1

    def build(self, data: FeatureSet, base: Mapping[str, Any]) -> Any:
        """The detector over a benchmark's labels; with fewer negatives than groups, one group each."""
        if self.detector == "sum":
            parts = (replace(self, detector="adaneg", settings={"proxy": p}) for p in ("task", "sample"))
            task, sample = (part.build(data, base) for part in parts)
            return _Sum(task, sample, self.settings.get("lam", base["lam"]))
        known = default_settings(self.detector)
        wanted = known if self.detector == "adaneg" else _SHARED
        settings = {**{key: base[key] for key in wanted if key in known}, **self.settings}
        if settings.pop("released", False):
            settings = vars(AdaNegConfig.released(**settings))
        if "groups" in settings:
            most = len(data.text_features) - data.n_id
            settings = {**settings, "groups": min(settings["groups"], most)}
        return make_detector(self.detector, data.text_features, data.n_id, data.logit_scale, settings)


class _Sum(torch.nn.Module):
    """S_ta + S_sa + lambda S_nl, with the classes of the task-adaptive proxies."""

    def __init__(self, task: TextDetector, sample: TextDetector, lam: float) -> None:
        super().__init__()
        self.task, self.sample, self.lam = task, sample, lam

    def reset(self) -> None:
        self.task.reset()
        self.sample.reset()

    def score(self, features: Tensor) -> Scores:
        task, sample = self.task.score(features), self.sample.score(features)
        assert task.s_adaptive is not None and sample.s_adaptive is not None
        assert task.s_neglabel is not None
        return Scores(task.pred, task.s_adaptive + sample.s_adaptive + self.lam * task.s_neglabel)


@dataclass(frozen=True)
class Target:
    """One table or figure.

    Attributes:
        title: one line for people.
        source: where it stands in the papers.
        rows: of the table.
        protocols: of the published figures; the one whose OOD sets are there is taken. Empty where
            the list has no figure.
        config: settings of AdaNeg it was published with, before what the caller changes.
        batch_size: images per batch.
        several: whether it compares feature sets, given as ``NAME=PATH``.
        varies: the name of the axis of its plot; empty where it is a table only.
        sizes: whether every row is there once for each stream length that the images allow.
        geometry: ``"isor"`` or ``"tsne"`` where it measures proxies and not detection.
    """

    title: str
    source: str
    rows: tuple[Row, ...] = ()
    protocols: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 256
    several: bool = False
    varies: str = ""
    sizes: bool = False
    geometry: str = ""

    def rows_for(self, data: FeatureSet) -> list[Row]:
        """The rows that these features allow."""
        rows = [row for row in self.rows if len(data.text_features) - data.n_id >= row.negatives]
        if not self.sizes:
            return rows
        smallest = min(len(part) for part in (*data.near.values(), *data.far.values()))
        return [
            replace(row, setting=f"n = {n}", ratio=SAMPLES_RATIO, n_images=n)
            for n in totals(len(data.id_features), smallest)
            for row in rows
        ]


def totals(n_id: int, n_ood: int) -> list[int]:
    """Stream lengths at 5:4 that this many images allow, 90 and upwards, the largest one last.

    Example:
        >>> totals(300, 150)
        [90, 180, 337]
    """
    most = sum(Protocol(ratio=SAMPLES_RATIO).sizes(n_id, n_ood))
    return [*(size for size in _SIZES if size < most), most]


def _adaneg(method: str, *figures: tuple[str, str], **settings: Any) -> Row:
    return Row(method, settings=settings, figures=figures)


# half precision keeps the images that come first; published figures come from it
_FIRST = {"replacement": "first", "released": True}
_ENTROPY = ("AdaNeg entropy", "independent")
_MCM, _NEGLABEL = Row("MCM", "mcm"), Row("NegLabel", "neglabel")
_ADANEG, _SAMPLE = _adaneg("AdaNeg"), _adaneg("AdaNeg (sample)", proxy="sample")
_ZERO_SHOT = (
    replace(_MCM, figures=(("MCM", "published"), ("MCM", "independent run (tau 1"))),
    Row(
        "NegLabel (G = 100)",  # of NegLabel's own ImageNet results
        "neglabel",
        {"groups": 100},
        negatives=100,
        figures=(("NegLabel", "published"), ("NegLabel", "independent run (G=100)")),
    ),
    replace(_NEGLABEL, method="NegLabel (G = {groups})"),
    _adaneg("AdaNeg", _ENTROPY),
    _adaneg(
        "AdaNeg (first come)",
        ("AdaNeg", "published"),
        ("AdaNeg", "released log (task-adaptive"),
        ("AdaNeg first", "independent"),
        **_FIRST,
    ),
)
_IMAGENET = (
    *_ZERO_SHOT,
    _SAMPLE,
    _adaneg(
        "AdaNeg (sample, first come)",
        ("AdaNeg", "released log (sample-adaptive"),
        proxy="sample",
        **_FIRST,
    ),
    Row(
        "TANL",
        "tanl",
        figures=(("TANL", "published"),),
        apart="TANL was published with every word of the corpus as a candidate, and with noise images",
    ),
    Row("OODD", "oodd", {"groups": 100}, figures=(("OODD", "quoted"),)),
    Row("SmoothedNegLabel", "smoothed_neglabel"),
)
_CIFAR = (
    _MCM,
    _NEGLABEL,
    _adaneg("AdaNeg", adagap=False),
    _adaneg("AdaNeg (sample)", adagap=False, proxy="sample"),
    _adaneg("AdaNeg + AdaGap", adagap=True),
    # the released variant adds S_nl at full weight
    _adaneg("AdaNeg + AdaGap (as released)", adagap=True, released=True),
)
_SCORES = (
    _adaneg("S_nl", proxy="task", score="neglabel"),
    _adaneg("S_ta", proxy="task", score="adaptive"),
    _adaneg("S_sa", proxy="sample", score="adaptive"),
    _adaneg("S_ta + lambda S_nl", _ENTROPY, proxy="task", score="combine"),
    _adaneg("S_sa + lambda S_nl", proxy="sample", score="combine"),
    _adaneg("S_ta x S_nl", proxy="task", score="multiply"),
    _adaneg("S_sa x S_nl", proxy="sample", score="multiply"),
    Row("S_ta + S_sa", "sum", {"lam": 0.0}),
    Row("S_ta + S_sa + lambda S_nl", "sum"),
)
_UNEVEN = (
    replace(_NEGLABEL, figures=(("NegLabel", "comparison"),)),
    _adaneg("AdaNeg", ("AdaNeg", "comparison"), adagap=False),
)
_FOUR_OR_OPENOOD = ("four_ood", "openood_imagenet")


def _varied(name: str, symbol: str, source: str, title: str, values: tuple[float, ...]) -> Target:
    """AdaNeg with one setting varied, both proxies, and NegLabel, which does not have it."""
    rows = tuple(
        replace(
            row,
            settings={**row.settings, name: value},
            setting=f"{symbol} = {value:g}",
            figures=(_ENTROPY,) if value == getattr(AdaNegConfig(), name) and row is _ADANEG else (),
        )
        for row in (_ADANEG, _SAMPLE)
        for value in values
    )
    axis = {"gap": "gap g", "memory_length": "memory length L"}.get(name, name)
    return Target(title, source, (_NEGLABEL, *rows), protocols=_FOUR_OR_OPENOOD, varies=axis)


TARGETS: dict[str, Target] = {
    "four-ood": Target(
        "ImageNet against iNaturalist, SUN, Places and Textures",
        "AdaNeg, main table (four OOD sets); NegLabel, main table",
        _IMAGENET,
        protocols=("four_ood",),
    ),
    "openood-imagenet": Target(
        "ImageNet in OpenOOD: near (SSB-hard, NINCO) and far (iNaturalist, Textures, OpenImage-O)",
        "AdaNeg, OpenOOD table",
        _IMAGENET,
        protocols=("openood_imagenet",),
    ),
    **{
        name.replace("-", "").lower(): Target(
            f"{name} in OpenOOD, with and without AdaGap (batch 32, one group)",
            "AdaNeg, CIFAR table",
            _CIFAR,
            config={"groups": 1, "adagap": True},
            batch_size=32,
        )
        for name in ("CIFAR-10", "CIFAR-100")
    },
    "bimcv": Target(
        "BIMCV-COVID19+ against CT scans and bone X-rays (gap 0); features named nice or simple",
        "AdaNeg, medical images",
        (
            *(_MCM, _NEGLABEL, _ADANEG),
            _adaneg("AdaNeg (first come)", ("AdaNeg {prompt}", ""), **_FIRST),
            _SAMPLE,
        ),
        protocols=("bimcv",),
        config={"gap": 0.0},
        several=True,
    ),
    "scores": Target(
        "S_nl, S_ta, S_sa and their combinations",
        "AdaNeg, ablation of scores",
        _SCORES,
        protocols=_FOUR_OR_OPENOOD,
    ),
    "gamma": _varied(
        *("gamma", "gamma", "AdaNeg, sweep of gamma", "the centre gamma of the thresholds"),
        (0.3, 0.4, 0.5, 0.6, 0.7),
    ),
    "gap": _varied(
        *("gap", "g", "AdaNeg, sweep of g", "the gap g between the thresholds"),
        (0.0, 0.01, 0.1, 0.2, 0.3, 0.5),
    ),
    "memory": _varied(
        *("memory_length", "L", "AdaNeg, sweep of L"),
        "the memory length L (a row caches L - 1 images)",
        (1, 2, 3, 5, 10, 20, 30),
    ),
    "ratio": Target(
        "ID:OOD ratios from 1:100 to 100:1, with and without AdaGap",
        "AdaNeg, uneven streams (ImageNet against SUN)",
        tuple(
            replace(row, setting=f"ID:OOD {ids}:{oods}", ratio=(ids, oods))
            for ids, oods in ((1, 100), (1, 10), (1, 1), (10, 1), (100, 1))
            for row in (*_UNEVEN, _adaneg("AdaNeg + AdaGap", adagap=True))
        ),
        protocols=("imagenet_vs_sun",),
        varies="ID images per OOD image",
    ),
    "samples": Target(
        "the number of test images, ID:OOD 5:4",
        "AdaNeg, number of test samples",
        _UNEVEN,
        sizes=True,
        varies="test images",
    ),
    "backbones": Target(
        "one row per backbone; give --features NAME=PATH for each",
        "AdaNeg, backbones (RN50, ViT-B/32, ViT-B/16, ViT-L/14)",
        _ZERO_SHOT,
        protocols=_FOUR_OR_OPENOOD,
        several=True,
    ),
    "prompts": Target(
        "on other text; give --features NegPrompt=PATH, LAPT=PATH, CSP=PATH ...",
        "AdaNeg, on top of NegPrompt and LAPT; CSP's negatives",
        (
            replace(_NEGLABEL, figures=(("{label}", "log"), ("{label}", "published"))),
            _ADANEG,
            _adaneg("AdaNeg (first come)", ("{label}+AdaNeg", "log"), **_FIRST),
            _SAMPLE,
        ),
        protocols=_FOUR_OR_OPENOOD,
        several=True,
    ),
    "isor": Target(
        "how near static negatives and adaptive proxies lie to OOD and to ID images",
        "AdaNeg, ID-similarity to OOD-similarity ratio",
        geometry="isor",
    ),
    "tsne": Target(
        "a plane with images, static negatives and adaptive proxies (t-SNE)",
        "AdaNeg, t-SNE figure",
        geometry="tsne",
    ),
}
