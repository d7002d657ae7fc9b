"""How near negatives lie to OOD and to ID images: static text negatives against adaptive proxies.

The idea is AdaNeg's (Zhang and Zhang, NeurIPS 2024): a good negative is like the OOD images and unlike
the ID images, so the similarity of ID images to the negatives, over that of OOD images, tells how good a
set of negatives is. Measured here, in our own definition:

- similarity of an image to a set of negatives: cosine with the nearest one;
- ``ratio``: its mean over ID images / its mean over OOD images, lower being better, 1 being useless;
- ``margin``: the mean over OOD images of (cosine with the nearest negative - cosine with the nearest ID
  label's proxy of the same kind), higher being better;
- ``separation``: AUROC in percent of telling OOD from ID images by that margin.

Proxies are those of the bank at the end of the stream, so every image meets the same ones; an image may
be part of a proxy it is compared with, as in the method.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from adaneg_openood.data.feature_set import FeatureSet
from adaneg_openood.detectors import AdaNeg, AdaNegConfig
from adaneg_openood.detectors.fixed_bank import as_pooled
from adaneg_openood.detectors.proxies import sample_adaptive_cosines
from adaneg_openood.evaluation import Protocol, replay_streams
from adaneg_openood.evaluation.metrics import RankedScores
from adaneg_openood.evaluation.streams import streams_of

if TYPE_CHECKING:
    import pandas as pd

NOTES = (
    "near_id, near_ood: mean cosine of ID and of OOD images with their nearest negative",
    "ratio = near_id / near_ood: lower is better, 1 tells nothing apart",
    "margin: mean over OOD images of (cosine with the nearest negative - with the nearest ID label)",
    "separation: AUROC of telling OOD from ID images by that margin, in percent",
    "the list of published figures holds none for this target",
)
_CHUNK = 1024  # images whose cosines with all rows are alive at a time
_POINTS = 200  # images and labels of one kind in a plane


def measured(
    data: FeatureSet,
    config: AdaNegConfig,
    protocol: Protocol,
    streams: Mapping[str, np.ndarray],
    device: torch.device | str,
    plane: bool,
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Measures of every OOD set, seed and kind of negatives; and the first seed's planes if wanted."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    planes = []
    detector = AdaNeg(data.text_features, data.n_id, data.logit_scale, config)
    met = streams_of(data, protocol, streams)
    for result in replay_streams(data, {"AdaNeg": detector}, met, device=device):
        ood = getattr(data, result.split)[result.dataset]
        images = normalize(torch.cat([ood.to(device), data.id_features.to(device)]).float(), dim=1)
        where = {"dataset": result.dataset, "seed": result.seed}
        sizes = {"n_id": result.n_id, "n_ood": result.n_ood}
        found = measure(data, detector, images, len(ood), config.beta)
        rows += [{**where, **row, **sizes} for row in found]
        if plane and result.seed == protocol.seeds[0]:
            points = plane_of(data, detector, images, len(ood), result.seed)
            planes.append(points.assign(dataset=result.dataset))
    return pd.DataFrame(rows), pd.concat(planes, ignore_index=True) if planes else None


def measure(
    data: FeatureSet, detector: AdaNeg, images: Tensor, n_ood: int, beta: float
) -> Iterator[dict[str, Any]]:
    """A row for each kind of negatives; ``images`` are (N, D) unit vectors, concat(OOD, ID)."""
    text = normalize(data.text_features.float(), dim=1).to(images.device)
    nearest: dict[str, list[Tensor]] = {}
    for part in images.split(_CHUNK):
        for kind, cosines in _cosines(text, part, detector, beta).items():
            of_id, of_neg = cosines[:, : data.n_id].amax(1), cosines[:, data.n_id :].amax(1)
            nearest.setdefault(kind, []).append(torch.stack([of_id, of_neg], dim=1).cpu())
    filled = int((detector.bank.counts[data.n_id :] > 0).sum())
    is_ood = np.arange(len(images)) < n_ood
    for kind, parts in nearest.items():
        of_id, of_neg = torch.cat(parts).double().numpy().T
        near_ood, near_id = float(of_neg[:n_ood].mean()), float(of_neg[n_ood:].mean())
        yield {
            "negatives": kind,
            "near_id": near_id,
            "near_ood": near_ood,
            "ratio": near_id / near_ood,
            "margin": float((of_neg - of_id)[:n_ood].mean()),
            "separation": 100.0 * RankedScores(of_id - of_neg, is_ood).counts().auroc(),
            "rows_filled": 0 if kind == "static" else filled,
        }


def plane_of(data: FeatureSet, detector: AdaNeg, images: Tensor, n_ood: int, seed: int) -> Any:
    """A two-dimensional map of images, static negatives and adaptive negative proxies.

    Of each kind at most 200 points; of the negatives those whose rows hold images come first, so that a
    negative and its proxy can be told to belong together.

    Returns:
        DataFrame with x, y (float64), kind (``ID image``, ``OOD image``, ``static negative``,
        ``adaptive proxy``), row (of the text features, or of concat(OOD, ID) for images), and name.

    Source: scikit-learn's TSNE (van der Maaten and Hinton, 2008) on cosine distances.
    """
    import pandas as pd
    from sklearn.manifold import TSNE

    rng, unit = np.random.default_rng(seed), images.cpu()
    text = normalize(data.text_features.float(), dim=1).cpu()
    bank = as_pooled(detector.bank)
    rows = bank.active_rows[: bank.n_active].cpu()
    chosen = (rows >= data.n_id).nonzero().squeeze(1)[:_POINTS]
    sums, filled = bank.sums[: bank.n_active].float().cpu()[chosen], rows[chosen].numpy()
    others = rng.permutation(np.setdiff1d(np.arange(data.n_id, len(text)), filled))
    static = np.concatenate([filled, others[: _POINTS - len(filled)]])
    of_ood = np.sort(rng.permutation(n_ood)[:_POINTS])
    of_id = np.sort(rng.permutation(np.arange(n_ood, len(unit)))[:_POINTS])
    kinds = {
        "ID image": (of_id, unit[of_id]),
        "OOD image": (of_ood, unit[of_ood]),
        "static negative": (static, text[static]),
        "adaptive proxy": (filled, normalize(sums, dim=1)),
    }
    points = torch.cat([vectors for _, vectors in kinds.values()]).numpy()
    # a perplexity must be below the number of points
    perplexity = min(30.0, max(2.0, (len(points) - 1) / 4))
    model = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    # unit vectors: squared Euclidean distances are twice the cosine distances
    placed = model.fit_transform(points).astype(np.float64)
    parts = [pd.DataFrame({"kind": kind, "row": rows, "name": ""}) for kind, (rows, _) in kinds.items()]
    if data.names is not None:
        for part in parts[2:]:  # of labels
            part["name"] = [data.names[row] for row in part["row"]]
    return pd.concat(parts, ignore_index=True).assign(x=placed[:, 0], y=placed[:, 1])


def _cosines(text: Tensor, unit: Tensor, detector: AdaNeg, beta: float) -> dict[str, Tensor]:
    """(B, K) cosines of (B, D) images with each kind of row; rows without images keep their text."""
    bank = as_pooled(detector.bank)
    rows = bank.active_rows[: bank.n_active]
    static = unit @ text.T
    found = {"static": static, "task-adaptive": static.clone(), "sample-adaptive": static.clone()}
    if len(rows):
        proxies = normalize(bank.sums[: bank.n_active].float(), dim=1)
        found["task-adaptive"][:, rows] = unit @ proxies.T
        grams = bank.known_grams(lambda of: text[of])
        order, adapted = sample_adaptive_cosines(unit, static[:, rows], grams, bank, beta)
        found["sample-adaptive"][:, rows[order]] = adapted.T
    return found
