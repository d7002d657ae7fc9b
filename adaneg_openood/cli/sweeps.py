"""``sweep``: many settings over the same features."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

import typer

from adaneg_openood.cli import options
from adaneg_openood.cli.benchmarks import encode_options
from adaneg_openood.cli.common import (
    check_outputs,
    named_values,
    read_source,
    readable_errors,
    show,
    write_json,
)

_SHOWN = 12  # best configurations that are printed
_AXES = ("batch_size", "order", "ratio", "n_images")  # of the protocol


def sweep(
    source: str = options.SOURCE,
    out: Path = typer.Option(..., help="Folder of the sweep, where an interrupted one goes on."),
    grid: Optional[list[str]] = typer.Option(
        None,
        "--grid",
        help="A setting of the method and its values, such as gamma=0.3,0.5; or one of the protocol: "
        "batch_size=64,256, order=mixed,id_first, ratio=1:10,1:1 (ID:OOD), n_images=1000,5000. "
        "Repeatable.",
    ),
    method: str = typer.Option(
        "adaneg", help="A method of the benchmark, which the grid starts from, or a detector's name."
    ),
    released: bool = typer.Option(
        False, "--released", help="Run every combination as the released code does."
    ),
    batch_size: Optional[int] = options.BATCH_SIZE,
    order: Optional[str] = options.ORDER,
    seed: Optional[int] = options.SEED,
    seeds: Optional[Any] = options.SEEDS,
    plots: bool = typer.Option(
        True, "--plots/--no-plots", help="Draw one picture per axis, with error bars."
    ),
    data: Optional[Path] = options.DATA,
    full_spectrum: Optional[bool] = options.FULL_SPECTRUM,
    workers: Optional[int] = options.WORKERS,
    encode_batch: int = options.ENCODE_BATCH,
    skip_broken: Optional[bool] = options.SKIP_BROKEN,
    cache: Optional[Path] = options.CACHE,
    device: str = options.DEVICE,
    json_file: Optional[Path] = options.JSON,
) -> None:
    """Run a method over a grid of settings, ratios, numbers of images, batch sizes, orders and seeds.

    Under torchrun its processes share the images and then the streams: torchrun --nproc-per-node 4 -m
    adaneg_openood sweep ... writes the same results as one process.
    """
    with readable_errors():
        from adaneg_openood.benchmark.opening import open_benchmark
        from adaneg_openood.benchmark.run import encode_benchmark
        from adaneg_openood.evaluation.sweep import grid_configs
        from adaneg_openood.evaluation.sweep import sweep as run
        from adaneg_openood.io.processes import process_group

        benchmark = read_source(
            source,
            data,
            full_spectrum=full_spectrum,
            batch_size=batch_size,
            order=order,
            seed=seed,
            seeds=seeds,
            skip_broken=skip_broken,
            cache=cache,
        )
        spec = benchmark.method(method)
        values = _grid(grid or [])
        axes = {name: values.pop(name) for name in _AXES if name in values}
        # a typing error comes before encoding
        n_configs = len(grid_configs(values, spec.settings, released, spec.detector))
        check_outputs(json_file, out / "results.csv")
        with process_group(device) as group:
            opened = group.local(lambda: open_benchmark(benchmark), first_alone=True)
            chosen = encode_options(device, encode_batch, workers, group)
            features = encode_benchmark(opened, chosen, group).data
            result = run(
                features,
                values,
                method=spec.detector,
                base=spec.settings,
                released=released,
                seeds=benchmark.seeds,
                batch_sizes=axes.get("batch_size", [benchmark.batch_size]),
                orders=axes.get("order", [benchmark.order]),
                ratios=axes.get("ratio", [None]),
                n_images=axes.get("n_images", [None]),
                folder=out,
                device=chosen.device,
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
                show(f"\nBest AUROC on {row}, in percent:\n{text}")
        written = ["results.csv", "summary.csv", "conventions.json"]
        if plots and result.axes:
            from adaneg_openood.evaluation.sweep_plots import plot_sweep

            start = {**spec.to_dict(), "batch_size": benchmark.batch_size, "ratio": "1:1"}
            written += [file.name for file in plot_sweep(result, out, start)]
        write_json(
            json_file,
            result.records.astype(object).where(result.records.notna(), None).to_dict("records"),
        )
        typer.echo(f"\n{out}: {', '.join(written)}")


def _grid(given: list[str]) -> dict[str, list[Any]]:
    """``["gamma=0.3,0.5"]`` -> ``{"gamma": [0.3, 0.5]}``; values are read as YAML, ratios as such."""
    import yaml

    from adaneg_openood.evaluation.streams import ORDERS
    from adaneg_openood.evaluation.subsets import parse_ratio
    from adaneg_openood.io.configuration import not_allowed

    found: dict[str, list[Any]] = {}
    for key, text in named_values("--grid", "SETTING=VALUE,VALUE", given):
        parts = [part.strip() for part in text.split(",") if part.strip()]
        if not parts:
            raise ValueError(f"--grid takes SETTING=VALUE,VALUE, got {key}={text!r}")
        if key in found:
            raise ValueError(f"--grid: {key} is there twice; give all its values at once")
        found[key] = [parse_ratio(part) if key == "ratio" else yaml.safe_load(part) for part in parts]
        for value in found[key]:
            if key in ("batch_size", "n_images") and (type(value) is not int or value < 1):
                raise ValueError(f"--grid: {key} takes whole numbers from 1, got {value!r}")
            if key == "order" and value not in ORDERS:
                raise ValueError(f"--grid: order {not_allowed(value, ORDERS)}")
    return found
