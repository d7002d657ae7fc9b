"""One rank of a test: runs the scenarios named on its command line and writes down what came of them.

Started by test_distributed.py with torchrun's environment variables. Its model is a few lines, so that
a process costs little more than importing torch.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize


class TinyModel:
    """The protocol, with a random projection for a tower."""

    name, dim, logit_scale = "tiny", 32, 100.0

    def __init__(self, seed=0, pause=0.0, poison=None):
        generator = torch.Generator().manual_seed(seed)
        self.weights = torch.randn(3 * 16 * 16, 256, generator=generator) / 16
        self.second = torch.randn(256, self.dim, generator=generator) / 16
        self.device = torch.device("cpu")
        self.seed, self.pause, self.poison = seed, pause, poison

    def preprocess(self, image):
        array = np.asarray(image.convert("RGB").resize((16, 16)), dtype=np.float32)
        return torch.from_numpy(array / 255 - 0.5).permute(2, 0, 1)

    def encode_image(self, pixels):
        time.sleep(self.pause)
        hidden = torch.relu(pixels.flatten(1) @ self.weights)
        return normalize(hidden @ self.second, dim=-1)

    def encode_text(self, texts):
        raise NotImplementedError

    def to(self, device):
        return self

    def describe(self):
        return {"model": self.name, "weights": f"seed {self.seed}", "dim": self.dim, "precision": "fp32"}


def encode(group, images, out, **options):
    from adaneg_openood.data import ImageSet, encode_to_file

    model = TinyModel(**{key: options.pop(key) for key in ("seed", "pause") if key in options})
    options = {"batch_size": 3, "part_size": 6, "workers": 0, **options}
    return str(encode_to_file(ImageSet.of(images), out, model=model, group=group, **options))


def whole(group, images, out):
    return encode(group, images, out / "whole.safetensors")


def slow(group, images, out):
    return encode(group, images, out / "slow.safetensors", pause=0.15)


def broken(group, images, out):
    return encode(group, images.with_name("broken"), out / "broken.safetensors")


def other_model(group, images, out):
    return encode(group, images, out / "other.safetensors", seed=int(group.rank == group.size - 1))


def no_folder(group, images, out):
    from adaneg_openood.data import encode_to_file

    place = images if group.is_first else images / "nosuch"
    return str(encode_to_file(place, out / "none.safetensors", model=TinyModel(), group=group))


def share(group, images, out):
    def work(job):
        time.sleep(0.01 * (job % 3))
        return {"job": job, "by": group.rank}

    return [group.share(list(range(13)), work), group.share([], work), group.each(lambda: group.rank)]


def share_fails(group, images, out):
    started = []

    def work(job):
        started.append(job)
        if job == 1:
            raise FileNotFoundError("job 1 has no file")
        time.sleep(0.05)

    try:
        group.share(list(range(400)), work)
    finally:
        (out / f"started{group.rank}.json").write_text(json.dumps(started))


def evaluated(group, images, out):
    detectors, data = detection()
    from adaneg_openood.evaluation import Protocol, replay

    protocol = Protocol(seeds=(0, 1, 5), batch_size=16)
    made = replay(data, detectors, protocol, group=group, folder=out / "scores", watch_bank=True)
    return [made.records.to_csv(index=False), made.warnings, scores_digest(made)]


def scores_digest(run):
    """Of every array of a run."""
    import hashlib

    digest = hashlib.sha256()
    for key, result in run.streams.items():
        for name, array in result.arrays().items():
            digest.update(f"{key} {name} {array.dtype} {array.shape}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def commands(group, images, out):
    """``eval`` and ``sweep`` of images/small.yml, as on the command line."""
    from adaneg_openood.cli import app

    options = [str(images / "small.yml"), "--workers", "0", "--cache", str(out / "cache")]
    results, sweep = ["--json", str(out / "eval.json")], ["--out", str(out / "sweep"), "--no-plots"]
    app(["eval", *options, *results], standalone_mode=False)
    grid = ["--grid", "gamma=0.3,0.5", "--grid", "proxy=task,sample", "--seeds", "2"]
    app(["sweep", *options, *sweep, *grid], standalone_mode=False)


def detection():
    from adaneg_openood import MCM, AdaNeg, AdaNegConfig
    from adaneg_openood.evaluation import FeatureSet

    generator = torch.Generator().manual_seed(3)

    def rows(n):
        return normalize(torch.randn(n, 8, generator=generator), dim=-1)

    text, ids = rows(20), rows(60)
    labels = torch.randint(0, 6, (60,), generator=generator)
    data = FeatureSet(text, 6, ids, labels, {"a": rows(20), "b": rows(31)}, {"c": rows(40)}, 20.0)
    settings = AdaNegConfig(groups=2, proxy="sample")
    return {"mcm": MCM(text, 6), "adaneg": AdaNeg(text, 6, 20.0, settings)}, data


SCENARIOS = {
    work.__name__: work
    for work in (whole, slow, broken, other_model, no_folder, share, share_fails, evaluated, commands)
}


def main() -> None:
    from adaneg_openood.io.processes import process_group

    images, out, *names = sys.argv[1:]
    told = {}
    with process_group() as group:
        for name in names:
            try:
                told[name] = {"value": SCENARIOS[name](group, Path(images), Path(out))}
            except Exception as error:
                told[name] = {"error": type(error).__name__, "text": str(error)}
    (Path(out) / f"rank{group.rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
