"""The demo: draw the benchmark, encode it with the embedded model, evaluate four methods."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from adaneg_openood.benchmark.methods import standard_detectors
from adaneg_openood.demo.model import ADJECTIVE_TEMPLATE, TEMPLATES, load_demo_model
from adaneg_openood.demo.world import ADJECTIVES, FAR, ID_NAMES, NEAR, NOUNS, write_benchmark
from adaneg_openood.evaluation import FeatureSet, Results, evaluate
from adaneg_openood.text.mining import mine_negatives
from adaneg_openood.vlm.base import VisionLanguageModel

N_NEGATIVES = 60
BATCH_SIZE = 64
_SETS = {"near": tuple(NEAR), "far": (*FAR, "digits")}


def run_demo(
    seeds: Sequence[int] = (0, 1, 2), device: torch.device | str = "cpu", progress: bool = True
) -> Results:
    """Near- and far-OOD results of MCM, NegLabel and AdaNeg on the embedded benchmark.

    The images live in a temporary folder while this runs. Nothing is downloaded.
    """
    data = demo_features(device, progress)
    return evaluate(
        standard_detectors(data),
        data,
        seeds=seeds,
        batch_size=BATCH_SIZE,
        device=device,
        progress=progress,
    )


def demo_features(device: torch.device | str = "cpu", progress: bool = True) -> FeatureSet:
    """Features of the embedded benchmark: 20 ID names, 60 mined negatives, 5 OOD sets."""
    model = load_demo_model().to(device)
    names, text = label_features(model)
    with tempfile.TemporaryDirectory(prefix="adaneg-demo-") as folder:
        root = Path(folder)
        write_benchmark(root)
        with tqdm(total=1 + sum(map(len, _SETS.values())), desc="encoding", disable=not progress) as bar:

            def encode(name: str) -> tuple[Tensor, Tensor]:
                bar.update()
                return _encode_list(model, root, name)

            id_features, id_labels = encode("demo")
            near, far = ({name: encode(name)[0] for name in sets} for sets in _SETS.values())
    return FeatureSet(
        text_features=text,
        n_id=len(ID_NAMES),
        id_features=id_features,
        id_labels=id_labels,
        near=near,
        far=far,
        logit_scale=model.logit_scale,
        names=names,
    )


def label_features(model: VisionLanguageModel) -> tuple[tuple[str, ...], Tensor]:
    """ID names and the negatives mined from the rest of the model's vocabulary.

    Returns:
        80 names and their (80, D) text features: ID names, adjectives, nouns.
    """
    nouns = [noun for noun in NOUNS if noun not in ID_NAMES]
    of_id = model.encode_text([TEMPLATES[0].format(name) for name in ID_NAMES])
    of_adjectives = model.encode_text([ADJECTIVE_TEMPLATE.format(word) for word in ADJECTIVES])
    of_nouns = model.encode_text([TEMPLATES[0].format(noun) for noun in nouns])
    n_adjectives = int(N_NEGATIVES * len(ADJECTIVES) / (len(ADJECTIVES) + len(nouns)))
    adjectives = mine_negatives(of_adjectives, of_id, n_adjectives)
    kept = mine_negatives(of_nouns, of_id, N_NEGATIVES - n_adjectives)
    names = (*ID_NAMES, *(ADJECTIVES[i] for i in adjectives), *(nouns[i] for i in kept))
    return names, torch.cat([of_id, of_adjectives[adjectives], of_nouns[kept]])


def _encode_list(model: VisionLanguageModel, root: Path, name: str) -> tuple[Tensor, Tensor]:
    """(N, D) features and (N,) labels of one image list."""
    lines = (root / "benchmark_imglist" / "demo" / f"test_{name}.txt").read_text(encoding="utf-8")
    files, labels = zip(*(line.rsplit(" ", 1) for line in lines.splitlines()))
    pixels = []
    for file in files:
        with Image.open(root / "images" / file) as image:
            pixels.append(model.preprocess(image))
    features = [model.encode_image(torch.stack(pixels[i : i + 64])) for i in range(0, len(pixels), 64)]
    return torch.cat(features), torch.tensor([int(label) for label in labels])
