"""Published figures, as facts with sources, and when ours may be held against them.

``published.csv`` holds one figure a row, in percent. FPR95 has a column a convention
(``fpr95_ood_positive``, ``fpr95_id_positive``) and one for figures whose source does not say which
(``fpr95_unstated``); the three never mix, and no difference is taken from the third. ``source`` is
``published`` (printed in the paper that proposes or compares the method), ``released log`` (shipped
with the released implementation), ``independent run`` (measured anew on the same data) or
``quoted by ...``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from adaneg_openood.data.feature_set import FeatureSet
from adaneg_openood.reproduce.targets import Row

if TYPE_CHECKING:
    import pandas as pd

FIGURES = ("fpr95_ood_positive", "fpr95_id_positive", "fpr95_unstated", "auroc", "id_acc")
KEYS = ("method", "protocol", "setting", "dataset", "backbone")
_ALIASES = {"places365": "places", "dtd": "textures", "texture": "textures", "sun397": "sun"}
_ENOUGH = 0.9  # of the protocol's ID images; a few may be unreadable


@dataclass(frozen=True)
class PublishedProtocol:
    """What data published figures ran on: C, normalised names of OOD sets, and sizes of the ID test set.

    OpenOOD holds some ID images out, so several sizes count as the same; empty where none is known.
    """

    n_classes: int
    near: tuple[str, ...] = ()
    far: tuple[str, ...] = ()
    id_images: tuple[int, ...] = (50_000, 45_000)


PROTOCOLS = {
    "four_ood": PublishedProtocol(1000, far=("inaturalist", "sun", "places", "textures")),
    "openood_imagenet": PublishedProtocol(
        1000, near=("ssbhard", "ninco"), far=("inaturalist", "textures", "openimageo")
    ),
    "imagenet_vs_sun": PublishedProtocol(1000, far=("sun",)),
    "bimcv": PublishedProtocol(2, far=("ct", "xraybone"), id_images=()),
}


def load_published() -> pd.DataFrame:
    """The figures: columns :data:`KEYS` as text, :data:`FIGURES` float64 (NaN = not given), source."""
    import pandas as pd

    text = [*KEYS, "source"]
    with files("adaneg_openood.reproduce").joinpath("published.csv").open("r", encoding="utf-8") as file:
        frame = pd.read_csv(file, dtype=dict.fromkeys(text, "str"))
    frame[text] = frame[text].fillna("")
    frame[list(FIGURES)] = frame[list(FIGURES)].astype("float64")
    return frame


def set_name(name: str) -> str:
    """A dataset's name without case, spaces and punctuation, and one spelling of it.

    Example:
        >>> set_name("SSB_hard"), set_name("Places365")
        ('ssbhard', 'places')
    """
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return _ALIASES.get(plain, plain)


def select_protocol(protocols: Sequence[str], data: FeatureSet) -> tuple[str, FeatureSet, list[str]]:
    """The protocol whose OOD sets are there, the data cut to them, and what still sets it apart.

    If no protocol's sets are all there, the first one is named and the data stays as it is.

    Returns:
        Protocol, data, and what differs; figures may be compared where nothing does. The backbone
        cannot be read off features: whoever runs this names it.
    """
    have = {set_name(name): features for name, features in {**data.near, **data.far}.items()}
    for protocol in protocols:
        want = PROTOCOLS[protocol]
        if not set((*want.near, *want.far)) - set(have):
            # one OOD set may be near to one protocol and far to another
            near, far = ({name: have[name] for name in names} for names in (want.near, want.far))
            return protocol, replace(data, near=near, far=far), _apart(want, data)
    want = PROTOCOLS[protocols[0]]
    missing = [name for name in (*want.near, *want.far) if name not in have]
    return protocols[0], data, [*_apart(want, data), f"no OOD set {', '.join(missing)}"]


def _apart(want: PublishedProtocol, data: FeatureSet) -> list[str]:
    found: list[str] = []
    if data.n_id != want.n_classes:
        found.append(f"{data.n_id} ID classes, not {want.n_classes}")
    n_images = len(data.id_features)
    if want.id_images and n_images < _ENOUGH * min(want.id_images):
        found.append(f"{n_images} ID images, not {want.id_images[0]}")
    return found


# ours -> how it is called here, and the column of published.csv; unstated ones have no counterpart
PAIRS = {
    "FPR@95": ("FPR95 OOD+", "fpr95_ood_positive"),
    "FPR@95 (ID positive)": ("FPR95 ID+", "fpr95_id_positive"),
    "AUROC": ("AUROC", "auroc"),
    "ACC": ("ACC", "id_acc"),
}
COLUMNS = (
    *("features", "method", "setting", "dataset"),
    *(
        f"{short} {which}"
        for short, _ in PAIRS.values()
        for which in ("ours", "published", "difference")
    ),
    *("FPR95 unstated published", "n_id", "n_ood", "source", "difference_taken"),
)


def beside_published(
    table: pd.DataFrame, label: str, rows: Sequence[Row], protocol: str, comparable: bool, backbone: str
) -> list[dict[str, Any]]:
    """Our numbers and the published ones, one row per figure; keys :data:`COLUMNS`.

    Args:
        table: of :func:`~adaneg_openood.reproduce.result.summarised`.
        label: of the features. One that is itself a published backbone goes before ``backbone``.
        rows: that the features allow.
        protocol: of published.csv.
        comparable: whether data and settings are those of the protocol. Where not, the figures are
            listed for orientation, without numbers of ours and without a difference.
        backbone: of the features; figures of other backbones are left out.
    """
    published = load_published()
    name = label if label in set(published["backbone"]) else backbone
    figures = published[(published["protocol"] == protocol) & (published["backbone"] == name)]
    found = []
    for row in rows:
        of_row = {"features": label, "method": row.method, "setting": row.setting}
        ours: dict[str, Any] = {}
        if comparable and not row.apart:
            mine = table.xs(tuple(of_row.values()), level=list(of_row))
            ours = {set_name(dataset): dict(values) for dataset, values in mine.iterrows()}
        for method, source in row.figures:
            chosen = figures[
                (figures["method"] == method)
                & figures["source"].str.contains(source, regex=False)
                & (figures["setting"].isin(["", row.setting]))
            ]
            for figure in chosen.to_dict("records"):
                met = ours.get(set_name(figure["dataset"]))
                beside: dict[str, Any] = {
                    **of_row,
                    "dataset": figure["dataset"],
                    "FPR95 unstated published": figure["fpr95_unstated"],
                    "n_id": None if met is None else int(met["n_id"]),
                    "n_ood": None if met is None else int(met["n_ood"]),
                    "source": f"{method}: {figure['source']}",
                    "difference_taken": met is not None,
                }
                for metric, (short, column) in PAIRS.items():
                    value = float("nan") if met is None else float(met[metric])
                    both = {"ours": value, "published": figure[column]}
                    both["difference"] = value - figure[column]
                    beside.update({f"{short} {of}": number for of, number in both.items()})
                found.append(beside)
    return found
