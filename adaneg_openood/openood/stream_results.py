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

from adaneg_openood.evaluation.metrics import ood_metrics
from adaneg_openood.evaluation.results import Results, records_frame
from adaneg_openood.evaluation.streams import one_order_is_enough, run_stream, stream_order
from adaneg_openood.io.digests import tensor_digest
from adaneg_openood.io.files import atomic_path
from adaneg_openood.openood.images import EncodedSet
from adaneg_openood.openood.settings import PROTOCOLS
from adaneg_openood.openood.text_tower import Towers

logger = logging.getLogger(__name__)

_DEFAULT_BATCH = 256


def stream_results(
    postprocessor: Any,
    net: Any,
    id_loaders: Sequence[Any],
    ood_loaders: Mapping[str, Mapping[str, Any]],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    save_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Results:
    """Score every OOD set under several stream orders.

    Args:
        postprocessor: one of this package's, after ``setup``.
        net: the network.
        id_loaders: the ID test set; for full-spectrum evaluation followed by the covariate-shifted ones.
        ood_loaders: ``{"near": {name: loader}, "far": {name: loader}}``.
        seeds: of the streams, distinct and >= 0. A method without memory runs once for all of them.
        save_dir: folder for raw scores, one ``.npz`` a stream (``conf`` float32, ``pred``, ``label``
            with -1 for OOD, OOD images first). A stream whose file is there, made of the same features
            and settings, is not run again.
        progress: show progress bars.

    Returns:
        Means, spreads and both FPR95 conventions; ``ACC`` is by the detector's own ID prediction.

    Raises:
        ValueError: no seed, a repeated or negative one, or no OOD set.
    """
    from tqdm.auto import tqdm

    seeds = tuple(int(seed) for seed in seeds)
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ValueError(f"seeds must be distinct and >= 0, and at least one, got {seeds}")
    settings = postprocessor.settings
    order = PROTOCOLS[settings.get("protocol", "mixed")]
    batch_size = settings.get("batch_size", _DEFAULT_BATCH)
    id_sets = [postprocessor.encoded(net, loader, progress) for loader in id_loaders]
    id_features = torch.cat([part.features for part in id_sets])
    id_labels = np.concatenate([part.labels for part in id_sets])
    detector = postprocessor.make_detector()
    once = one_order_is_enough(detector, order)
    common = {
        "method": postprocessor.method,
        "settings": settings,
        "text": _digest(detector.text_features),
        "id": _digest(id_features),
    }

    records: list[dict[str, Any]] = []
    jobs = [
        (split, name, loader)
        for split in ("near", "far")
        for name, loader in ood_loaders.get(split, {}).items()
    ]
    if not jobs:
        raise ValueError("there is no OOD set to evaluate")
    for split, name, loader in tqdm(jobs, desc="streams", disable=not progress):
        ood = postprocessor.encoded(net, loader, progress)
        features = torch.cat([ood.features, id_features])
        label = np.concatenate([np.full(len(ood.features), -1, dtype=np.int64), id_labels])
        measured: dict[str, float] = {}
        for seed in seeds:
            if not measured or not once:
                key = _key({**common, "ood": _digest(ood.features), "seed": seed, "order": order})
                path = _path(save_dir, split, name, None if once else seed)
                saved = _load(path, key)
                if saved is None:
                    index = stream_order(len(ood.features), len(id_features), seed, order)
                    scores = run_stream(detector, features, index, batch_size)
                    saved = scores.conf, scores.pred
                    _save(path, key, *saved, label)
                measured = ood_metrics(saved[0], label, saved[1])
            records.append(
                {
                    "method": postprocessor.method,
                    "split": split,
                    "dataset": name,
                    "seed": seed,
                    "n_id": len(id_labels),
                    "n_ood": len(ood.features),
                    **measured,
                    "id_rows_filled": None,
                    "n_id_rows": None,
                }
            )
    return Results(records_frame(records), order, seeds, batch_size)


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


def _path(save_dir: Any, split: str, name: str, seed: int | None) -> Path | None:
    if save_dir is None:
        return None
    stem = name if seed is None else f"{name}-seed{seed}"
    return Path(save_dir) / split / f"{stem}.npz"


def _load(path: Path | None, key: str) -> tuple[np.ndarray, np.ndarray] | None:
    if path is None or not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as saved:
            if str(saved["key"]) != key:
                logger.info("%s is of other features or settings; running the stream again", path)
                return None
            return saved["conf"], saved["pred"]
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds over damaged files
        logger.warning("%s cannot be read (%s); running the stream again", path, error)
        return None


def _save(path: Path | None, key: str, conf: np.ndarray, pred: np.ndarray, label: np.ndarray) -> None:
    if path is None:
        return
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, conf=conf, pred=pred, label=label, key=np.array(key))
