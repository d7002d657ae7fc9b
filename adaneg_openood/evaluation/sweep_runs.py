"""The runs of a sweep: streams, and detectors that meet them side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaneg_openood.data.feature_set import FeatureSet
from adaneg_openood.detectors import AdaNeg, AdaNegConfig
from adaneg_openood.detectors.adaneg import combined
from adaneg_openood.evaluation.metrics import ood_metrics
from adaneg_openood.evaluation.side_by_side import run_side_by_side
from adaneg_openood.evaluation.streams import stream_order
from adaneg_openood.evaluation.subsets import Ratio, draw_subset, subset_sizes
from adaneg_openood.io.journal import digest_of

_TOGETHER = 16  # detectors at a time: each holds a bank of its own


@dataclass(frozen=True)
class Protocol:
    """How images are met.

    Attributes:
        batch_size: images a batch.
        order: ``"mixed"`` or ``"id_first"``.
        ratio: ID to OOD images; None keeps the one there is.
        n_images: ID and OOD images together; None takes as many as the ratio allows.
    """

    batch_size: int = 256
    order: str = "mixed"
    ratio: Ratio | None = None
    n_images: int | None = None


class Detectors:
    """Detectors of one family, which share their text features; kept while the family stays the same."""

    def __init__(self, data: FeatureSet, device: torch.device | str) -> None:
        self.data, self.device = data, device
        self.made: dict[AdaNegConfig, AdaNeg] = {}

    def of(self, configs: Sequence[AdaNegConfig]) -> list[AdaNeg]:
        """One a score-free configuration, in order."""
        wanted = list(dict.fromkeys(map(_scoreless, configs)))
        if not set(wanted) <= set(self.made):
            self.made = {}
            first: AdaNeg | None = None
            for config in wanted:
                detector = AdaNeg(
                    self.data.text_features, self.data.n_id, self.data.logit_scale, config
                ).to(self.device)
                if first is not None:  # hundreds of megabytes, were each to hold its own
                    detector.text_features = first.text_features
                first = first or detector
                self.made[config] = detector
        return [self.made[config] for config in wanted]


@dataclass(frozen=True, eq=False)
class Stream:
    """One OOD set met in one way."""

    split: str
    dataset: str
    ood: Tensor
    seed: int
    protocol: Protocol

    def key(self, config: AdaNegConfig) -> str:
        """Of a run: all it depends on besides the data."""
        return digest_of(
            {
                "config": dataclasses.asdict(config),
                "protocol": dataclasses.asdict(self.protocol),
                "seed": self.seed,
                "set": [self.split, self.dataset],
            }
        )

    def run(
        self, data: FeatureSet, detectors: Sequence[AdaNeg], configs: Sequence[AdaNegConfig]
    ) -> dict[AdaNegConfig, dict[str, Any]]:
        """Score the stream with every detector, and measure every configuration."""
        how = self.protocol
        part = draw_subset(len(data.id_features), len(self.ood), self.seed, how.ratio, how.n_images)
        order = stream_order(len(part.oods), len(part.ids), self.seed, how.order)
        place = detectors[0].text_features.device
        features = torch.cat(
            [
                self.ood[torch.from_numpy(part.oods)].to(place),
                data.id_features[torch.from_numpy(part.ids)].to(place),
            ]
        )
        labels = data.id_labels.cpu().numpy()[part.ids]
        label = np.concatenate([np.full(len(part.oods), -1), labels])
        scores = run_side_by_side(detectors, features, order, how.batch_size)
        by_config = {detector.config: index for index, detector in enumerate(detectors)}
        measured = {}
        for config in configs:
            index = by_config[_scoreless(config)]
            found = scores[index]
            assert found.s_neglabel is not None and found.s_adaptive is not None
            metrics = ood_metrics(
                combined(found.s_neglabel, found.s_adaptive, config), label, found.pred
            )
            counts = detectors[index].bank.counts
            n_id = data.n_id
            measured[config] = {
                "split": self.split,
                "dataset": self.dataset,
                "n_id": len(part.ids),
                "n_ood": len(part.oods),
                **metrics,
                "id_rows_filled": int((counts[:n_id] > 0).sum()),
                "n_id_rows": n_id,
                "negative_rows_filled": int((counts[n_id:] > 0).sum()),
                "cached": int(counts.sum()),
            }
        return measured


def _scoreless(config: AdaNegConfig) -> AdaNegConfig:
    return dataclasses.replace(config, score="combine")


def families(configs: Sequence[AdaNegConfig]) -> list[list[AdaNegConfig]]:
    """Configurations that read the text alike, at most :data:`_TOGETHER` detectors each."""
    alike: dict[tuple[int, bool], dict[AdaNegConfig, list[AdaNegConfig]]] = {}
    for config in configs:
        same = alike.setdefault((config.groups, config.permute), {})
        same.setdefault(_scoreless(config), []).append(config)
    found = []
    for same in alike.values():
        members = list(same.values())
        for start in range(0, len(members), _TOGETHER):
            found.append([c for part in members[start : start + _TOGETHER] for c in part])
    return found


def streams(data: FeatureSet, protocols: Sequence[Protocol], seeds: Sequence[int]) -> Iterator[Stream]:
    n_id = len(data.id_features)
    done = set()
    for split, sets in (("near", data.near), ("far", data.far)):
        for dataset, ood in sets.items():
            for protocol in protocols:
                sizes = subset_sizes(n_id, len(ood), protocol.ratio, protocol.n_images)
                for seed in seeds:
                    # a seed that changes nothing is not run again
                    fixed = protocol.order == "id_first" and sizes == (n_id, len(ood))
                    used = 0 if fixed else seed
                    if (dataset, protocol, used) not in done:
                        done.add((dataset, protocol, used))
                        yield Stream(split, dataset, ood, used, protocol)
