"""The calibrated mode against NegLabel: ``python -m benchmarks.safe choose`` and ``... report``.

``choose`` tries gains on the selection streams and the demo, and takes the best of those that are worse
than NegLabel on none of them, also with one task left out in turn.
``report`` writes ``docs/safe_table.md``: the demo, and synthetic streams that nothing was chosen on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Callable

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from adaneg_openood import AdaNeg, AdaNegConfig, NegLabel
from adaneg_openood.evaluation import FeatureSet, ood_metrics, run_stream, stream_order
from adaneg_openood.evaluation.sweep import sweep
from adaneg_openood.evaluation.uncertainty import paired_bootstrap
from benchmarks.worlds import LOGIT_SCALE, report_worlds, selection_worlds

GAINS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
_METRICS = ("FPR@95", "AUROC", "ACC")
Task = tuple[str, Tensor, int, float, Tensor, Tensor, Tensor]


def synthetic_tasks(worlds: Iterable) -> Iterable[Task]:  # type: ignore[type-arg]
    for world in worlds:
        text, id_images, labels, ood_images = world.features()
        name = f"{world.kind}, C {world.n_classes}, M {world.n_negatives}, {world.n_id}:{world.n_ood}"
        yield name, text, world.n_classes, LOGIT_SCALE, id_images, labels, ood_images


def demo_tasks() -> Iterable[Task]:
    from adaneg_openood.demo.run import demo_features

    data = demo_features(progress=False)
    for name, images in {**data.near, **data.far}.items():
        yield (
            f"demo {name}",
            data.text_features,
            data.n_id,
            data.logit_scale,
            data.id_features,
            data.id_labels,
            images,
        )


def run(
    task: Task, make: Callable[..., object], seeds: Iterable[int]
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """What a method gives on a task.

    Returns:
        (3,) means over the stream orders of FPR@95 (OOD positive), AUROC and ACC in percent; the
        confidences of every order; and the labels (-1 = OOD).
    """
    _, text, n_id, scale, id_images, labels, ood_images = task
    features = torch.cat([ood_images, id_images])
    truth = np.concatenate([np.full(len(ood_images), -1), labels.numpy()])
    batch = _batch_size(task)
    rows, confs = [], []
    for seed in seeds:
        order = stream_order(len(ood_images), len(id_images), seed)
        scores = run_stream(make(text, n_id, scale), features, order, batch)  # type: ignore[arg-type]
        metrics = ood_metrics(scores.conf, truth, scores.pred)
        rows.append([metrics[name] for name in _METRICS])
        confs.append(scores.conf)
    return np.mean(rows, axis=0), confs, truth


def _neglabel(text: Tensor, n_id: int, scale: float) -> NegLabel:
    return NegLabel(text, n_id, logit_scale=scale)


def _adaneg(config: AdaNegConfig) -> Callable[[Tensor, int, float], AdaNeg]:
    return lambda text, n_id, scale: AdaNeg(text, n_id, scale, config)


def _batch_size(task: Task) -> int:
    return 64 if len(task[4]) + len(task[6]) < 4000 else 256


def _gains(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Of every gain: (N, 3) changes from NegLabel's metrics, and (N,) whether it is worse."""
    _, text, n_id, scale, id_images, labels, ood_images = task
    data = FeatureSet(text, n_id, id_images, labels, {"ood": ood_images}, {}, logit_scale=scale)
    base, plain, truth = run(task, _neglabel, (0,))
    grid = sweep(
        data, {"gain": GAINS}, base=AdaNegConfig.safe(), seeds=range(3), batch_sizes=[_batch_size(task)]
    )
    means = grid.records.groupby("gain", sort=True)[list(_METRICS)].mean()
    change = means.to_numpy() - base
    worse = []
    for gain, row in zip(GAINS, change):
        beyond = not _within(row)
        if beyond:  # only then does the bootstrap have something to say, and confidences are needed
            safe = run(task, _adaneg(AdaNegConfig.safe(gain=gain)), range(3))[1]
            beyond = verdict(row, safe, plain, truth) == "worse"
        worse.append(beyond)
    return change, np.array(worse)


def choose() -> None:
    tasks = [*synthetic_tasks(selection_worlds()), *demo_tasks()]
    found = [_gains(task) for task in tqdm(tasks, unit="task")]
    change = np.stack([part for part, _ in found], axis=1)
    worse = np.stack([part for _, part in found], axis=1)
    for gain, rows, lost in zip(GAINS, change, worse):
        print(
            f"gain {gain}: AUROC {rows[:, 1].mean():+.2f} (worst {rows[:, 1].min():+.2f}), "
            f"FPR@95 {rows[:, 0].mean():+.2f} (worst {rows[:, 0].max():+.2f}), "
            f"ACC {rows[:, 2].mean():+.2f} (worst {rows[:, 2].min():+.2f}), worse on {lost.sum()} "
            f"of {len(tasks)}" + "".join(f"; {tasks[i][0]}" for i in np.flatnonzero(lost)[:3])
        )

    def best(kept: np.ndarray) -> int:
        harmless = np.flatnonzero(~worse[:, kept].any(axis=1))
        return int(max(harmless, key=lambda i: change[i, kept, 1].mean()))

    everyone = np.arange(len(tasks))
    print(f"chosen: {GAINS[best(everyone)]}")
    left_out = [(best(np.delete(everyone, task)), task) for task in everyone]
    gains, counts = np.unique([GAINS[gain] for gain, _ in left_out], return_counts=True)
    losses = [change[gain, task, 1] for gain, task in left_out]
    lost = sum(bool(worse[gain, task]) for gain, task in left_out)
    print(f"chosen with one task left out: {dict(zip(gains.tolist(), counts.tolist()))}")
    print(
        f"on the task left out: AUROC mean {np.mean(losses):+.2f}, worst {np.min(losses):+.2f}, "
        f"worse on {lost}"
    )


def _within(change: np.ndarray) -> bool:
    """Whether changes of (FPR@95, AUROC, ACC) from NegLabel's are within the mode's bounds."""
    fpr, auroc, acc = change
    return bool(auroc >= -0.2 and fpr <= 1.0 and acc >= -1.0)


def verdict(
    change: np.ndarray, safe: list[np.ndarray], plain: list[np.ndarray], truth: np.ndarray
) -> str:
    """Whether the bounds hold, and if not, what a paired bootstrap over the images says."""
    if _within(change):
        return "holds"
    test = paired_bootstrap(safe, plain, truth)
    fprs, aurocs = test["FPR@95"], test["AUROC"]
    fpr, auroc, acc = change
    if (fpr > 1.0 and fprs.low > 0) or (auroc < -0.2 and aurocs.high < 0) or acc < -1.0:
        return "worse"
    return f"not worse: FPR p {fprs.p_value:.2f}, AUROC p {aurocs.p_value:.2f}"


def report(path: Path) -> None:
    lines = [
        "| task | FPR@95 NegLabel | AdaNeg | safe | AUROC NegLabel | AdaNeg | safe "
        "| ACC NegLabel | AdaNeg | safe | bounds |",
        "|---|" + "--:|" * 9 + "---|",
    ]
    methods = (_neglabel, _adaneg(AdaNegConfig()), _adaneg(AdaNegConfig.safe()))
    rows, verdicts = [], []
    for task in [*demo_tasks(), *synthetic_tasks(report_worlds())]:
        runs = [run(task, make, (0,) if make is _neglabel else range(5)) for make in methods]
        values = np.array([metrics for metrics, *_ in runs])
        rows.append(values)
        verdicts.append(verdict(values[2] - values[0], runs[2][1], runs[0][1], runs[0][2]))
        cells = " | ".join(f"{value:.2f}" for value in values.T.ravel())
        lines.append(f"| {task[0]} | {cells} | {verdicts[-1]} |")
        print(lines[-1])
    mean = np.mean(rows, axis=0)
    cells = " | ".join(f"**{value:.2f}**" for value in mean.T.ravel())
    held = sum(said != "worse" for said in verdicts)
    lines.append(f"| **mean** | {cells} | {held} of {len(verdicts)} |")
    print(lines[-1])
    path.write_text(
        "<!-- written by python -m benchmarks.safe report -->\n" + "\n".join(lines) + "\n", "utf-8"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("choose", "report"))
    parser.add_argument("--out", type=Path, default=Path("docs/safe_table.md"))
    args = parser.parse_args()
    if args.what == "choose":
        choose()
    else:
        report(args.out)


if __name__ == "__main__":
    main()
