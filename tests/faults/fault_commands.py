"""The commands that people wait for, on a world of a few images, and what each of them writes.

Everything goes through the command line, as a user's work does.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import numpy as np
from fault_tools import detection, snapshot, write_images

from adaneg_openood.cli import app
from adaneg_openood.evaluation import FeatureSet, save_features

DEMO = ("--model", "demo", "--workers", 0)
CLASSES = ("house", "chair", "cup")
NOUNS = ("sea", "forest", "zigzag", "polka", "mountain", "night", "rings", "mesh", "desert", "moon")
ADJECTIVES = ("red", "blue", "striped", "small")
YAML = """\
data: images
classes: classes.txt
model: demo
negatives: negatives.txt
id: {imglist: id.txt}
near: {odd: {folder: odd}}
far: {other: {folder: other}}
methods:
  NegLabel: {detector: neglabel, groups: 2}
  AdaNeg: {detector: adaneg, groups: 2, memory_length: 4}
seeds: [3, 5]
batch_size: 8
"""


def write_world(root: Path) -> Path:
    """Images, words, features and settings: all that the commands read, written once."""
    import torch
    from typer.testing import CliRunner

    lists = []
    for label, name in enumerate(CLASSES):
        write_images(root / "images" / "id" / name, 8)
        lists += [f"id/{name}/{index:02d}.png {label}" for index in range(8)]
    write_images(root / "images" / "odd", 10)
    write_images(root / "images" / "other", 11)
    (root / "images" / "id.txt").write_text("\n".join(lists) + "\n")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    (root / "words").mkdir()
    (root / "words" / "noun.txt").write_text("\n".join(NOUNS) + "\n")
    (root / "words" / "adj.txt").write_text("\n".join(ADJECTIVES) + "\n")
    (root / "negatives.txt").write_text("\n".join(NOUNS) + "\n")
    (root / "bench.yml").write_text(YAML)
    _, data = detection()
    # one set: a report draws pictures of each
    save_features(
        root / "bench.npz",
        FeatureSet(
            data.text_features,
            6,
            data.id_features[:30],
            data.id_labels[:30],
            {},
            {"c": data.far["c"][:24]},
        ),
    )
    with np.load(root / "bench.npz") as whole:
        arrays = dict(whole)
    (root / "folder" / "far").mkdir(parents=True)
    np.savez(root / "folder" / "text.npz", text_features=arrays["text_features"], n_id=arrays["n_id"])
    np.save(root / "folder" / "id_features.npy", arrays["id_features"])
    np.save(root / "folder" / "id_labels.npy", arrays["id_labels"])
    np.save(root / "folder" / "far" / "c.npy", arrays["far/c"])
    torch.save({"state_dict": {"ctx": torch.randn(2, 64)}, "epoch": 3}, root / "prompts.pth.tar")
    done = CliRunner().invoke(app, [str(argument) for argument in build(root, root / "run")])
    assert done.exit_code == 0, done.output
    return root


def build(world: Path, folder: Path) -> list[object]:
    return [
        *("build", "--classes", world / "classes.txt"),
        *("--negatives", world / "negatives.txt", "--validation", world / "images" / "id.txt"),
        *("--out", folder, *DEMO),
    ]


@dataclass(frozen=True)
class Job:
    """A command that takes a while.

    Attributes:
        arguments: of the world and the folder that everything goes to.
        prepare: what must lie in that folder before.
        openood: it needs OpenOOD.
        outputs: what it writes in that folder.
    """

    arguments: Callable[[Path, Path], list[object]]
    prepare: Callable[[Path, Path], object] = lambda world, out: None
    openood: bool = False
    outputs: tuple[str, ...] = ()


def _openood(command: str, *more: str) -> Callable[[Path, Path], list[object]]:
    """``@name`` is a place in the job's folder."""

    def arguments(world: Path, out: Path) -> list[object]:
        trial = world / "trial"
        return [
            *(command, "--benchmark", "demo", "--data", trial, "--configs", trial / "configs", *DEMO),
            *("--classes", trial / "words" / "class_names.txt"),
            *(str(out / text[1:]) if text.startswith("@") else text for text in more),
        ]

    return arguments


def write_trial(world: Path) -> None:
    """The drawn benchmark in OpenOOD's layout, every eighth image of it."""
    from typer.testing import CliRunner

    done = CliRunner().invoke(app, ["trial", str(world / "trial")])
    assert done.exit_code == 0, done.output
    for file in (world / "trial" / "benchmark_imglist").rglob("*.txt"):
        file.write_text("\n".join(file.read_text().splitlines()[::8]) + "\n")


JOBS = {
    "encode": Job(
        lambda world, out: [
            *("encode", world / "images" / "id", "--labelled", "--out", out / "id.safetensors", *DEMO),
            *("--batch-size", 4, "--part-size", 8),
        ],
        outputs=("id.safetensors",),
    ),
    "eval": Job(
        lambda world, out: [
            *(
                "eval",
                world / "bench.yml",
                "--workers",
                0,
                "--encode-batch",
                4,
                "--cache",
                out / "cache",
            ),
            *("--save-features", out / "all.npz", "--json", out / "e.json", "--csv", out / "e.csv"),
            *("--save", out / "scores"),
        ],
        outputs=("all.npz", "e.json", "e.csv", "scores"),
    ),
    "sweep": Job(
        lambda world, out: [
            *(
                "sweep",
                world / "bench.npz",
                "--out",
                out / "sweep",
                "--json",
                out / "s.json",
                "--no-plots",
            ),
            *("--grid", "gamma=0.3,0.5,0.7", "--grid", "gap=0,0.5", "--grid", "groups=2"),
            *("--batch-size", 16),
        ],
        outputs=("sweep", "s.json"),
    ),
    "encode labels": Job(
        lambda world, out: [
            *("encode", "--classes", world / "classes.txt", "--negatives", world / "negatives.txt"),
            *("--folder", out / "bench", "--cache", out / "cache", "--model", "demo"),
        ],
        outputs=("bench/text.npz",),
    ),
    "mine": Job(
        lambda world, out: [
            *("mine", "--classes", world / "classes.txt", "-n", 6),
            *("--corpus", world / "words", "--model", "demo", "--out", out / "mined.txt"),
        ],
        outputs=("mined.txt",),
    ),
    "reproduce": Job(
        lambda world, out: [
            *("reproduce", "four-ood", "--features", world / "bench.npz", "--batch-size", 16),
            *("--json", out / "r.json", "--csv", out / "r.csv", "--seeds", 2, "--plot", out / "r.png"),
        ],
        outputs=("r.json", "r.csv", "r.png"),
    ),
    "report": Job(
        lambda world, out: [
            *("report", world / "bench.npz", "--seeds", 1, "--out", out / "page.html"),
            *("--files", out / "files", "--save", out / "saved"),
            *("--json", out / "r.json", "--csv", out / "r.csv"),
        ],
        outputs=("page.html", "files", "saved", "r.json", "r.csv"),
    ),
    "build": Job(lambda world, out: build(world, out / "run"), outputs=("run",)),
    "predict --keep": Job(
        lambda world, out: [
            *("predict", out / "run", world / "images" / "odd"),
            *(
                "--csv",
                out / "v.csv",
                "--json",
                out / "v.json",
                "--keep",
                "--workers",
                0,
                "--batch-size",
                4,
            ),
        ],
        prepare=lambda world, out: shutil.copytree(world / "run", out / "run"),
        outputs=("v.csv", "v.json"),
    ),
    "compare": Job(
        _openood(
            "compare", "--postprocessors", "mcm,neglabel", "--json", "@c.json", "--markdown", "@c.md"
        ),
        openood=True,
        outputs=("c.json", "c.md"),
    ),
    "leaderboard": Job(
        _openood(
            "leaderboard", "--arch", "x", "--method", "mcm", "--out", "@board", "--json", "@l.json"
        ),
        openood=True,
        outputs=("board", "l.json"),
    ),
    "trial": Job(
        lambda world, out: ["trial", out / "trial"],
        openood=True,
        outputs=("trial",),
    ),
}
# over in a moment, and what they write is told on the terminal as well
MOMENTS = {
    "doctor": Job(
        lambda world, out: ["doctor", "--data-root", world, "--json", out / "d.json"],
        outputs=("d.json",),
    ),
    "cache prune": Job(
        lambda world, out: [
            *("cache", "prune", "--all", "--cache", out / "cache", "--json", out / "p.json"),
        ],
        outputs=("p.json",),
    ),
}


def written(out: Path) -> dict[str, bytes]:
    """What a job wrote, without the times that are told in it and what a kill leaves of a write."""
    found = {}
    for name, content in snapshot(out).items():
        if name.endswith(".tmp") or name.startswith("printed-"):
            continue
        if name.endswith((".json", ".html")):
            content = re.sub(rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d[\d:.+]*", b"<time>", content)
            content = re.sub(rb'"seconds": [\d.e-]+', b"<time>", content)
        if name.endswith("report.json"):  # its checksum covers the time
            content = re.sub(rb'"checksum": "\w+"', b"<checksum>", content)
        if name.endswith(".yml"):
            content = content.replace(str(out.resolve()).encode(), b"<out>")
        if name.endswith("c.md"):
            content = re.sub(rb" (seconds|[\d.]+) \|$", b"", content, flags=re.M)
        found[name] = content
    return found
