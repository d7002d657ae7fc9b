"""``sweep``: many settings over the same features."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

import typer

from adaneg_openood.cli.benchmarks import (
    CACHE,
    DATA,
    ENCODE_BATCH,
    FSOOD,
    SOURCE,
    encode_settings,
    opened,
    seeds_of,
)
from adaneg_openood.cli.common import DEVICE, JSON, SKIP_BROKEN, WORKERS, readable_errors

_SHOWN = 12  # best configurations that are printed


def sweep(
    source: str = SOURCE,
    out: Path = typer.Option(..., help="Folder of the sweep; taken up there if it was interrupted."),
    grid: Optional[list[str]] = typer.Option(
        None, "--grid", help="A setting of AdaNegConfig and its values: gamma=0.3,0.5. Repeat it."
    ),
    method: Optional[str] = typer.Option(
        None, help="Start from this AdaNeg method of the benchmark, not from the published settings."
    ),
    mode: str = typer.Option("published", help="Without --method: published or released."),
    ratio: Optional[str] = typer.Option(None, help="ID:OOD ratios, such as 1:10,1:1,10:1."),
    images: Optional[str] = typer.Option(None, help="Numbers of test images, such as 1000,5000."),
    batch_size: Optional[str] = typer.Option(None, help="Batch sizes, such as 64,256."),
    order: Optional[str] = typer.Option(None, help="Stream orders: mixed, id_first or both."),
    seed: Optional[int] = typer.Option(None, min=0, help="First seed."),
    orders: Optional[int] = typer.Option(None, min=1, help="Number of seeds."),
    plots: bool = typer.Option(True, "--plots/--no-plots", help="A picture an axis, with error bars."),
    data: Optional[Path] = DATA,
    fsood: Optional[bool] = FSOOD,
    workers: Optional[int] = WORKERS,
    encode_batch: int = ENCODE_BATCH,
    skip_broken: bool = SKIP_BROKEN,
    cache: Optional[Path] = CACHE,
    device: str = DEVICE,
    json_file: Optional[Path] = JSON,
) -> None:
    """AdaNeg over a grid of settings, ratios, numbers of images, batch sizes, orders and seeds.

    Under torchrun its processes share the images and then the streams: torchrun --nproc-per-node 4 -m
    adaneg_openood sweep ... writes the same results as one process.
    """
    with readable_errors():
        from adaneg_openood.benchmark.check import refuse_missing
        from adaneg_openood.benchmark.methods import adaneg_config
        from adaneg_openood.benchmark.run import encode_benchmark
        from adaneg_openood.evaluation.streams import ORDERS
        from adaneg_openood.evaluation.subsets import parse_ratio
        from adaneg_openood.evaluation.sweep import grid_configs
        from adaneg_openood.evaluation.sweep import sweep as run
        from adaneg_openood.io.processes import process_group

        benchmark = opened(source, data, fsood)
        base = adaneg_config(mode) if method is None else benchmark.config_of(method)
        values = _grid(grid or [])
        released = mode == "released" and method is None
        n_configs = len(grid_configs(values, base, released))  # a typing error comes before encoding
        ratios: list[Any] = [parse_ratio(part) for part in _parts(ratio)] or [None]
        named = _parts(order) or [benchmark.order]
        unknown = [name for name in named if name not in ORDERS]
        if unknown:
            raise ValueError(f"--order must be of {', '.join(ORDERS)}, got {unknown[0]!r}")
        numbers = _numbers("--images", images) or [None]
        sizes = _numbers("--batch-size", batch_size) or [benchmark.batch_size]
        with process_group(device) as group:
            group.first(lambda: refuse_missing(benchmark, cache))
            settings = encode_settings(device, encode_batch, workers, skip_broken, cache, group)
            features = encode_benchmark(benchmark, settings, group).data
            result = run(
                features,
                values,
                base=base,
                released=released,
                seeds=seeds_of(benchmark, seed, orders),
                batch_sizes=sizes,
                orders=named,
                ratios=ratios,
                n_images=numbers,
                folder=out,
                device=settings.device,
                progress=True,
                group=group,
            )
            if not group.is_first:
                return
        typer.echo(f"{n_configs} configurations, {len(result.records)} runs, {result.computed} now")
        columns = [*result.axes, "FPR@95", "FPR@95 (ID positive)", "AUROC", "AUROC std"]
        for row in ("nearood", "farood"):
            best = result.best("AUROC", row)
            if len(best):
                text = best[columns].head(_SHOWN).round(2).to_string(index=False)
                typer.echo(f"\nBest AUROC on {row}, in percent:\n{text}")
        written = ["results.csv", "summary.csv", "conventions.json"]
        if plots and result.axes:
            import dataclasses

            from adaneg_openood.evaluation.sweep_plots import plot_sweep

            start = {**dataclasses.asdict(base), "batch_size": benchmark.batch_size, "ratio": "1:1"}
            written += [file.name for file in plot_sweep(result, out, start)]
        if json_file is not None:
            _write_json(json_file, result)
        typer.echo(f"\n{out}: {', '.join(written)}")


def _write_json(file: Path, result: Any) -> None:
    from adaneg_openood.io.files import atomic_path

    with atomic_path(file) as temporary:
        result.records.to_json(temporary, orient="records", indent=1)


def _parts(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _numbers(option: str, text: str | None) -> list[Any]:
    parts = _parts(text)
    wrong = [part for part in parts if not part.isdigit()]
    if wrong:
        raise ValueError(f"{option} takes whole numbers with commas, got {wrong[0]!r}")
    return [int(part) for part in parts]


def _grid(options: list[str]) -> dict[str, list[Any]]:
    """``["gamma=0.3,0.5"]`` -> ``{"gamma": [0.3, 0.5]}``; values are read as YAML."""
    import yaml

    found: dict[str, list[Any]] = {}
    for text in options:
        key, equals, values = text.partition("=")
        parts = _parts(values)
        if not equals or not parts:
            raise ValueError(f"--grid takes SETTING=VALUE,VALUE, got {text!r}")
        if key in found:
            raise ValueError(f"--grid: {key} is there twice; give all its values at once")
        found[key] = [yaml.safe_load(part) for part in parts]
    return found
