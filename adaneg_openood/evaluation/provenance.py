"""What a run was made of: protocol, sets, settings, and digests of the features."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adaneg_openood._version import __version__
from adaneg_openood.data.feature_set import FeatureSet
from adaneg_openood.evaluation.streams import SPLITS, Detector, Protocol
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
    given_orders: Mapping[str, np.ndarray]
    provenance: Mapping[str, Any]

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

    def sizes(self, dataset: str) -> tuple[int, int]:
        """How many ID and OOD images there are for a set's streams."""
        return self.data["id"]["rows"], self.data[f"{self.splits[dataset]}/{dataset}"]["rows"]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        orders = {name: np.asarray(order).tolist() for name, order in self.given_orders.items()}
        return {**asdict(self), "given_orders": orders}


def about_run(
    data: FeatureSet,
    detectors: Mapping[str, Detector],
    protocol: Protocol,
    given_orders: Mapping[str, np.ndarray],
    device: torch.device | str | None,
    provenance: Mapping[str, Any],
) -> About:
    """See :class:`About`.

    Raises:
        ValueError: a name, or something in ``provenance``, that a file cannot hold.
    """
    if device is None:  # detectors score where they are, and take features there
        at = [one.text_features.device for one in detectors.values() if hasattr(one, "text_features")]
        device = at[0] if at else data.id_features.device
    _as_read("names of methods and sets", [*detectors, *data.near, *data.far])
    return About(
        protocol=protocol,
        splits={**dict.fromkeys(data.near, "near"), **dict.fromkeys(data.far, "far")},
        n_classes=data.n_id,
        names=data.names,
        settings={name: settings_of(detector) for name, detector in detectors.items()},
        states={name: _state_of(detector) for name, detector in detectors.items()},
        data=describe_data(data),
        made_with=made_with(device),
        given_orders=given_orders,
        provenance=_as_read("provenance", dict(provenance)),
    )


def _as_read(what: str, value: Any) -> Any:
    """JSON values as they come back from a file: with texts for keys, and lists for tuples."""
    try:
        return json.loads(json.dumps(value, ensure_ascii=False, allow_nan=False).encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{what} must be JSON values in UTF-8, and are not: {error}") from error


def made_with(device: torch.device | str) -> dict[str, str]:
    """What numbers depend on besides data and settings, to the last bit."""
    kind = torch.device(device).type
    return {"adaneg_openood": __version__, "torch": torch.__version__, "device": kind}


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
    text, labels = data.text_features, tensor_digest(data.id_labels)
    return {
        "text": {**_rows(text), "logit_scale": float(data.logit_scale), "n_id": data.n_id},
        "negatives": _rows(text[data.n_id :]),
        "id": {**_rows(data.id_features), "labels": labels[:_DIGITS]},
        **{f"near/{name}": _rows(part) for name, part in data.near.items()},
        **{f"far/{name}": _rows(part) for name, part in data.far.items()},
    }


def _rows(features: torch.Tensor) -> dict[str, Any]:
    return {"rows": len(features), "sha256": tensor_digest(features)[:_DIGITS]}


def checked_about(index: Path, value: Any) -> About:
    """The head of a saved run, which a stranger may have written.

    Raises:
        ValueError: something in it cannot be; the message names the file and the key.
    """

    def need(good: Any, key: str, what: str) -> None:
        if not good:
            raise ValueError(f"{index}: {key} must be {what}; run the evaluation again")

    names = [one.name for one in fields(About)]
    need(isinstance(value, dict) and set(value) == {*names}, "about", f"an object of {', '.join(names)}")
    for key in {*names} - {"n_classes", "names"}:
        need(isinstance(value[key], dict), key, "an object")
    try:
        ratio = value["protocol"].get("ratio")
        protocol = Protocol(**{**value["protocol"], "ratio": ratio and tuple(ratio)})
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise ValueError(f"{index}: protocol: {error}") from error
    splits, settings, data, states = (value[key] for key in ("splits", "settings", "data", "states"))
    need(splits and all(of in SPLITS for of in splits.values()), "splits", "OOD set -> near or far")
    for key in ("settings", "data"):
        parts = value[key].values()
        need(parts and all(isinstance(one, dict) for one in parts), key, "an object of objects")
    for part in ("text", "negatives", "id", *(f"{of}/{name}" for name, of in splits.items())):
        rows = data.get(part, {}).get("rows")
        need(type(rows) is int and rows >= 0, f"data of {part}", "there, with its number of rows")
    n_classes, n_rows = value["n_classes"], data["text"]["rows"]
    need(type(n_classes) is int and 1 <= n_classes <= n_rows, "n_classes", f"in [1, {n_rows}]")
    digests = all(one is None or isinstance(one, str) for one in states.values())
    need(digests and set(states) == set(settings), "states", "one digest per method")
    labels = value["names"]
    if labels is not None:
        texts = isinstance(labels, list) and all(isinstance(one, str) for one in labels)
        need(texts and len(labels) == n_rows, "names", f"{n_rows} texts, one per text row")
    orders = value["given_orders"]
    need(set(orders) <= set(splits), "given_orders", "of the run's sets")
    for name, order in orders.items():
        whole = list(range(data["id"]["rows"] + data[f"{splits[name]}/{name}"]["rows"]))
        rows = isinstance(order, list) and all(type(row) is int for row in order)
        need(rows and sorted(order) == whole, f"given_orders of {name}", "every image's index once")
    made: dict[str, Any] = {
        "protocol": protocol,
        "names": labels and tuple(labels),
        "given_orders": {name: np.asarray(order) for name, order in orders.items()},
    }
    return About(**{**value, **made})
