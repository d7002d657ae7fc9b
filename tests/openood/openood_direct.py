"""The same evaluation without OpenOOD: images read by hand, one stream an OOD set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from openood.evaluation_api.datasets import DATA_INFO
from openood.evaluation_api.preprocessor import ImageNetCPreProcessor, get_default_preprocessor
from openood_tiny import NEGATIVES, TinyModel, names_of
from PIL import Image

from adaneg_openood import AdaNeg, AdaNegConfig
from adaneg_openood.evaluation import ood_metrics, run_stream, stream_order


def adaneg(scale: float = 40.0, **config: Any) -> Callable[[torch.Tensor, int], AdaNeg]:
    """What makes AdaNeg's detector from text features, for :func:`direct_metrics`."""
    return lambda text, n: AdaNeg(text, n, logit_scale=scale, config=AdaNegConfig(**config))


def text_features(model: TinyModel, id_name: str) -> torch.Tensor:
    """ID and negative text features, ID first."""
    return model.encode_text([f"The nice {word}." for word in [*names_of(id_name), *NEGATIVES]])


def features_of(
    root: Path, entry: dict[str, str], model: TinyModel, transform: Any
) -> tuple[torch.Tensor, np.ndarray]:
    """Features and labels of one image list."""
    lines = (root / entry["imglist_path"]).read_text().splitlines()
    names, labels = zip(*(line.rsplit(" ", 1) for line in lines))
    pixels = [transform(Image.open(root / entry["data_dir"] / name).convert("RGB")) for name in names]
    return model.encode_image(torch.stack(pixels)), np.array(labels, dtype=int)


def direct_metrics(
    root: Path,
    id_name: str,
    make_detector: Callable[[torch.Tensor, int], Any],
    *,
    model: TinyModel | None = None,
    transform: Any = None,
    csid: bool = False,
    order: str = "mixed",
    seed: int = 0,
    batch_size: int = 256,
) -> dict[str, dict[str, float]]:
    """Metrics of each OOD set; ``ACC`` is the detector's own, ``zero_shot`` the network's."""
    model = TinyModel() if model is None else model
    transform = get_default_preprocessor(id_name) if transform is None else transform
    info = DATA_INFO[id_name]
    text = text_features(model, id_name)
    n_id = len(names_of(id_name))
    entries = [info["id"]["test"]]
    entries += [info["csid"][name] for name in info["csid"]["datasets"]] if csid else []
    parts = [
        features_of(
            root, entry, model, _corrupted(transform) if "_c.txt" in entry["imglist_path"] else transform
        )
        for entry in entries
    ]
    id_features = torch.cat([part[0] for part in parts])
    id_labels = np.concatenate([part[1] for part in parts])
    zero_shot = (id_features @ text[:n_id].T).argmax(dim=1).numpy()
    results = {}
    for split in ("near", "far"):
        for name in info["ood"][split]["datasets"]:
            ood, _ = features_of(root, info["ood"][split][name], model, transform)
            label = np.concatenate([np.full(len(ood), -1), id_labels])
            index = stream_order(len(ood), len(id_features), seed, order)
            scores = run_stream(
                make_detector(text, n_id), torch.cat([ood, id_features]), index, batch_size
            )
            results[name] = ood_metrics(scores.conf, label, scores.pred)
            results[name]["zero_shot"] = 100.0 * float(np.mean(zero_shot == id_labels))
            results[name]["ties"] = len(scores.conf) - len(np.unique(scores.conf))
    return results


def _corrupted(transform: Any) -> Any:
    """What OpenOOD does to ImageNet-C, whose images have their final size."""
    normalize = transform.transform.transforms[-1]
    return ImageNetCPreProcessor(normalize.mean, normalize.std)
