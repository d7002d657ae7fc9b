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

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from adaneg_openood.data.feature_set import FeatureSet
from adaneg_openood.detectors import AdaNeg, AdaNegConfig
from adaneg_openood.detectors.fixed_bank import as_pooled
from adaneg_openood.detectors.proxies import sample_adaptive_cosines
from adaneg_openood.evaluation import Protocol, replay_streams
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
KINDS = ("static", "task-adaptive", "sample-adaptive")
COLUMNS = (
    *("dataset", "seed", "negatives", "near_id", "near_ood", "ratio", "margin", "separation"),
    *("rows_filled", "n_id", "n_ood"),
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
    """Measures of every OOD set and seed, with :data:`COLUMNS`, and the points of planes if asked for.

    Args:
        data: the features.
        config: AdaNeg's settings.
        protocol: seeds and batch size.
        streams: OOD set -> an order in place of the seeds'.
        device: where it runs.
        plane: draw the first seed's plane of every set.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    planes = []
    detector = AdaNeg(data.text_features, data.n_id, data.logit_scale, config)
    for result in replay_streams(
        data, {"AdaNeg": detector}, streams_of(data, protocol, streams), device=device
    ):
        ood = getattr(data, result.split)[result.dataset]
        joined = torch.cat([ood.to(device), data.id_features.to(device)])
        found = measure(data, detector, joined, len(ood), config.beta)
        rows += [{"dataset": result.dataset, "seed": result.seed, **row} for row in found]
        if plane and result.seed == protocol.seeds[0]:
            points = plane_of(data, detector, joined, len(ood), result.seed)
            planes.append(points.assign(dataset=result.dataset))
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame, pd.concat(planes, ignore_index=True) if planes else None


def measure(
    data: FeatureSet, detector: AdaNeg, features: Tensor, n_ood: int, beta: float
) -> list[dict[str, Any]]:
    """One row a kind of negatives, with the columns from ``negatives`` on.

    Args:
        detector: after its stream.
        features: (N, D) concat(OOD, ID).
        n_ood: how many of them are OOD.
        beta: sharpness of sample-adaptive weights.
    """
    text = torch.nn.functional.normalize(data.text_features.float(), dim=1).to(features.device)
    nearest = {kind: [] for kind in KINDS}  # type: dict[str, list[Tensor]]
    for part in features.split(_CHUNK):
        unit = torch.nn.functional.normalize(part.float(), dim=1)
        for kind, cosines in _cosines(text, unit, detector, beta).items():
            of_id, of_neg = cosines[:, : data.n_id].amax(1), cosines[:, data.n_id :].amax(1)
            nearest[kind].append(torch.stack([of_id, of_neg], dim=1).cpu())
    rows = []
    counts = detector.bank.counts
    truth = np.arange(len(features)) < n_ood
    for kind in KINDS:
        of_id, of_neg = torch.cat(nearest[kind]).double().numpy().T
        near_ood, near_id = float(of_neg[:n_ood].mean()), float(of_neg[n_ood:].mean())
        rows.append(
            {
                "negatives": kind,
                "near_id": near_id,
                "near_ood": near_ood,
                "ratio": near_id / near_ood,
                "margin": float((of_neg - of_id)[:n_ood].mean()),
                "separation": 100.0 * _auroc(truth, of_neg - of_id),
                "rows_filled": 0 if kind == "static" else int((counts[data.n_id :] > 0).sum()),
                "n_id": len(features) - n_ood,
                "n_ood": n_ood,
            }
        )
    return rows


def plane_of(data: FeatureSet, detector: AdaNeg, features: Tensor, n_ood: int, seed: int) -> Any:
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

    rng = np.random.default_rng(seed)
    unit = torch.nn.functional.normalize(features.float(), dim=1).cpu()
    text = torch.nn.functional.normalize(data.text_features.float(), dim=1).cpu()
    bank = as_pooled(detector.bank)
    filled = bank.active_rows[: bank.n_active].cpu()
    sums = bank.sums[: bank.n_active].float().cpu()
    is_negative = filled >= data.n_id
    filled, sums = filled[is_negative][:_POINTS], sums[is_negative][:_POINTS]
    others = np.setdiff1d(np.arange(data.n_id, len(text)), filled.numpy())
    room = max(0, _POINTS - len(filled))
    static = np.concatenate([filled.numpy(), rng.permutation(others)[:room]])
    of_ood = np.sort(rng.permutation(n_ood)[:_POINTS])
    of_id = np.sort(rng.permutation(np.arange(n_ood, len(unit)))[:_POINTS])
    kinds = {
        "ID image": (of_id, unit[of_id]),
        "OOD image": (of_ood, unit[of_ood]),
        "static negative": (static, text[static]),
        "adaptive proxy": (filled.numpy(), torch.nn.functional.normalize(sums, dim=1)),
    }
    points = torch.cat([vectors for _, vectors in kinds.values()]).numpy()
    # a perplexity must be below the number of points
    perplexity = min(30.0, max(2.0, (len(points) - 1) / 4))
    model = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    # unit vectors: squared Euclidean distances are twice the cosine distances
    placed = model.fit_transform(points).astype(np.float64)
    rows = np.concatenate([rows for rows, _ in kinds.values()])
    kind = np.concatenate([np.full(len(rows), name) for name, (rows, _) in kinds.items()])
    names = [
        data.names[row] if data.names is not None and "image" not in what else ""
        for row, what in zip(rows, kind)
    ]
    return pd.DataFrame({"x": placed[:, 0], "y": placed[:, 1], "kind": kind, "row": rows, "name": names})


def _cosines(text: Tensor, unit: Tensor, detector: AdaNeg, beta: float) -> dict[str, Tensor]:
    """(B, K) cosines of (B, D) images with each kind of row; rows without images keep their text."""
    bank = as_pooled(detector.bank)
    rows = bank.active_rows[: bank.n_active]
    static = unit @ text.T
    found = {"static": static, "task-adaptive": static.clone(), "sample-adaptive": static.clone()}
    if len(rows):
        proxies = torch.nn.functional.normalize(bank.sums[: bank.n_active].float(), dim=1)
        found["task-adaptive"][:, rows] = unit @ proxies.T
        grams = bank.known_grams(lambda of: text[of])
        order, adapted = sample_adaptive_cosines(unit, static[:, rows], grams, bank, beta)
        found["sample-adaptive"][:, rows[order]] = adapted.T
    return found


def _auroc(positive: np.ndarray, score: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive, score))
