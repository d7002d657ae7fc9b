"""How the negative labels stand to the images, and to the ID names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from adaneg_openood.detectors import AdaNeg, NegLabel
from adaneg_openood.detectors.adaneg import combined
from adaneg_openood.detectors.scoring import grouped_logits, nearest_rows
from adaneg_openood.evaluation import FeatureSet

_AT_A_TIME = 1024
_LEFT_OUT = -1e4  # a logit that no other is as low as


def nearest_negatives(
    data: FeatureSet, k: int = 3, device: torch.device | str | None = None
) -> dict[str, np.ndarray]:
    """The k negative labels whose text is nearest to each image.

    Returns:
        ``"id"`` or an OOD set -> (N, k) int64 rows of the text features, nearest first; empty without
        negative labels.
    """
    place = data.id_features.device if device is None else torch.device(device)
    negatives = data.text_features[data.n_id :].to(place).float()
    if not len(negatives):
        return {}
    negatives = torch.nn.functional.normalize(negatives, dim=1)
    return {
        part: torch.cat(
            [nearest_rows(rows, negatives, k).cpu() + data.n_id for rows in features.split(_AT_A_TIME)]
        ).numpy()
        for part, features in {"id": data.id_features, **data.near, **data.far}.items()
    }


def negative_scores(detectors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What NegLabel, and AdaNeg with an empty memory, say of each negative label's own name.

    The text feature stands in place of an image, and the label itself is left out of the comparison.
    A label that scores as ID images do resembles an ID class more than it does other negatives.

    Returns:
        method -> (M,) float32 in the order of the text features, for methods of these two kinds.
    """
    found = {}
    for title, detector in detectors.items():
        if not isinstance(detector, (NegLabel, AdaNeg)):
            continue
        text, n_id = detector.text_features.float(), detector.n_id
        parts = []
        for rows in torch.arange(n_id, len(text), device=text.device).split(_AT_A_TIME):
            logits = text[rows] @ text.T * detector.logit_scale
            logits.scatter_(1, rows[:, None], _LEFT_OUT)
            parts.append(grouped_logits(logits, n_id, detector.groups, keep_negatives=False).score())
        scores = torch.cat(parts)
        if isinstance(detector, AdaNeg):
            scores = combined(scores, scores, detector.config)
        found[title] = (
            torch.empty_like(scores).index_copy_(0, detector.negative_order, scores).cpu().numpy()
        )
    return found
