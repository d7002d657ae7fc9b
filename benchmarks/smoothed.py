"""SmoothedNegLabel against NegLabel on streams of many kinds: ``python -m benchmarks.smoothed``.

Nothing is chosen here: the method's constants are fixed. Every stream on which AUROC falls by more than
0.2 points, or FPR@95 rises by more than 1, is named, with what a paired bootstrap over its images says.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from adaneg_openood import NegLabel, SmoothedNegLabel
from adaneg_openood.evaluation import ood_metrics, paired_bootstrap, run_stream, stream_order
from benchmarks.worlds import LOGIT_SCALE, World, report_worlds, selection_worlds

SEEDS = range(3)
_METRICS = ("FPR@95", "AUROC", "ACC")
_MIXES = ((3, 250), (10, 200), (25, 200), (200, 25), (200, 10), (250, 3))


@dataclass(frozen=True)
class Task:
    """One stream's images and text.

    Attributes:
        family: of streams that are reported together.
        name: within it.
        text: (C + M, D).
        n_id: C.
        id_images: (N, D).
        labels: (N,).
        ood_images: (n, D).
        batch_size: of the stream.
        logit_scale: s.
    """

    family: str
    name: str
    text: Tensor
    n_id: int
    id_images: Tensor
    labels: Tensor
    ood_images: Tensor
    batch_size: int = 64
    logit_scale: float = LOGIT_SCALE


@dataclass(frozen=True)
class Change:
    """What SmoothedNegLabel changes on a task.

    Attributes:
        before, after: (3,) FPR@95 (OOD positive), AUROC and ACC in percent, means over the orders.
        verdict: empty where AUROC and FPR@95 are within the bounds; else what the bootstrap says.
    """

    before: np.ndarray
    after: np.ndarray
    verdict: str

    @property
    def difference(self) -> np.ndarray:
        return self.after - self.before


def of_world(family: str, world: World, batch_size: int | None = None) -> Task:
    text, id_images, labels, ood_images = world.features()
    mix = f"{world.n_id}:{world.n_ood}"
    name = f"{world.kind}, C {world.n_classes}, M {world.n_negatives}, {mix}, seed {world.seed}"
    if batch_size is None:
        batch_size = 64 if world.n_id + world.n_ood < 4000 else 256
    return Task(family, name, text, world.n_classes, id_images, labels, ood_images, batch_size)


def lopsided_worlds() -> Iterator[World]:
    """Short streams of uneven mixes, with more and less agreement of images and text."""
    for i, (kind, alignment) in enumerate((k, a) for k in ("near", "far") for a in (0.45, 0.6, 0.8)):
        for j, (n_id, n_ood) in enumerate(_MIXES):
            classes = (10, 30, 80)[(i + j) % 3]
            yield World(40_000 + 10 * i + j, kind, classes, 300 + 300 * (j % 2), n_id, n_ood, alignment)


def tasks(most_images: int = 50_000) -> Iterator[Task]:
    for family, worlds in (("selection worlds", selection_worlds()), ("report worlds", report_worlds())):
        for world in worlds:
            if world.n_id + world.n_ood <= most_images:
                yield of_world(family, world)
    for world in lopsided_worlds():
        yield of_world("short and lopsided", world)
    for world in lopsided_worlds():
        if world.seed % 3 == 0:
            yield of_world("short and lopsided, batch 1", replace(world, seed=world.seed + 1000), 1)
    yield from demo_tasks()


def demo_tasks() -> Iterator[Task]:
    from adaneg_openood.benchmark.run import benchmark_features

    data = benchmark_features("demo")
    for name, images in {**data.near, **data.far}.items():
        yield Task(
            "demo",
            name,
            data.text_features,
            data.n_id,
            data.id_features,
            data.id_labels,
            images,
            logit_scale=data.logit_scale or LOGIT_SCALE,
        )


def real_tasks(folder: Path) -> Iterator[Task]:
    """Three tasks of real CLIP ViT-B/32 features, from a folder that is not part of this project."""
    images, text, mined = (np.load(folder / f"{name}.npz") for name in ("images", "text", "expected"))

    def unit(values: np.ndarray) -> Tensor:
        return normalize(torch.from_numpy(values.astype(np.float32)), dim=1)

    words, names, cifar = unit(text["feature"]), unit(text["id_feature"]), unit(images["cifar10"])
    label = torch.from_numpy(images["cifar10_label"]).long()
    animal = (label >= 2) & (label <= 7)
    found = {
        "cifar10_vs_fashion": (names, cifar, label, unit(images["fashion"])),
        "cifar10_vs_misc": (names, cifar, label, unit(images["misc"])),
        "animals_vs_vehicles": (names[2:8], cifar[animal], label[animal] - 2, cifar[~animal]),
    }
    for name, (of_id, id_images, labels, ood_images) in found.items():
        rows = torch.cat([of_id, words[torch.from_numpy(mined[f"mined_index__{name}"]).long()]])
        yield Task("real", name, rows, len(of_id), id_images, labels, ood_images)


def measure(task: Task, seeds: Iterable[int] = SEEDS) -> Change:
    """Both methods on the same stream orders."""
    features = torch.cat([task.ood_images, task.id_images])
    truth = np.concatenate([np.full(len(task.ood_images), -1), task.labels.numpy()])
    orders = [stream_order(len(task.ood_images), len(task.id_images), seed) for seed in seeds]

    def run(make: Callable[..., NegLabel | SmoothedNegLabel]) -> tuple[np.ndarray, list[np.ndarray]]:
        detector = make(task.text, task.n_id, logit_scale=task.logit_scale)
        scores = [run_stream(detector, features, order, task.batch_size) for order in orders]
        metrics = [ood_metrics(one.conf, truth, one.pred) for one in scores]
        means = np.mean([[values[name] for name in _METRICS] for values in metrics], axis=0)
        return means, [one.conf for one in scores]

    (before, plain), (after, smoothed) = run(NegLabel), run(SmoothedNegLabel)
    return Change(before, after, _verdict(after - before, smoothed, plain, truth))


def _verdict(
    difference: np.ndarray, smoothed: list[np.ndarray], plain: list[np.ndarray], truth: np.ndarray
) -> str:
    fpr, auroc, acc = difference
    if fpr <= 1.0 and auroc >= -0.2 and acc >= -1e-9:
        return ""
    test = paired_bootstrap(smoothed, plain, truth)
    fprs, aurocs = test["FPR@95"], test["AUROC"]
    higher_fpr = fpr > 1.0 and not fprs.may_be_chance
    lower_auroc = auroc < -0.2 and not aurocs.may_be_chance
    worse = higher_fpr or lower_auroc or acc < -1e-9
    told = f"FPR@95 p {fprs.p_value:.2f}, AUROC p {aurocs.p_value:.2f}"
    return f"worse ({told})" if worse else f"the bootstrap cannot tell ({told})"


def table(found: list[tuple[Task, Change]]) -> list[str]:
    """Markdown: a row for every family, and every stream that is beyond the bounds."""
    lines = [
        "| streams | number | FPR@95 NegLabel | SmoothedNegLabel | AUROC NegLabel | SmoothedNegLabel "
        "| worst FPR@95 | worst AUROC | beyond the bounds | worse |",
        "|---|" + "--:|" * 9,
    ]
    for family in dict.fromkeys(task.family for task, _ in found):
        changes = [change for task, change in found if task.family == family]
        before, after = (
            np.mean([getattr(c, when) for c in changes], axis=0) for when in ("before", "after")
        )
        fpr, auroc, _ = np.array([change.difference for change in changes]).T
        beyond = [change.verdict for change in changes if change.verdict]
        lines.append(
            f"| {family} | {len(changes)} | {before[0]:.2f} | {after[0]:.2f} | {before[1]:.2f} | "
            f"{after[1]:.2f} | {fpr.max():+.2f} | {auroc.min():+.2f} | {len(beyond)} | "
            f"{sum(told.startswith('worse') for told in beyond)} |"
        )
    named = [
        f"- {task.family}: {task.name}: FPR@95 {change.before[0]:.2f} to {change.after[0]:.2f}, "
        f"AUROC {change.before[1]:.2f} to {change.after[1]:.2f}; {change.verdict}"
        for task, change in found
        if change.verdict
    ]
    return [*lines, "", *(named or ["No stream is beyond the bounds."])]


def real_table(folder: Path) -> list[str]:
    """Markdown: FPR@95 / AUROC / ACC on the real tasks, five orders."""
    lines = ["| task | NegLabel | SmoothedNegLabel |", "|---|--:|--:|"]
    for task in real_tasks(folder):
        change = measure(task, range(5))
        cells = (" / ".join(f"{v:.2f}" for v in values) for values in (change.before, change.after))
        lines.append(f"| {task.name} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real", type=Path, help="folder of real CLIP features, for their table too")
    parser.add_argument("--most-images", type=int, default=50_000, help="leave out longer streams")
    parser.add_argument("--out", type=Path, help="write the Markdown here too")
    args = parser.parse_args()
    from tqdm import tqdm

    lines = [*real_table(args.real), ""] if args.real else []
    lines += table([(task, measure(task)) for task in tqdm(tasks(args.most_images), unit="stream")])
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
