"""What a GPU gives, in one run, as Markdown: ``python -m benchmarks.cuda``.

Sections: ``parity`` and ``parity_of_others`` with the golden cases, ``step``, ``launches``, ``stream``,
``memory``, and those of :mod:`benchmarks.encode_stages`. Each compares with NegLabel, the pooled bank
and the floor, which is one product with every text row and its exponentials. With ``--baseline DIR``
the steps of an earlier version of this package are measured in the same run, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BATCH, N_ID, N_NEGATIVES, DIM = 256, 1000, 10_000, 512
LOGIT_SCALE = 100.0
GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "data" / "golden"


def inputs(device: str, n_batches: int = 40) -> tuple[Tensor, list[Tensor]]:
    """Text rows and a stream that fills a bank: half near ID names, half near negatives."""
    from benchmarks.common import images_near, text_rows

    generator = torch.Generator().manual_seed(0)
    text = text_rows(N_ID + N_NEGATIVES, DIM, generator)
    batches = []
    for _ in range(n_batches):
        near_id = torch.randint(0, N_ID, (BATCH // 2,), generator=generator)
        near_negative = torch.randint(N_ID, N_ID + 3000, (BATCH - BATCH // 2,), generator=generator)
        rows = torch.cat([near_id, near_negative])[torch.randperm(BATCH, generator=generator)]
        batches.append(images_near(text, rows, generator).to(device))
    return text.to(device), batches


def step_ms(score: Callable[[Tensor], object], batches: list[Tensor], repeats: int = 60) -> float:
    """Milliseconds per step in the steady state: the median of the device's own clock."""
    for batch in batches:
        score(batch)
    sync()
    times = []
    for number in range(repeats):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        score(batches[number % len(batches)])
        stop.record()
        times.append((start, stop))
    sync()
    return statistics.median(start.elapsed_time(stop) for start, stop in times)


def sync() -> None:
    torch.cuda.synchronize()


def table(head: list[str], rows: list[list[Any]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" + "|--:" * (len(head) - 1) + "|"]
    for row in rows:
        cells = [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def detectors(text: Tensor, names: list[str] | None = None) -> dict[str, Any]:
    """The methods that are compared, those with fixed and with pooled banks apart."""
    from adaneg_openood import OODD, TANL, AdaNeg, AdaNegConfig, NegLabel, SmoothedNegLabel

    made: dict[str, Callable[[], Any]] = {"NegLabel": lambda: NegLabel(text, N_ID)}
    for proxy in ("task", "sample"):
        for bank in ("fixed", "pooled"):
            config = AdaNegConfig(proxy=proxy)
            made[f"AdaNeg ({proxy}, {bank})"] = lambda c=config, b=bank: AdaNeg(  # type: ignore[misc]
                text, N_ID, LOGIT_SCALE, c, bank=b
            )
    made["SmoothedNegLabel"] = lambda: SmoothedNegLabel(text, N_ID)
    made["TANL"] = lambda: TANL(text, N_ID, noise_features=text[-15:])
    made["OODD"] = lambda: OODD(text, N_ID)
    return {name: make() for name, make in made.items() if names is None or name in names}


def floor(text: Tensor) -> Callable[[Tensor], Tensor]:
    """One product with every text row, and its exponentials."""
    return lambda batch: (batch @ text.T).mul_(LOGIT_SCALE).exp_()


def parity(device: str) -> str:
    """Every golden case of AdaNeg, with the fixed bank, on the device."""
    import numpy as np

    from adaneg_openood import AdaNeg
    from benchmarks.common import golden_config

    with np.load(GOLDEN / "inputs.npz") as file:
        text, images = torch.from_numpy(file["text"]), torch.from_numpy(file["image"])
        n_id, scale = int(file["n_id_labels"]), float(file["logit_scale"])
    rows, worst = [], 0.0
    for case in json.loads((GOLDEN / "cases.json").read_text()):
        half = case["dtype"] == "float16"
        config = golden_config(case, replacement="first" if half else "entropy")
        detector = AdaNeg(text.to(device), n_id, scale, config, bank="fixed")
        parts = [detector.score(batch.to(device)) for batch in images.split(case["batch_size"])]
        with np.load(GOLDEN / f"{case['name']}.npz") as expected:
            conf = torch.cat([part.conf for part in parts]).cpu().numpy()
            difference = float(abs(conf - expected["conf"]).max())
            cached = int(abs(detector.bank.counts.cpu().numpy() - expected["cached"]).sum())
            pred = torch.cat([part.pred for part in parts]).cpu().numpy()
            preds = int((pred != expected["pred"]).sum()) if case["cls"] == "plain" and not half else 0
        fine = difference <= (2e-2 if half else 2e-5) and cached <= (2 if half else 0) and not preds
        worst = worst if half else max(worst, difference)
        if not fine:
            rows.append([case["name"], difference, cached, preds])
    said = f"Golden cases within bounds: all but {len(rows)}; largest difference in float32 {worst:.1e}."
    return said + ("\n\n" + table(["case", "confidence", "cached", "predictions"], rows) if rows else "")


def parity_of_others(device: str) -> str:
    """Golden cases of TANL, OODD and SmoothedNegLabel on the device; OODD's with ties are left out."""
    import numpy as np

    from adaneg_openood import OODD, TANL, SmoothedNegLabel, TANLConfig

    def arrays(path: str) -> dict[str, Any]:
        with np.load(GOLDEN / path) as file:
            return {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}

    def conf(detector: Any, images: Tensor, batch_size: int) -> Tensor:
        parts = [detector.score(batch.to(device)).conf for batch in images.split(batch_size)]
        return torch.cat(parts).cpu().double()

    frontier, plain, smoothed = map(arrays, ("frontier/inputs.npz", "inputs.npz", "smoothed.npz"))
    text, worst, beyond = (
        frontier["text"].to(device),
        dict.fromkeys(("tanl", "oodd", "smoothed"), 0.0),
        [],
    )
    for case in json.loads((GOLDEN / "frontier" / "cases.json").read_text()):
        method, args, name = case["method"], case["args"], case["name"]
        if method not in worst or case.get("dtype") == "float16" or case.get("base") == "ties":
            continue
        is_ood = frontier["label"] < 0
        keys = {"given": torch.zeros(len(is_ood)), "id_first": is_ood, "ood_first": ~is_ood}
        images = frontier["image"][keys[case["order"]].int().sort(stable=True).indices]
        expected = arrays(f"frontier/{name}.npz")
        detector: Any
        if method == "tanl":
            config = TANLConfig(
                args["alpha"],
                int(args["beta"]),
                args["gamma"],
                args["memleng"],
                args["gap"],
                case["score_window"],
            )
            noise = frontier["noise"][: case["noise_rows"]]
            detector = TANL(text[: 20 + case["candidates"]], 20, config=config, noise_features=noise)
            orders = (expected["start_order_id"].long(), expected["start_order_noise"].long())
            detector._start_orders = orders
        else:
            groups = 1 if case["base"] == "g1" else 5
            detector = OODD(text, 20, k=args["k"], queue=args["queue_size"], groups=groups)
        difference = float((conf(detector, images, case["batch_size"]) - expected["conf"]).abs().max())
        worst[method] = max(worst[method], difference)
        if difference > (2e-5 if method == "tanl" else 1e-5):
            beyond.append(f"{name} ({difference:.1e})")
    for case in json.loads((GOLDEN / "smoothed.json").read_text()):
        name, kind = case["name"], case["name"].split("_")[0]
        text = plain["text"] if kind == "synthetic" else smoothed["open__text"]
        images = plain["image"] if kind == "synthetic" else smoothed[f"{kind}__image"]
        detector = SmoothedNegLabel(
            text.to(device), case["n_id"], case["logit_scale"], case["groups"], window=case["window"]
        )
        difference = conf(detector, images, case["batch_size"]) - smoothed[f"{name}__conf"]
        worst["smoothed"] = max(worst["smoothed"], float(difference.abs().max()))
        if float(difference.abs().max()) > 1e-4:
            beyond.append(f"{name} ({float(difference.abs().max()):.1e})")
    said = ", ".join(f"{method} {value:.1e}" for method, value in worst.items())
    return f"Largest differences in float32: {said}. Beyond the bounds: {', '.join(beyond) or 'none'}."


def step(device: str) -> str:
    text, batches = inputs(device)
    floor_ms = step_ms(floor(text), batches)
    times = {name: step_ms(d.score, batches) for name, d in detectors(text).items()}
    base = times["NegLabel"]
    rows = [["product + exponentials", floor_ms, floor_ms / base, ""]]
    rows += [[name, ms, ms / base, round(BATCH / ms * 1e3)] for name, ms in times.items()]
    return table(["step", "ms", "x NegLabel", "images/s"], rows)


# launches, graphs, and waiting for the device, as the profiler calls them
_RUNTIME = (
    ("cudaLaunchKernel", "cuLaunchKernel"),
    ("cudaGraphLaunch",),
    ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"),
)


def launches(device: str) -> str:
    """Kernel launches, graph launches and synchronisations of one step, by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    text, batches = inputs(device, 12)
    rows, top = [], ""
    for name, detector in detectors(text).items():
        for batch in batches:
            detector.score(batch)
        sync()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            detector.score(batches[0])
        events = [event.name for event in seen.events() or ()]
        kernels = sum(1 for e in seen.events() or () if "CUDA" in str(e.device_type).upper())
        rows.append(
            [
                name,
                *(sum(event.startswith(kind) for event in events) for kind in _RUNTIME),
                kernels,
            ]
        )
        if "fixed" in name:
            busy = sorted(seen.key_averages(), key=lambda e: -getattr(e, "device_time_total", 0.0))
            listed = [f"{e.key[:70]} x{e.count} {e.device_time_total:.0f}" for e in busy[:14]]
            top += f"\n\n{name}, longest kernels (microseconds):\n\n    " + "\n    ".join(listed)
    return table(["step", "launches", "graphs", "synchronisations", "kernels"], rows) + top


def stream(device: str) -> str:
    """A stream of 100,000 images that live on the device."""
    text, batches = inputs(device)
    n = 100_000 // BATCH
    rows = []
    for name, detector in detectors(text).items():
        for batch in batches[:6]:
            detector.score(batch)
        detector.reset()
        sync()
        start = time.perf_counter()
        kept = [detector.score(batches[number % len(batches)]).conf for number in range(n)]
        torch.cat(kept).cpu()
        rows.append([name, round(n * BATCH / (time.perf_counter() - start))])
    by_name = dict(rows)
    for row in rows:
        pooled = by_name.get(row[0].replace("fixed", "pooled"))
        row.append(round(row[1] / pooled, 2) if "fixed" in row[0] and pooled else "")
    return table(["stream of 100,000", "images/s", "x pooled bank"], rows)


def memory(device: str) -> str:
    text, batches = inputs(device, 6)
    rows = []
    for name in detectors(text):
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        detector = detectors(text, [name])[name]
        for batch in batches:
            detector.score(batch)
        sync()
        rows.append([name, round((torch.cuda.max_memory_allocated() - before) / 2**20)])
        del detector
    return table(["detector and steps", "peak MiB"], rows)


def baseline(folder: str) -> str:
    """Steps of an earlier version, in a process of its own; this benchmark's functions measure them."""
    code = (
        "import json\n"
        "from benchmarks.cuda import LOGIT_SCALE, N_ID, inputs, step_ms\n"
        "from adaneg_openood import AdaNeg, AdaNegConfig, NegLabel\n"
        "text, batches = inputs('cuda')\n"
        "made = {'NegLabel': NegLabel(text, N_ID)}\n"
        "for proxy in ('task', 'sample'):\n"
        "    config = AdaNegConfig(proxy=proxy)\n"
        "    made[f'AdaNeg ({proxy})'] = AdaNeg(text, N_ID, LOGIT_SCALE, config)\n"
        "print(json.dumps({name: step_ms(d.score, batches) for name, d in made.items()}))\n"
    )
    places = [Path(folder).resolve(), Path(__file__).resolve().parents[1]]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=places[0],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return f"failed: {done.stderr.strip().splitlines()[-1]}"
    times = json.loads(done.stdout.strip().splitlines()[-1])
    return table(["step of the earlier version", "ms"], [[name, ms] for name, ms in times.items()])


def sections(args: argparse.Namespace) -> Iterator[tuple[str, Callable[[], str]]]:
    for make in (parity, parity_of_others, step, launches, stream, memory):
        yield make.__name__, lambda m=make: m("cuda")  # type: ignore[misc]
    if args.baseline:
        yield "baseline", lambda: baseline(args.baseline)
    try:
        from benchmarks import encode_stages
    except ImportError:
        return
    yield from encode_stages.sections().items()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="sections to run; all by default")
    parser.add_argument("--baseline", help="folder of an earlier version's source")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this needs a CUDA device")
    torch.backends.cuda.matmul.allow_tf32 = False
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"B {BATCH}, C {N_ID}, M {N_NEGATIVES}, D {DIM}\n")
    for name, run in sections(args):
        if args.only and name not in args.only:
            continue
        start = time.perf_counter()
        try:
            said = run()
        except Exception:  # the other sections go on
            said = "failed:\n\n    " + traceback.format_exc().strip().replace("\n", "\n    ")
        print(f"## {name}\n\n{said}\n\n({time.perf_counter() - start:.0f} s)\n", flush=True)


if __name__ == "__main__":
    main()
