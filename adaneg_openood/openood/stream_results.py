"""Several streams an OOD set, with their raw scores on disk, resumed after an interruption."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adaneg_openood.data.feature_set import FeatureSet
from adaneg_openood.evaluation import Protocol, Run, replay
from adaneg_openood.evaluation.streams import SPLITS, check_seeds
from adaneg_openood.io.digests import tensor_digest
from adaneg_openood.io.files import atomic_path
from adaneg_openood.openood.images import EncodedSet
from adaneg_openood.openood.settings import PROTOCOLS
from adaneg_openood.openood.text_tower import Towers

logger = logging.getLogger(__name__)


def stream_results(
    postprocessor: Any,
    net: Any,
    id_loaders: Sequence[Any],
    ood_loaders: Mapping[str, Mapping[str, Any]],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    save_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Run:
    """Score every OOD set under several stream orders.

    Args:
        postprocessor: one of this package's, after ``setup``.
        net: the network.
        id_loaders: the ID test set; for full-spectrum evaluation followed by the covariate-shifted ones.
        ood_loaders: ``{"near": {name: loader}, "far": {name: loader}}``.
        seeds: of the streams, distinct and >= 0. A method without memory runs once for all of them.
        save_dir: folder for raw scores, one ``.npz`` per stream (``conf`` float32, ``pred``, ``label``
            with -1 for OOD, OOD images first). A stream whose file is there, made of the same features
            and settings, is not run again; :meth:`Run.load` reads the whole.
        progress: show progress bars.

    Returns:
        Means, spreads and both FPR95 conventions; ``ACC`` is by the detector's own ID prediction.

    Raises:
        ValueError: no seed, a repeated or negative one, or no OOD set.
    """
    settings = postprocessor.settings
    protocol = Protocol(
        check_seeds(seeds),
        settings.get("batch_size", Protocol.batch_size),
        PROTOCOLS[settings.get("protocol", "mixed")],
    )
    if not any(ood_loaders.get(split) for split in SPLITS):
        raise ValueError("there is no OOD set to evaluate")
    id_sets = [postprocessor.encoded(net, loader, progress) for loader in id_loaders]
    near, far = (
        {
            name: postprocessor.encoded(net, loader, progress).features
            for name, loader in ood_loaders.get(split, {}).items()
        }
        for split in SPLITS
    )
    labels = postprocessor._ready()
    data = FeatureSet(
        text_features=labels.features,
        n_id=labels.n_id,
        id_features=torch.cat([part.features for part in id_sets]),
        id_labels=torch.from_numpy(np.concatenate([part.labels for part in id_sets])),
        near=near,
        far=far,
        logit_scale=labels.logit_scale,
    )
    detectors = {postprocessor.method: postprocessor.make_detector()}
    return replay(data, detectors, protocol, progress=progress, folder=save_dir)


def load_or_encode(folder: str | os.PathLike[str], key: Any, towers: Towers, encode: Any) -> EncodedSet:
    """Encoded images of an earlier run, or ``encode()`` kept for the next.

    Args:
        folder: where they are kept, made if needed.
        key: of the images and their transform.
        towers: of the network; other text features, another model.
        encode: gives the :class:`EncodedSet`.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    text = None if towers.id_features is None else _digest(towers.id_features)
    path = Path(folder) / f"{_key({'images': key, 'model': towers.name, 'text': text})[:32]}.safetensors"
    if path.is_file():
        try:
            with safe_open(str(path), framework="pt", device="cpu") as file:
                about = json.loads((file.metadata() or {})["about"])
                return EncodedSet(
                    about["name"],
                    file.get_tensor("features").to(towers.scoring_device),
                    file.get_tensor("labels").numpy().astype(np.int64),
                    tuple(about["skipped"]),
                )
        except (SafetensorError, KeyError, ValueError, OSError, TypeError, RecursionError) as error:
            logger.warning("%s cannot be read (%s); encoding again", path, error)
    encoded: EncodedSet = encode()
    tensors = {
        "features": encoded.features.cpu().contiguous(),
        "labels": torch.from_numpy(encoded.labels),
    }
    about = {"name": encoded.name, "skipped": list(encoded.skipped)}
    with atomic_path(path) as temporary:
        save_file(tensors, str(temporary), metadata={"about": json.dumps(about)})
    return encoded


def _digest(features: torch.Tensor) -> str:
    return tensor_digest(features)[:32]


def _key(parts: Mapping[str, Any]) -> str:
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
