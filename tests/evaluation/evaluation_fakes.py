"""Small detectors and data with known answers."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from adaneg_openood.evaluation import FeatureSet

N_ID, N_NEG, DIM = 3, 2, 4


class Cosine:
    """The largest product with an ID row: depends on the image alone."""

    def __init__(self, data: FeatureSet) -> None:
        self.text, self.n_id = data.text_features, data.n_id
        self.streams = 0
        self.batches: list[Tensor] = []

    def reset(self) -> None:
        self.batches = []

    def settings(self) -> dict:
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        return {"text": self.text}

    def score(self, features: Tensor) -> SimpleNamespace:
        self.streams += not self.batches
        self.batches.append(features)
        conf, pred = (features @ self.text[: self.n_id].T).max(dim=1)
        return SimpleNamespace(pred=pred, conf=conf)


class StatelessCosine(Cosine):
    info = SimpleNamespace(keeps_state=False)


class Drifting(Cosine):
    """Scores drift with the number of images met since the reset, and rows fill up."""

    def reset(self) -> None:
        super().reset()
        self.met = 0
        self.bank = SimpleNamespace(counts=torch.zeros(N_ID + N_NEG, dtype=torch.long))

    def score(self, features: Tensor) -> SimpleNamespace:
        scores = super().score(features)
        self.bank.counts[0] += 1
        self.bank.counts[N_ID] += 1
        scores.conf = scores.conf + 0.05 * (self.met + torch.arange(len(features)))
        self.met += len(features)
        return scores


def make_data(**changed: object) -> FeatureSet:
    generator = torch.Generator().manual_seed(0)

    def rows(n: int) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(n, DIM, generator=generator), dim=1)

    text = rows(N_ID + N_NEG)
    labels = torch.arange(20) % N_ID
    parts: dict = {
        "text_features": text,
        "n_id": N_ID,
        "id_features": torch.nn.functional.normalize(text[labels] + 0.5 * rows(20), dim=1),
        "id_labels": labels,
        "near": {"ssb": rows(10), "ninco": rows(6)},
        "far": {"textures": rows(8)},
    }
    return FeatureSet(**{**parts, **changed})
