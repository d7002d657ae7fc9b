"""``python -m benchmarks``: every benchmark in one run, as Markdown; ``--out docs/benchmarks.md``."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch

from benchmarks import methods, scale
from benchmarks.common import METHODS
from benchmarks.step import DUPLICATES, MAIN, SPREAD, measure, peak_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the Markdown here too")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    args = parser.parse_args()
    found: dict[str, Any] = {
        "few rows": measure(MAIN, 25),
        "spread": measure(SPREAD, 25),
        "near-duplicates": measure(DUPLICATES, 25),
        "memory": {name: peak_memory(name) for name in METHODS},
        "methods": {title: methods.measure(n, 15) for title, n in methods.SIZES.items()},
        "grid": scale.grid(),
        "replay": scale.replay(),
        "bank": scale.bank_memory(),
        "encodes": scale.encodes(),
        "import": scale.import_seconds(),
    }
    text = "\n".join(_markdown(found)) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _markdown(found: dict[str, Any]) -> list[str]:
    lines = [
        "# Benchmarks",
        "",
        "Written by `python -m benchmarks --out docs/benchmarks.md`, in one run. "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, no GPU. "
        "Measurements [on a GPU](benchmarks_gpu.md) and of [a long stream](benchmarks_soak.md) have "
        "pages of their own.",
        "",
        "## One step",
        "B 256, C 1000, M 10,000, D 512, L 10, 5,000 images cached; most images of the batch are cached "
        "in the step. Ratios to NegLabel's step; the fastest of 25.",
        "",
        "| images in | " + " | ".join(METHODS) + " |",
        "|---|" + "--:|" * len(METHODS),
    ]
    for name in ("few rows", "spread", "near-duplicates"):
        part = found[name]
        cells = " | ".join(f"{part['ratio'][m]:.2f} ({part['ms'][m]:.1f} ms)" for m in METHODS)
        rows = f"{part['rows holding images']:,} rows"
        lines.append(f"| {rows if name != 'near-duplicates' else name} | {cells} |")
    memory = " | ".join(f"{found['memory'][m]:.0f} MiB" for m in METHODS)
    lines.append(f"| peak memory added | {memory} |")
    lines += [
        "",
        "## Every method",
        "A mixed stream, queues and windows full. Milliseconds, and ratio to NegLabel's; in the last "
        "column one product with all text rows and its exponentials.",
        "",
        "| | " + " | ".join(next(iter(found["methods"].values()))["ms"]) + " |",
        "|---|" + "--:|" * len(next(iter(found["methods"].values()))["ms"]),
    ]
    for title, part in found["methods"].items():
        cells = " | ".join(f"{ms:.1f} ({part['to NegLabel'][m]:.2f})" for m, ms in part["ms"].items())
        lines.append(f"| {title} | {cells} |")
    lines += [
        "",
        "## Against the limit",
        "The limit is what a step must compute: one product with every text row, for AdaNeg a second "
        "one with every row that holds images (task) or every cached image (sample), and an exponential "
        "of each result. It is measured in turn with the steps.",
        "",
        "| | limit, ms | step, ms | ratio |",
        "|---|--:|--:|--:|",
    ]
    for setting in ("few rows", "spread", "near-duplicates"):
        part = found[setting]
        for name, limit in part["floor ms"].items():
            cells = (f"{limit:.1f}", f"{part['ms'][name]:.1f}", part["over the floor"][name])
            lines.append(f"| {name}, {setting} | {' | '.join(map(str, cells))} |")
    lines += [
        "",
        "## As sizes change",
        "Otherwise as above, images in few rows. Milliseconds, and ratio to NegLabel's.",
        "",
        "| | rows | " + " | ".join(METHODS[1:]) + " |",
        "|---|--:|" + "--:|" * len(METHODS[1:]),
    ]
    for name, part in found["grid"].items():
        cells = " | ".join(f"{part['ms'][m]:.1f} ({part['ratio'][m]:.2f})" for m in METHODS[1:])
        lines.append(f"| {name} | {part['rows holding images']:,} | {cells} |")
    for title, key in (
        ("A stream of 100,000 images, from an empty bank", "replay"),
        ("Memory of a bank", "bank"),
        ("Image encodes for a table of four methods and three stream orders", "encodes"),
        ("Seconds to import", "import"),
    ):
        lines += [
            "",
            f"## {title}",
            ", ".join(f"{name}: {value:,}" for name, value in found[key].items()),
        ]
    return lines


if __name__ == "__main__":
    main()
