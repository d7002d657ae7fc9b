"""What each stage costs an image or a word, for docs/scaling.md: ``python -m benchmarks.stages``.

Prints JSON. Encoding is measured with the embedded demo model, whose tower is so small that decoding and
bookkeeping show, and with a ViT-B/16 of random weights.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from adaneg_openood.data import ImageSet, encode_to_file
from adaneg_openood.data.feature_files import _read
from adaneg_openood.text import NegativeMiner
from benchmarks import scale
from benchmarks.common import images_near, make, text_rows

N_IMAGES = 6000


def seconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def encoding(root: Path) -> dict[str, float]:
    """Images a second with the demo model: one process, and two under torchrun."""
    import numpy as np

    from adaneg_openood.demo.world import NOUNS, draw

    folder = root / "images"
    folder.mkdir()
    names = list(NOUNS)
    for number in range(N_IMAGES):
        image = draw(names[number % len(names)], np.random.default_rng(number)).image
        image.save(folder / f"{number:05d}.png")
    found = {}

    def run(**options: Any) -> None:
        encode_to_file(folder, root / "a.safetensors", model="demo", labelled=False, progress=False,
                       overwrite=True, **options)  # fmt: skip

    run(workers=0)  # reads the files once, so that the disk's cache is warm
    for name, threads, workers in (("1 thread, decoding in it", 1, 0), ("2 threads, 2 workers", 2, 2)):
        torch.set_num_threads(threads)
        found[f"demo images/s, {name}"] = N_IMAGES / seconds(lambda w=workers: run(workers=w))  # type: ignore[misc]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
               "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
               "-m", "adaneg_openood", "encode", str(folder), "--out", str(root / "b.safetensors"),
               "--model", "demo", "--ood", "--workers", "0", "--part-size", "512",
               "--overwrite"]  # fmt: skip
    few = [*command, "--limit", "2"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "check": True}
    start = seconds(lambda: subprocess.run(few, **quiet))  # type: ignore[call-overload]
    whole = seconds(lambda: subprocess.run(command, **quiet))  # type: ignore[call-overload]
    found["torchrun of 2, seconds to start"] = start
    found["demo images/s, torchrun of 2 once started"] = N_IMAGES / (whole - start)
    found["same bytes"] = (root / "a.safetensors").read_bytes() == (root / "b.safetensors").read_bytes()
    found["bytes an image in the file (D 64)"] = (root / "a.safetensors").stat().st_size / N_IMAGES
    return found


def large_tower(root: Path, n_images: int = 48) -> dict[str, float]:
    """A ViT-B/16 on this CPU: batches side by side, one thread each, and all threads on each batch."""
    import open_clip
    from PIL import Image

    from adaneg_openood.vlm import OpenClip
    from adaneg_openood.vlm.preprocessing import paper_preprocess

    with torch.random.fork_rng():
        torch.manual_seed(0)
        towers = open_clip.create_model("ViT-B-16")
    transform, described = paper_preprocess(224, (0.5,) * 3, (0.5,) * 3)
    model = OpenClip(
        towers, open_clip.get_tokenizer("ViT-B-16"), transform, "b16", preprocessing=described
    )
    picture = Image.effect_noise((300, 260), 80).convert("RGB")
    source = ImageSet("noise", [f"{n}" for n in range(n_images)], [-1] * n_images, lambda _: picture)
    torch.set_num_threads(2)
    assert model.weights  # hashed once a model, so not a part of the cost an image
    whole = seconds(
        lambda: encode_to_file(
            source, root / "large" / "v.safetensors", model=model, batch_size=8, workers=0
        )
    )
    pixels = torch.stack([transform(picture)] * 8)
    model.encode_image(pixels)
    plain = seconds(lambda: [model.encode_image(pixels) for _ in range(n_images // 8)])
    return {
        "ViT-B/16 images/s, encode": n_images / whole,
        "ViT-B/16 images/s, tower alone": n_images / plain,
    }


def decoding(root: Path, n: int = 300) -> dict[str, float]:
    """JPEG files of ImageNet's usual size to pixels, on one core."""
    from PIL import Image

    from adaneg_openood.data import load_image
    from adaneg_openood.vlm.preprocessing import paper_preprocess

    # smooth with some grain, so that it takes about ImageNet's 110 kB
    picture = Image.effect_noise((500, 375), 60).resize((500, 375)).convert("RGB")
    picture.save(root / "x.jpg", quality=85)
    transform, _ = paper_preprocess(224, (0.5,) * 3, (0.5,) * 3)
    torch.set_num_threads(1)
    spent = seconds(lambda: [transform(load_image(root / "x.jpg")) for _ in range(n)])
    torch.set_num_threads(2)
    size = (root / "x.jpg").stat().st_size / 1e3
    return {"JPEG images/s decoded by one core": n / spent, "kB of that JPEG": size}


def files(root: Path, n: int = 100_000, dim: int = 512) -> dict[str, float]:
    """Reading a feature file with its checksum, and what an image takes."""
    from safetensors.torch import save_file

    from adaneg_openood.io.digests import tensor_digest

    features = normalize(torch.randn(n, dim), dim=1)
    names = [f"imagenet_1k/val/ILSVRC2012_val_{number:08d}.JPEG" for number in range(n)]
    about = {"names": names, "features_sha256": tensor_digest(features)}
    file = root / "f.safetensors"
    write = seconds(lambda: save_file({"features": features}, file, {"adaneg": json.dumps(about)}))
    size = file.stat().st_size
    read = seconds(lambda: _read(file))
    return {
        "bytes an image in the file (D 512)": size / n,
        "features read and checked, MB/s": size / read / 1e6,
        "features written, MB/s": size / write / 1e6,
    }


def mining(n: int = 70_000, n_id: int = 1000, dim: int = 512) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    miner = NegativeMiner(text_rows(n_id, dim, generator), 10_000)
    parts = text_rows(n, dim, generator).split(4096)
    return {"words/s mined, their features given": n / seconds(lambda: [miner.update(p) for p in parts])}


def million_labels(n_rows: int = 1_000_000, dim: int = 512, batch: int = 64) -> dict[str, float]:
    """A step with a million labels: milliseconds an image, and the process's memory."""
    import resource

    generator = torch.Generator().manual_seed(0)
    text = text_rows(n_rows, dim, generator)
    images = images_near(text, torch.randint(n_rows, (batch,), generator=generator), generator)
    found = {}
    for name in ("NegLabel", "AdaNeg (task)"):
        detector = make(name, text, 1000)
        detector.score(images)
        found[f"{name}, 1,000,000 rows, ms an image"] = (
            1e3
            / batch
            * min(
                seconds(lambda d=detector: d.score(images))
                for _ in range(3)  # type: ignore[misc]
            )
        )
        del detector
    found["peak memory of the process, GB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return found


def main() -> None:
    found: dict[str, Any] = {"torch": torch.__version__, "processors": os.cpu_count()}
    with tempfile.TemporaryDirectory() as folder:
        found.update(encoding(Path(folder)))
        found.update(large_tower(Path(folder)))
        found.update(decoding(Path(folder)))
        found.update(files(Path(folder)))
    found.update(mining())
    found.update(scale.replay())
    found.update(million_labels())
    print(
        json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in found.items()}, indent=1)
    )


if __name__ == "__main__":
    main()
