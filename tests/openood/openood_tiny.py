"""A stand-in image-text model, and fake benchmarks on disk in OpenOOD's layout; no network."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import socket
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

DIM = 16
CIFAR = "airplane automobile bird cat deer dog frog horse ship truck".split()
NEGATIVES = [f"negative {index}" for index in range(60)]
OOD_WORDS = NEGATIVES[:12]


def block(word: str) -> np.ndarray:
    """(4, 4, 3) uint8 colours that stand for a word; its images and its text agree on them."""
    digest = np.frombuffer(hashlib.sha512(word.encode()).digest()[:48], dtype=np.uint8)
    return (30 + digest % 196).reshape(4, 4, 3)


class TinyModel:
    """The vision-language protocol, computed in float64 so that batch sizes cannot change a feature."""

    name = "tiny"
    dim = DIM

    def __init__(self, logit_scale: float = 40.0) -> None:
        self.logit_scale = logit_scale
        self.device = torch.device("cpu")
        self.seen: Counter[bytes] = Counter()
        self.texts = 0
        generator = torch.Generator().manual_seed(5)
        self._weight = torch.randn(48, DIM, generator=generator, dtype=torch.float64)

    def preprocess(self, image: Image.Image) -> Tensor:
        array = np.asarray(image.convert("RGB").resize((8, 8)), dtype=np.float32) / 255
        return torch.from_numpy(array).permute(2, 0, 1).contiguous()

    def encode_image(self, pixels: Tensor) -> Tensor:
        for one in pixels:
            self.seen[one.detach().numpy().tobytes()] += 1
        return self._project(pixels.double())

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        self.texts += len(texts)
        words = [
            text.replace("The nice ", "").replace("a photo of a ", "").rstrip(".") for text in texts
        ]
        blocks = np.stack([block(word) for word in words])
        return self._project(torch.from_numpy(blocks).permute(0, 3, 1, 2).double() / 255)

    def _project(self, pixels: Tensor) -> Tensor:
        pooled = torch.nn.functional.adaptive_avg_pool2d(pixels, 4).flatten(1)
        features = (pooled - pooled.mean(dim=1, keepdim=True)) @ self._weight
        return torch.nn.functional.normalize(features, dim=1).float()


def make_tiny() -> TinyModel:
    """What a network configuration's ``factory`` names.

    In a process of its own, ``TINY_COUNTS`` names a file that is told, at exit, how often the image that
    was encoded most was encoded; and a network connection raises.
    """
    model = TinyModel()
    counts = os.environ.get("TINY_COUNTS")
    if counts:

        def tell() -> None:
            report = {"images": len(model.seen), "most": max(model.seen.values(), default=0)}
            Path(counts).write_text(json.dumps(report))

        atexit.register(tell)
        socket.socket.connect = refuse_network(socket.socket.connect)  # type: ignore[method-assign]
    return model


def refuse_network(connect: Any) -> Any:
    """``socket.connect`` for sockets on this machine alone, which data loaders' workers use."""

    def connect_locally(self: socket.socket, address: Any) -> Any:
        if self.family != socket.AF_UNIX:
            raise AssertionError(f"a network connection was tried: {address}")
        return connect(self, address)

    return connect_locally


def names_of(id_name: str) -> list[str]:
    """Class names of a fake benchmark."""
    from openood.evaluation_api.datasets import DATA_INFO

    if id_name == "cifar10":
        return list(CIFAR)
    return [f"class {index}" for index in range(DATA_INFO[id_name]["num_classes"])]


def build_benchmark(root: Path, id_name: str, n_id: int = 60, n_ood: int = 40, noise: int = 60) -> None:
    """Every list and folder that OpenOOD's evaluator opens for ``id_name``; images are 8 x 8.

    Each set repeats some of its own images, and OOD sets hold some ID images too, so scores tie.
    """
    from openood.evaluation_api.datasets import DATA_INFO, benchmarks_dict, dir_dict

    rng = np.random.default_rng(11)
    names = names_of(id_name)
    for dataset in benchmarks_dict[id_name]:
        folder = next(key for key, members in dir_dict.items() if dataset in members)
        place = root / folder / dataset
        place.mkdir(parents=True, exist_ok=True)
        (place / "readme.txt").write_text("fake")

    def write(entry: dict[str, str], items: list[tuple[str, int]]) -> None:
        path = root / entry["imglist_path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        stem = path.stem
        lines = []
        for index, (word, label) in enumerate(items):
            name = f"{stem}/{index:03d}.png"
            file = root / entry["data_dir"] / name
            file.parent.mkdir(parents=True, exist_ok=True)
            jitter = rng.integers(-noise, noise + 1, (8, 8, 3))
            pixels = np.kron(block(word), np.ones((2, 2, 1), dtype=int)) + jitter
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file)
            lines.append(f"{name} {label}\n")
        path.write_text("".join(lines))

    def id_items(count: int) -> list[tuple[str, int]]:
        labels = rng.integers(0, len(names), count)
        return [(names[label], int(label)) for label in labels]

    def ood_items(count: int) -> list[tuple[str, int]]:
        mixed = [*OOD_WORDS, *names[:3]]  # some OOD images look like ID ones
        return [(mixed[int(k)], -1) for k in rng.integers(0, len(mixed), count)]

    info = DATA_INFO[id_name]
    for split, count in (("val", 24), ("test", n_id)):
        write(info["id"][split], id_items(count))
    # every class several times, where there are few: methods fit statistics a class
    write(info["id"]["train"], [(names[k % len(names)], k % len(names)) for k in range(120)])
    for name in info["csid"]["datasets"]:
        write(info["csid"][name], id_items(18))
    write(info["ood"]["val"], ood_items(20))
    for split in ("near", "far"):
        for name in info["ood"][split]["datasets"]:
            write(info["ood"][split][name], ood_items(n_ood))
