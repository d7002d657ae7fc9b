"""What can be reproduced, as data: for each target its rows, its settings and the published figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from adaneg_openood.data.feature_set import FeatureSet
from adaneg_openood.detectors import AdaNegConfig, TextDetector, default_settings, make_detector
from adaneg_openood.evaluation.subsets import Ratio, subset_sizes

GAMMAS = (0.3, 0.4, 0.5, 0.6, 0.7)
GAPS = (0.0, 0.01, 0.1, 0.2, 0.3, 0.5)
MEMORY_LENGTHS = (1, 2, 3, 5, 10, 20, 30)
RATIOS = ((1, 100), (1, 10), (1, 1), (10, 1), (100, 1))
SAMPLES_RATIO = (5, 4)
_SIZES = (90, 180, 450, 900, 1_800, 4_500, 9_000, 18_000, 45_000, 90_000)
_SHARED = ("groups", "permute")  # settings of the target that methods besides AdaNeg take as well


@dataclass(frozen=True)
class Row:
    """One row of a table: a method with settings, on some images.

    Attributes:
        method: name of the row; may hold ``{groups}``.
        detector: a key of :data:`~adaneg_openood.detectors.DETECTORS`.
        settings: over the target's own. ``released`` stands for ``AdaNegConfig.released``.
        setting: what is varied, such as ``"gamma = 0.3"``; empty where nothing is.
        ratio, n_images: which images are met, see :class:`~adaneg_openood.evaluation.Protocol`.
        figures: (method, part of the source) pairs of published figures under the same settings; may
            hold ``{label}``, the name of the features, and ``{prompt}``, nice or simple.
        apart: what else sets the figures apart from this row, so that no difference is taken.
        negatives: least number of negative labels it needs.
        sum_of: rows of the same target whose adaptive scores are added, with ``lam`` times the first
            one's NegLabel score, in place of a detector of its own.
        lam: see ``sum_of``; None takes the target's.
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
    sum_of: tuple[str, ...] = ()
    lam: float | None = None

    def build(self, data: FeatureSet, base: Mapping[str, Any]) -> TextDetector:
        """The detector over a benchmark's labels; with fewer negatives than groups, one group each.

        Args:
            data: its text features.
            base: AdaNeg's settings of the target.
        """
        known = default_settings(self.detector)
        wanted = base if self.detector == "adaneg" else {key: base[key] for key in _SHARED}
        settings = {**{key: value for key, value in wanted.items() if key in known}, **self.settings}
        if settings.pop("released", False):
            settings = vars(AdaNegConfig.released(**settings))
        if "groups" in settings:
            most = len(data.text_features) - data.n_id
            settings = {**settings, "groups": min(settings["groups"], most)}
        return make_detector(self.detector, data.text_features, data.n_id, data.logit_scale, settings)


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
        lengths = totals(len(data.id_features), smallest)
        return [
            replace(row, setting=f"n = {n}", ratio=SAMPLES_RATIO, n_images=n)
            for n in lengths
            for row in rows
        ]


def totals(n_id: int, n_ood: int) -> list[int]:
    """Stream lengths at 5:4 that this many images allow, 90 and upwards, the largest one last.

    Example:
        >>> totals(300, 150)
        [90, 180, 337]
    """
    most = sum(subset_sizes(n_id, n_ood, SAMPLES_RATIO))
    return [*(size for size in _SIZES if size < most), most]


_FIRST = {"replacement": "first", "released": True}  # half precision, where published figures come from
_ENTROPY = (("AdaNeg entropy", "independent"),)
_MCM = Row("MCM", "mcm")
_NEGLABEL = Row("NegLabel", "neglabel")
_ADANEG = Row("AdaNeg")
_SAMPLE = Row("AdaNeg (sample)", settings={"proxy": "sample"})
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
    replace(_ADANEG, figures=_ENTROPY),
    Row(
        "AdaNeg (first come)",
        settings=_FIRST,
        figures=(
            ("AdaNeg", "published"),
            ("AdaNeg", "released log (task-adaptive"),
            ("AdaNeg first", "independent"),
        ),
    ),
)
_IMAGENET = (
    *_ZERO_SHOT,
    _SAMPLE,
    Row(
        "AdaNeg (sample, first come)",
        settings={**_FIRST, "proxy": "sample"},
        figures=(("AdaNeg", "released log (sample-adaptive"),),
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
    Row("AdaNeg", settings={"adagap": False}),
    Row("AdaNeg (sample)", settings={"adagap": False, "proxy": "sample"}),
    Row("AdaNeg + AdaGap", settings={"adagap": True}),
    # the released variant adds S_nl at full weight
    Row("AdaNeg + AdaGap (as released)", settings={"adagap": True, "released": True}),
)


def _scored(method: str, proxy: str, score: str, **more: Any) -> Row:
    return Row(method, settings={"proxy": proxy, "score": score}, **more)


_SCORES = (
    _scored("S_nl", "task", "neglabel"),
    _scored("S_ta", "task", "adaptive"),
    _scored("S_sa", "sample", "adaptive"),
    _scored("S_ta + lambda S_nl", "task", "combine", figures=_ENTROPY),
    _scored("S_sa + lambda S_nl", "sample", "combine"),
    _scored("S_ta x S_nl", "task", "multiply"),
    _scored("S_sa x S_nl", "sample", "multiply"),
    Row("S_ta + S_sa", sum_of=("S_ta", "S_sa"), lam=0.0),
    Row("S_ta + S_sa + lambda S_nl", sum_of=("S_ta", "S_sa")),
)


def _varied(name: str, symbol: str, values: tuple[float, ...]) -> tuple[Row, ...]:
    """AdaNeg with one setting varied, both proxies, and NegLabel, which does not have it."""
    published = getattr(AdaNegConfig(), name)
    return (
        _NEGLABEL,
        *(
            Row(
                row.method,
                settings={**row.settings, name: value},
                setting=f"{symbol} = {value:g}",
                figures=_ENTROPY if value == published and row is _ADANEG else (),
            )
            for row in (_ADANEG, _SAMPLE)
            for value in values
        ),
    )


_UNEVEN = (
    replace(_NEGLABEL, figures=(("NegLabel", "comparison"),)),
    replace(_ADANEG, settings={"adagap": False}, figures=(("AdaNeg", "comparison"),)),
)
_WITH_GAP = Row("AdaNeg + AdaGap", settings={"adagap": True})
_PROTOCOLS = ("four_ood", "openood_imagenet")
_CIFAR_CONFIG = {"groups": 1, "adagap": True}
_OWN_FIRST = replace(_ADANEG, method="AdaNeg (first come)", settings=_FIRST)

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
    "cifar10": Target(
        "CIFAR-10 in OpenOOD, with and without AdaGap (batch 32, one group)",
        "AdaNeg, CIFAR table",
        _CIFAR,
        config=_CIFAR_CONFIG,
        batch_size=32,
    ),
    "cifar100": Target(
        "CIFAR-100 in OpenOOD, with and without AdaGap (batch 32, one group)",
        "AdaNeg, CIFAR table",
        _CIFAR,
        config=_CIFAR_CONFIG,
        batch_size=32,
    ),
    "bimcv": Target(
        "BIMCV-COVID19+ against CT scans and bone X-rays (gap 0); features named nice or simple",
        "AdaNeg, medical images",
        (
            _MCM,
            _NEGLABEL,
            _ADANEG,
            replace(_OWN_FIRST, figures=(("AdaNeg {prompt}", ""),)),
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
        protocols=_PROTOCOLS,
    ),
    "gamma": Target(
        "the centre gamma of the thresholds",
        "AdaNeg, sweep of gamma",
        _varied("gamma", "gamma", GAMMAS),
        protocols=_PROTOCOLS,
        varies="gamma",
    ),
    "gap": Target(
        "the gap g between the thresholds",
        "AdaNeg, sweep of g",
        _varied("gap", "g", GAPS),
        protocols=_PROTOCOLS,
        varies="gap g",
    ),
    "memory": Target(
        "the memory length L (a row caches L - 1 images)",
        "AdaNeg, sweep of L",
        _varied("memory_length", "L", MEMORY_LENGTHS),
        protocols=_PROTOCOLS,
        varies="memory length L",
    ),
    "ratio": Target(
        "ID:OOD ratios from 1:100 to 100:1, with and without AdaGap",
        "AdaNeg, uneven streams (ImageNet against SUN)",
        tuple(
            replace(row, setting=f"ID:OOD {ids}:{oods}", ratio=(ids, oods))
            for ids, oods in RATIOS
            for row in (*_UNEVEN, _WITH_GAP)
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
        protocols=_PROTOCOLS,
        several=True,
    ),
    "prompts": Target(
        "on other text; give --features NegPrompt=PATH, LAPT=PATH, CSP=PATH ...",
        "AdaNeg, on top of NegPrompt and LAPT; CSP's negatives",
        (
            replace(_NEGLABEL, figures=(("{label}", "log"), ("{label}", "published"))),
            _ADANEG,
            replace(_OWN_FIRST, figures=(("{label}+AdaNeg", "log"),)),
            _SAMPLE,
        ),
        protocols=_PROTOCOLS,
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
