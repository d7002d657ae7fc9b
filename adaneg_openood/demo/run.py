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
from adaneg_openood.demo.model import load_demo_model
from adaneg_openood.demo.world import ADJECTIVES, FAR, ID_NAMES, NEAR, NOUNS, write_benchmark
from adaneg_openood.evaluation import FeatureSet, Protocol, Run, replay
from adaneg_openood.text import ClassNames, Corpus, LabelFeatures, Mining, MiningConfig, label_features
from adaneg_openood.vlm.base import VisionLanguageModel

N_NEGATIVES = 60
BATCH_SIZE = 64
_SETS = {"near": tuple(NEAR), "far": (*FAR, "digits")}


def run_demo(
    seeds: Sequence[int] = (0, 1, 2), device: torch.device | str = "cpu", progress: bool = True
) -> Run:
    """Near- and far-OOD results of MCM, NegLabel and AdaNeg on the embedded benchmark.

    The images live in a temporary folder while this runs. Nothing is downloaded.
    """
    data = demo_features(device, progress)
    protocol = Protocol(tuple(seeds), BATCH_SIZE)
    return replay(data, standard_detectors(data), protocol, device=device, progress=progress)


def demo_features(device: torch.device | str = "cpu", progress: bool = True) -> FeatureSet:
    """Features of the embedded benchmark: 20 ID names, 60 mined negatives, 5 OOD sets."""
    model = load_demo_model().to(device)
    labels = demo_labels(model)
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
        text_features=labels.features,
        n_id=labels.n_id,
        id_features=id_features,
        id_labels=id_labels,
        near=near,
        far=far,
        logit_scale=model.logit_scale,
        names=labels.names,
    )


def demo_labels(model: VisionLanguageModel) -> LabelFeatures:
    """20 ID names and 60 negatives mined from the rest of the model's vocabulary."""
    mining = Mining(MiningConfig(n_negatives=N_NEGATIVES), Corpus(NOUNS, ADJECTIVES, "demo"))
    return label_features(model, ClassNames("demo", ID_NAMES), mining)


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
