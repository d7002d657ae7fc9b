"""What can be reproduced: for each target its rows, its settings and the published figures it meets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Callable

from adaneg_openood.detectors import MCM, AdaNeg, AdaNegConfig, NegLabel
from adaneg_openood.evaluation import FeatureSet
from adaneg_openood.evaluation.streams import Detector
from adaneg_openood.reproduce.subsets import draw_ratio, draw_total, totals
from adaneg_openood.reproduce.trials import Draw, ProxySum, Trial

Plan = Callable[[FeatureSet, AdaNegConfig, str], list[Trial]]

GAMMAS = (0.3, 0.4, 0.5, 0.6, 0.7)
GAPS = (0.0, 0.01, 0.1, 0.2, 0.3, 0.5)
MEMORY_LENGTHS = (1, 2, 3, 5, 10, 20, 30)
RATIOS = ((1, 100), (1, 10), (1, 1), (10, 1), (100, 1))
_ADANEG = (
    ("AdaNeg", "published"),
    ("AdaNeg", "released log (task-adaptive"),
    ("AdaNeg first", "independent"),
)
_PAPER_GROUPS = 100  # of NegLabel's own ImageNet results


@dataclass(frozen=True)
class Target:
    """One table or figure.

    Attributes:
        title: one line for people.
        source: where it stands in the papers.
        plan: (features, base settings, their label) -> the rows.
        protocols: of the published figures; the one whose OOD sets are there is taken. Empty where
            the list has no figure.
        config: settings it was published with, before what the caller changes.
        batch_size: images a batch.
        several: whether it compares feature sets, given as ``NAME=PATH``.
        varies: the name of the axis of its plot; empty where it is a table only.
        geometry: ``"isor"`` or ``"tsne"`` where it measures proxies and not detection.
    """

    title: str
    source: str
    plan: Plan
    protocols: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 256
    several: bool = False
    varies: str = ""
    geometry: str = ""


def adaneg_trial(
    method: str, config: AdaNegConfig, setting: str = "", value: float | None = None, **more: Any
) -> Trial:
    """A row that AdaNeg fills. Fewer negatives than groups: as many groups as there are negatives."""

    def make(data: FeatureSet) -> Detector:
        groups = min(config.groups, len(data.text_features) - data.n_id)
        return AdaNeg(data.text_features, data.n_id, data.logit_scale, replace(config, groups=groups))

    return Trial(method, make, setting, value, **more)


def neglabel_trial(method: str, groups: int, **more: Any) -> Trial:
    """A row that NegLabel fills."""

    def make(data: FeatureSet) -> Detector:
        possible = min(groups, len(data.text_features) - data.n_id)
        return NegLabel(data.text_features, data.n_id, possible, logit_scale=data.logit_scale)

    return Trial(method, make, **more)


def _mcm(**more: Any) -> Trial:
    return Trial("MCM", lambda data: MCM(data.text_features, data.n_id), **more)


def _first(config: AdaNegConfig, **changed: Any) -> AdaNegConfig:
    """As the released implementation runs in half precision, where published figures come from."""
    return AdaNegConfig.released(**{**vars(config), "replacement": "first", **changed})


def _imagenet(data: FeatureSet, base: AdaNegConfig, label: str) -> list[Trial]:
    """MCM, NegLabel and AdaNeg under both replacement policies and with both proxies."""
    trials = [_mcm(published=(("MCM", "published"), ("MCM", "independent run (tau 1")))]
    grouped = (("NegLabel", "published"), ("NegLabel", "independent run (G=100)"))
    if len(data.text_features) - data.n_id >= _PAPER_GROUPS:
        trials.append(
            neglabel_trial(f"NegLabel (G = {_PAPER_GROUPS})", _PAPER_GROUPS, published=grouped)
        )
    entropy = (("AdaNeg entropy", "independent"),)
    by_image = (("AdaNeg", "released log (sample-adaptive"),)
    return [
        *trials,
        neglabel_trial(f"NegLabel (G = {base.groups})", base.groups),
        adaneg_trial("AdaNeg", base, published=entropy),
        adaneg_trial("AdaNeg (first come)", _first(base), published=_ADANEG),
        adaneg_trial("AdaNeg (sample)", replace(base, proxy="sample")),
        adaneg_trial("AdaNeg (sample, first come)", _first(base, proxy="sample"), published=by_image),
    ]


def _cifar(data: FeatureSet, base: AdaNegConfig, label: str) -> list[Trial]:
    """Each with and without AdaGap; the released variant adds S_nl at full weight."""
    return [
        _mcm(),
        neglabel_trial("NegLabel", base.groups),
        adaneg_trial("AdaNeg", replace(base, adagap=False)),
        adaneg_trial("AdaNeg (sample)", replace(base, adagap=False, proxy="sample")),
        adaneg_trial("AdaNeg + AdaGap", replace(base, adagap=True)),
        adaneg_trial(
            "AdaNeg + AdaGap (as released)", AdaNegConfig.released(**{**vars(base), "adagap": True})
        ),
    ]


def _bimcv(data: FeatureSet, base: AdaNegConfig, label: str) -> list[Trial]:
    """One row a method; the label of the features (nice, simple) says which prompt they carry."""
    prompt = "nice" if "nice" in label.lower() else "simple"
    figures = ((f"AdaNeg {prompt}", ""),)
    return [
        _mcm(),
        neglabel_trial("NegLabel", base.groups),
        adaneg_trial("AdaNeg", base),
        adaneg_trial("AdaNeg (first come)", _first(base), published=figures),
        adaneg_trial("AdaNeg (sample)", replace(base, proxy="sample")),
    ]


def _scores(data: FeatureSet, base: AdaNegConfig, label: str) -> list[Trial]:
    """Every score alone and combined, from banks that are the same."""

    def row(name: str, proxy: str, score: str, **more: Any) -> Trial:
        return adaneg_trial(name, replace(base, proxy=proxy, score=score), **more)

    def both(name: str, lam: float) -> Trial:
        return Trial(name, lambda data: ProxySum(data, _grouped(base, data), lam))

    return [
        row("S_nl", "task", "neglabel"),
        row("S_ta", "task", "adaptive"),
        row("S_sa", "sample", "adaptive"),
        row("S_ta + lambda S_nl", "task", "combine", published=(("AdaNeg entropy", "independent"),)),
        row("S_sa + lambda S_nl", "sample", "combine"),
        row("S_ta x S_nl", "task", "multiply"),
        row("S_sa x S_nl", "sample", "multiply"),
        both("S_ta + S_sa", 0.0),
        both("S_ta + S_sa + lambda S_nl", base.lam),
    ]


def _varied(name: str, symbol: str, values: Sequence[float]) -> Plan:
    """AdaNeg with one setting varied, both proxies, and NegLabel, which does not have it."""

    def plan(data: FeatureSet, base: AdaNegConfig, label: str) -> list[Trial]:
        default = getattr(AdaNegConfig(), name)
        figures = (("AdaNeg entropy", "independent"),)
        trials = [neglabel_trial("NegLabel", base.groups)]
        for method, proxy in (("AdaNeg", "task"), ("AdaNeg (sample)", "sample")):
            for value in values:
                config = AdaNegConfig(**{**vars(base), "proxy": proxy, name: value})
                known = figures if value == default and proxy == "task" else ()
                trials.append(
                    adaneg_trial(method, config, f"{symbol} = {value:g}", float(value), published=known)
                )
        return trials

    return plan


def _uneven(setting: str, value: float, draw: Draw, base: AdaNegConfig, with_gap: bool) -> list[Trial]:
    common: dict[str, Any] = {
        "setting": setting,
        "value": value,
        "draw": draw,
        "published_setting": setting,
    }
    trials = [
        neglabel_trial("NegLabel", base.groups, published=(("NegLabel", "comparison"),), **common),
        adaneg_trial(
            "AdaNeg", replace(base, adagap=False), published=(("AdaNeg", "comparison"),), **common
        ),
    ]
    if with_gap:
        trials.append(adaneg_trial("AdaNeg + AdaGap", replace(base, adagap=True), **common))
    return trials


def _ratio(data: FeatureSet, base: AdaNegConfig, label: str) -> list[Trial]:
    return [
        trial
        for ids, oods in RATIOS
        for trial in _uneven(f"ID:OOD {ids}:{oods}", ids / oods, draw_ratio(ids, oods), base, True)
    ]


def _samples(data: FeatureSet, base: AdaNegConfig, label: str) -> list[Trial]:
    smallest = min(len(part) for part in (*data.near.values(), *data.far.values()))
    return [
        trial
        for total in totals(len(data.id_features), smallest)
        for trial in _uneven(f"n = {total}", float(total), draw_total(total), base, False)
    ]


def _compared(data: FeatureSet, base: AdaNegConfig, label: str) -> list[Trial]:
    """NegLabel and AdaNeg on each feature set."""
    plain, adapted = (label, f"{label}+AdaNeg")
    return [
        neglabel_trial("NegLabel", base.groups, published=((plain, "log"), (plain, "published"))),
        adaneg_trial("AdaNeg", base),
        adaneg_trial("AdaNeg (first come)", _first(base), published=((adapted, "log"),)),
        adaneg_trial("AdaNeg (sample)", replace(base, proxy="sample")),
    ]


def _backbone(data: FeatureSet, base: AdaNegConfig, label: str) -> list[Trial]:
    return [trial for trial in _imagenet(data, base, label) if "sample" not in trial.method]


def _grouped(base: AdaNegConfig, data: FeatureSet) -> AdaNegConfig:
    return replace(base, groups=min(base.groups, len(data.text_features) - data.n_id))


def _none(data: FeatureSet, base: AdaNegConfig, label: str) -> list[Trial]:
    return []


_IMAGENET = ("four_ood", "openood_imagenet")
_CIFAR = {"groups": 1, "adagap": True}
TARGETS: dict[str, Target] = {
    "four-ood": Target(
        "ImageNet against iNaturalist, SUN, Places and Textures",
        "AdaNeg, main table (four OOD sets); NegLabel, main table",
        _imagenet,
        protocols=("four_ood",),
    ),
    "openood-imagenet": Target(
        "ImageNet in OpenOOD: near (SSB-hard, NINCO) and far (iNaturalist, Textures, OpenImage-O)",
        "AdaNeg, OpenOOD table",
        _imagenet,
        protocols=("openood_imagenet",),
    ),
    "cifar10": Target(
        "CIFAR-10 in OpenOOD, with and without AdaGap (batch 32, one group)",
        "AdaNeg, CIFAR table",
        _cifar,
        config=_CIFAR,
        batch_size=32,
    ),
    "cifar100": Target(
        "CIFAR-100 in OpenOOD, with and without AdaGap (batch 32, one group)",
        "AdaNeg, CIFAR table",
        _cifar,
        config=_CIFAR,
        batch_size=32,
    ),
    "bimcv": Target(
        "BIMCV-COVID19+ against CT scans and bone X-rays (gap 0); features named nice or simple",
        "AdaNeg, medical images",
        _bimcv,
        protocols=("bimcv",),
        config={"gap": 0.0},
        several=True,
    ),
    "scores": Target(
        "S_nl, S_ta, S_sa and their combinations",
        "AdaNeg, ablation of scores",
        _scores,
        protocols=_IMAGENET,
    ),
    "gamma": Target(
        "the centre gamma of the thresholds",
        "AdaNeg, sweep of gamma",
        _varied("gamma", "gamma", GAMMAS),
        protocols=_IMAGENET,
        varies="gamma",
    ),
    "gap": Target(
        "the gap g between the thresholds",
        "AdaNeg, sweep of g",
        _varied("gap", "g", GAPS),
        protocols=_IMAGENET,
        varies="gap g",
    ),
    "memory": Target(
        "the memory length L (a row caches L - 1 images)",
        "AdaNeg, sweep of L",
        _varied("memory_length", "L", MEMORY_LENGTHS),
        protocols=_IMAGENET,
        varies="memory length L",
    ),
    "ratio": Target(
        "ID:OOD ratios from 1:100 to 100:1, with and without AdaGap",
        "AdaNeg, uneven streams (ImageNet against SUN)",
        _ratio,
        protocols=("imagenet_vs_sun",),
        varies="ID images per OOD image",
    ),
    "samples": Target(
        "the number of test images, ID:OOD 5:4",
        "AdaNeg, number of test samples",
        _samples,
        varies="test images",
    ),
    "backbones": Target(
        "one row a backbone; give --features NAME=PATH for each",
        "AdaNeg, backbones (RN50, ViT-B/32, ViT-B/16, ViT-L/14)",
        _backbone,
        protocols=_IMAGENET,
        several=True,
    ),
    "prompts": Target(
        "on top of other prompts; give --features NegPrompt=PATH, LAPT=PATH ...",
        "AdaNeg, on top of NegPrompt and LAPT",
        _compared,
        protocols=_IMAGENET,
        several=True,
    ),
    "isor": Target(
        "how near static negatives and adaptive proxies lie to OOD and to ID images",
        "AdaNeg, ID-similarity to OOD-similarity ratio",
        _none,
        geometry="isor",
    ),
    "tsne": Target(
        "a plane with images, static negatives and adaptive proxies (t-SNE)",
        "AdaNeg, t-SNE figure",
        _none,
        geometry="tsne",
    ),
}
