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
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from adaneg_openood.evaluation import FeatureSet

if TYPE_CHECKING:
    import pandas as pd

FIGURES = ("fpr95_ood_positive", "fpr95_id_positive", "fpr95_unstated", "auroc", "id_acc")
KEYS = ("method", "protocol", "setting", "dataset", "backbone")
_ALIASES = {"places365": "places", "dtd": "textures", "texture": "textures", "sun397": "sun"}
_ENOUGH = 0.9  # of the protocol's ID images; a few may be unreadable


@dataclass(frozen=True)
class Protocol:
    """What data a published protocol runs on.

    Attributes:
        n_classes: C.
        id_images: sizes of the ID test set that count as the same (OpenOOD holds some out).
        sets: normalised names of its OOD sets.
    """

    n_classes: int
    id_images: tuple[int, ...]
    sets: tuple[str, ...]


PROTOCOLS = {
    "four_ood": Protocol(1000, (50_000, 45_000), ("inaturalist", "sun", "places", "textures")),
    "openood_imagenet": Protocol(
        1000, (45_000, 50_000), ("ssbhard", "ninco", "inaturalist", "textures", "openimageo")
    ),
    "imagenet_vs_sun": Protocol(1000, (50_000, 45_000), ("sun",)),
    "bimcv": Protocol(2, (), ("ct", "xraybone")),
}


def load_published() -> pd.DataFrame:
    """The figures: columns :data:`KEYS` as text, :data:`FIGURES` float64 (NaN = not given), source."""
    import pandas as pd

    text = dict.fromkeys((*KEYS, "source"), "str")
    with files("adaneg_openood.reproduce").joinpath("published.csv").open("r", encoding="utf-8") as file:
        frame = pd.read_csv(file, dtype=text)
    frame[[*KEYS, "source"]] = frame[[*KEYS, "source"]].fillna("")
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


def differences_of_setting(protocol: str, data: FeatureSet) -> list[str]:
    """What sets this data apart from a protocol's; empty if figures may be compared.

    The backbone cannot be read off features: whoever runs this names it.
    """
    want = PROTOCOLS[protocol]
    found: list[str] = []
    if data.n_id != want.n_classes:
        found.append(f"{data.n_id} ID classes, not {want.n_classes}")
    n_images = len(data.id_features)
    if want.id_images and n_images < _ENOUGH * min(want.id_images):
        found.append(f"{n_images} ID images, not {want.id_images[0]}")
    missing = missing_sets(want.sets, data)
    if missing:
        found.append(f"no OOD set {', '.join(missing)}")
    return found


def missing_sets(wanted: Sequence[str], data: FeatureSet) -> list[str]:
    """Those of the wanted normalised names that no OOD set bears."""
    have = {set_name(name) for name in (*data.near, *data.far)}
    return [name for name in wanted if name not in have]
