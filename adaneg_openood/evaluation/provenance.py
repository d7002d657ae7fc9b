"""What a run was made of: protocol, sets, settings, and digests of the features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from adaneg_openood._version import __version__
from adaneg_openood.data.feature_set import FeatureSet
from adaneg_openood.evaluation.streams import Detector, Protocol
from adaneg_openood.io.digests import digest_of, tensor_digest

_DIGITS = 16  # hex digits of a digest


@dataclass(frozen=True, eq=False)
class About:
    """All that a run's scores depend on.

    Attributes:
        protocol: how images were met.
        splits: OOD set -> ``"near"`` or ``"far"``, in the order of tables.
        n_classes: C.
        names: C + M label names, or None.
        settings: method -> class and settings of its detector, as JSON values.
        states: method -> digest of what its detector holds before a stream, such as text features; None
            for a detector that does not tell its settings or its state.
        data: sizes and digests: ``text`` (C + M rows), ``negatives`` (M rows), ``id`` and each OOD set.
        made_with: versions of this package and of torch, and the kind of device.
        given_orders: OOD set -> an order over concat(OOD, ID) in place of the seeds'.
        provenance: what the caller knows besides, as JSON values.
    """

    protocol: Protocol
    splits: Mapping[str, str]
    n_classes: int
    names: tuple[str, ...] | None
    settings: Mapping[str, Mapping[str, Any]]
    states: Mapping[str, str | None]
    data: Mapping[str, Mapping[str, Any]]
    made_with: Mapping[str, str]
    given_orders: Mapping[str, np.ndarray] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def key(self, method: str, dataset: str, seed: int) -> str:
        """Of one stream's scores: the same key, the same scores."""
        how = {key: value for key, value in asdict(self.protocol).items() if key != "seeds"}
        order = self.given_orders.get(dataset)
        return digest_of(
            {
                "settings": self.settings[method],
                "state": self.states[method],
                "text": self.data["text"],
                "id": self.data["id"],
                "ood": self.data[f"{self.splits[dataset]}/{dataset}"],
                "protocol": how,
                "seed": seed,
                "order": None if order is None else np.asarray(order).tolist(),
                "made with": self.made_with,
            }
        )


def about_run(
    data: FeatureSet,
    detectors: Mapping[str, Detector],
    protocol: Protocol,
    given_orders: Mapping[str, np.ndarray],
    device: torch.device | str | None,
    provenance: Mapping[str, Any],
) -> About:
    """See :class:`About`."""
    place = data.id_features.device if device is None else torch.device(device)
    return About(
        protocol=protocol,
        splits={**dict.fromkeys(data.near, "near"), **dict.fromkeys(data.far, "far")},
        n_classes=data.n_id,
        names=data.names,
        settings={name: settings_of(detector) for name, detector in detectors.items()},
        states={name: _state_of(detector) for name, detector in detectors.items()},
        data=describe_data(data),
        made_with={
            "adaneg_openood": __version__,
            "torch": torch.__version__,
            "device": place.type,
        },
        given_orders=given_orders,
        provenance=provenance,
    )


def settings_of(detector: Any) -> dict[str, Any]:
    """Class and settings of a detector, as JSON values."""
    tell = getattr(detector, "settings", None)
    scale = getattr(detector, "logit_scale", None)
    return {
        "class": type(detector).__name__,
        **({} if scale is None else {"logit_scale": float(scale)}),
        **(tell() if callable(tell) else {}),
    }


def _state_of(detector: Any) -> str | None:
    """Digest of a detector after its reset."""
    if not all(callable(getattr(detector, name, None)) for name in ("settings", "state_dict")):
        return None
    detector.reset()
    digests = {name: tensor_digest(part) for name, part in detector.state_dict().items()}
    return digest_of(digests)


def describe_data(data: FeatureSet) -> dict[str, dict[str, Any]]:
    """Sizes and digests of the parts of a feature set."""
    text = data.text_features
    labels = tensor_digest(data.id_labels)
    found = {
        "text": {**_rows(text), "logit_scale": float(data.logit_scale), "n_id": data.n_id},
        "negatives": _rows(text[data.n_id :]),
        "id": {**_rows(data.id_features), "labels": labels[:_DIGITS]},
    }
    for split in ("near", "far"):
        for name, part in getattr(data, split).items():
            found[f"{split}/{name}"] = _rows(part)
    return found


def _rows(features: torch.Tensor) -> dict[str, Any]:
    return {"rows": len(features), "sha256": tensor_digest(features)[:_DIGITS]}
