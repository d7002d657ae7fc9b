"""OpenOOD's image sets as this package's: what `replay` takes, and one set's mixed stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch

from adaneg_openood.data.feature_set import FeatureSet
from adaneg_openood.detectors import TextDetector
from adaneg_openood.evaluation import Protocol, replay_streams
from adaneg_openood.openood.loaders import Encoded
from adaneg_openood.openood.stream_arrays import IDSet
from adaneg_openood.text import LabelFeatures

CLIP_SCALE = 100.0
_NO_SETS: Mapping[str, Encoded] = MappingProxyType({})


def feature_set(
    labels: LabelFeatures,
    ids: Sequence[Encoded],
    near: Mapping[str, Encoded] = _NO_SETS,
    far: Mapping[str, Encoded] = _NO_SETS,
) -> FeatureSet:
    """Text rows, the ID sets one after the other, and the OOD sets."""
    return FeatureSet(
        text_features=labels.features,
        n_id=labels.n_id,
        id_features=torch.cat([part.features for part in ids]),
        id_labels=torch.from_numpy(np.concatenate([part.labels for part in ids])),
        near={name: part.features for name, part in near.items()},
        far={name: part.features for name, part in far.items()},
        logit_scale=float(labels.logit_scale or CLIP_SCALE),
    )


def mixed_scores(
    detector: TextDetector,
    protocol: Protocol,
    labels: LabelFeatures,
    ood: Encoded,
    known: Mapping[IDSet, Encoded],
    id_sets: tuple[IDSet, ...],
) -> dict[str, np.ndarray]:
    """The stream of an OOD set with ID sets.

    Returns:
        ``"conf"`` (N_id + N_ood,) float32 and ``"pred"`` int64, the ID sets first.
    """
    data = feature_set(labels, [known[part] for part in id_sets], far={ood.name: ood})
    [scores] = replay_streams(data, {detector.info.name: detector}, protocol)
    n_ood = len(ood.labels)
    both = {"conf": scores.conf, "pred": scores.pred}
    return {kind: np.concatenate([x[n_ood:], x[:n_ood]]) for kind, x in both.items()}
