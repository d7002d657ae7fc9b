"""The runs of a sweep: configurations that meet a stream side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from adaneg_openood.data.feature_set import FeatureSet
from adaneg_openood.detectors import AdaNegConfig, TextDetector, make_detector
from adaneg_openood.detectors.adaneg import combined
from adaneg_openood.evaluation.metrics import ood_metrics
from adaneg_openood.evaluation.replaying import replay_streams
from adaneg_openood.evaluation.stream_result import StreamResult
from adaneg_openood.evaluation.streams import Protocol, Stream, streams_of
from adaneg_openood.evaluation.sweep_result import BANK_COLUMNS
from adaneg_openood.io.digests import digest_of

_TOGETHER = 16  # detectors at a time: each holds a bank of its own


class Detectors:
    """Detectors of one family, which share their text features; kept while the family stays the same."""

    def __init__(self, data: FeatureSet, method: str, device: torch.device | str) -> None:
        self.data, self.method, self.device = data, method, device
        self.made: dict[Any, TextDetector] = {}

    def of(self, configs: Sequence[Any]) -> dict[Any, TextDetector]:
        """One for each score-free configuration."""
        wanted = list(dict.fromkeys(map(_scoreless, configs)))
        if not set(wanted) <= set(self.made):
            self.made = {}
            first: TextDetector | None = None
            for config in wanted:
                data, settings = self.data, dataclasses.asdict(config)
                detector = make_detector(
                    self.method, data.text_features, data.n_id, data.logit_scale, settings
                ).to(self.device)
                if first is not None:  # hundreds of megabytes, were each to hold its own
                    detector.text_features = first.text_features
                first = first or detector
                self.made[config] = detector
        return {config: self.made[config] for config in wanted}


def run_key(stream: Stream, method: str, config: Any) -> str:
    """Of a run: all it depends on besides the data."""
    how = dataclasses.asdict(stream.protocol)
    del how["seeds"]
    return digest_of(
        {
            "method": method,
            "config": dataclasses.asdict(config),
            "protocol": how,
            "seed": stream.seed,
            "set": [stream.split, stream.dataset],
        }
    )


def measured(
    data: FeatureSet, stream: Stream, detectors: Detectors, configs: Sequence[Any]
) -> dict[Any, dict[str, Any]]:
    """Score a stream with a family's detectors, and measure every configuration."""
    by_config = detectors.of(configs)
    named = {str(number): detector for number, detector in enumerate(by_config.values())}
    results = replay_streams(data, named, [stream], device=detectors.device, keep_parts=True)
    found = dict(zip(by_config, results))
    return {config: _record(found[_scoreless(config)], config, data.n_id) for config in configs}


def _record(result: StreamResult, config: Any, n_id: int) -> dict[str, Any]:
    counts = result.counts
    bank: dict[str, Any] = dict.fromkeys(BANK_COLUMNS)
    if counts is not None:
        filled, cached = counts > 0, int(counts.sum())
        bank = dict(
            zip(BANK_COLUMNS, (int(filled[:n_id].sum()), n_id, int(filled[n_id:].sum()), cached))
        )
    return {
        "split": result.split,
        "dataset": result.dataset,
        "n_id": result.n_id,
        "n_ood": result.n_ood,
        **(_rescored(result, config) if isinstance(config, AdaNegConfig) else result.metrics),
        **bank,
    }


def _rescored(result: StreamResult, config: AdaNegConfig) -> dict[str, float]:
    """Metrics under a configuration's own way to put its two scores together."""
    assert result.s_neglabel is not None and result.s_adaptive is not None
    s_neglabel, s_adaptive = (torch.from_numpy(p) for p in (result.s_neglabel, result.s_adaptive))
    return ood_metrics(combined(s_neglabel, s_adaptive, config), result.label, result.pred)


def _scoreless(config: Any) -> Any:
    return dataclasses.replace(config, score="combine") if isinstance(config, AdaNegConfig) else config


def families(configs: Sequence[Any]) -> list[list[Any]]:
    """Configurations that read the text alike, at most :data:`_TOGETHER` detectors each."""
    alike: dict[tuple[Any, Any], dict[Any, list[Any]]] = {}
    for config in configs:
        key = getattr(config, "groups", None), getattr(config, "permute", None)
        alike.setdefault(key, {}).setdefault(_scoreless(config), []).append(config)
    found = []
    for same in alike.values():
        members = list(same.values())
        for start in range(0, len(members), _TOGETHER):
            found.append([c for part in members[start : start + _TOGETHER] for c in part])
    return found


def distinct_streams(data: FeatureSet, protocol: Protocol) -> Iterator[tuple[int, Stream]]:
    """Every seed's stream of every set; a seed that changes nothing has the stream of seed 0."""
    for stream in streams_of(data, protocol):
        n_ood = len(getattr(data, stream.split)[stream.dataset])
        fixed = protocol.order == "id_first" and protocol.takes_all(len(data.id_features), n_ood)
        yield stream.seed, dataclasses.replace(stream, seed=0) if fixed else stream
