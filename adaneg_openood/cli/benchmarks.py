"""``demo``, ``eval``, ``sweep``, ``benchmarks`` and ``cache``: benchmarks and their encoded images."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime
from pathlib import Path
from typing import Any, Optional

import typer
import yaml

from adaneg_openood.benchmark.definition import (
    Benchmark,
    benchmark_schema,
    read_benchmark,
)
from adaneg_openood.benchmark.opening import open_benchmark, readable_bytes, to_text
from adaneg_openood.benchmark.settings import EncodeOptions
from adaneg_openood.cli import options
from adaneg_openood.cli.common import check_outputs, named_values, show, show_run, write_json
from adaneg_openood.data import parts
from adaneg_openood.io.checks import not_allowed
from adaneg_openood.io.configuration import shipped
from adaneg_openood.io.files import cache_folder
from adaneg_openood.io.processes import process_group

_SHOWN = 12  # best configurations that are printed
_AXES = ("batch_size", "order", "ratio", "n_images")  # of the protocol


@options.command
def demo(
    given: dict[str, Any] = options.BENCHMARK.some("seed", "seeds", "cache"),
    device: str = options.DEVICE,
    json_file: Optional[Path] = options.JSON,
    csv_file: Optional[Path] = options.CSV,
    draw: Optional[Path] = typer.Option(
        None, help="Only draw pictures into this folder, to try the tutorial's steps on."
    ),
) -> None:
    """Print near- and far-OOD tables of an embedded world of drawn images, without any download.

    It is the same as: adaneg-openood eval demo
    """
    if draw is not None:
        from adaneg_openood.demo.benchmark import draw_pictures

        draw_pictures(draw)
        typer.echo(f"{draw}: drawn; test and validation hold one folder per class, others has none")
        return
    benchmark = options.read_source(**{**given, "source": "demo"})
    _evaluate(benchmark, EncodeOptions(device, workers=0, progress=True), json_file, csv_file)


@options.command
def evaluate_benchmark(
    benchmark: Benchmark = options.BENCHMARK,
    check: bool = typer.Option(
        False, "--check", help="Only say what is there and what is missing; nothing is encoded."
    ),
    intervals: bool = typer.Option(
        False, "--intervals", help="Add bootstrap intervals, and tests of each method against the first."
    ),
    resamples: int = typer.Option(1000, min=100, help="How many bootstrap resamples --intervals draws."),
    encoding: EncodeOptions = options.ENCODING,
    save: Optional[Path] = typer.Option(
        None, help="Keep every image's score in this folder; the same command resumes there."
    ),
    save_features: Optional[Path] = typer.Option(None, help="Write the features as .npz here."),
    json_file: Optional[Path] = options.JSON,
    csv_file: Optional[Path] = options.CSV,
) -> None:
    """Print the near- and far-OOD tables of a benchmark, for its methods or MCM, NegLabel and AdaNeg.

    Under torchrun its processes share the images and then the streams: torchrun --nproc-per-node 4 -m
    adaneg_openood eval ... gives the same numbers as one process.
    """
    if check:
        if csv_file or save or save_features:
            raise ValueError("--check writes no scores: leave out --csv, --save and --save-features")
        opened = open_benchmark(benchmark, fetch=False)
        show(to_text(opened.items))
        write_json(json_file, [dataclasses.asdict(item) for item in opened.items])
        if opened.missing():
            raise typer.Exit(1)
        return
    drawn = resamples if intervals else None
    _evaluate(benchmark, encoding, json_file, csv_file, save, save_features, drawn)


def _evaluate(
    benchmark: Benchmark,
    encoding: EncodeOptions,
    json_file: Path | None,
    csv_file: Path | None,
    save: Path | None = None,
    save_features: Path | None = None,
    resamples: int | None = None,
) -> None:
    from adaneg_openood.benchmark.run import run_benchmark
    from adaneg_openood.evaluation import save_features as write_features
    from adaneg_openood.evaluation.run_files import INDEX

    check_outputs(json_file, csv_file, save_features, None if save is None else save / INDEX)
    with process_group(encoding.device) as group:
        opened = open_benchmark(benchmark, group=group)
        run, encoded = run_benchmark(opened, encoding, group, folder=save)
        if not group.is_first:
            return
    if save_features is not None:
        write_features(save_features, encoded.data)
    show_run(run, json_file, csv_file, run.bootstrap(resamples) if resamples else None)


@options.command
def benchmarks(
    name: Optional[str] = typer.Argument(
        None,
        help="Print this definition, to copy and change; schema prints the JSON schema of all keys.",
    ),
) -> None:
    """List the benchmarks that come with this package, or print the definition of one."""
    known = shipped("benchmarks")
    if name == "schema":
        typer.echo(json.dumps(benchmark_schema(), indent=2))
    elif name is not None:
        if name not in known:
            raise ValueError(f"NAME {not_allowed(name, [*known, 'schema'])}")
        typer.echo(known[name].read_text("utf-8"), nl=False)
    else:
        width = max(map(len, known), default=0)
        for key in known:
            typer.echo(f"{key:<{width}}  {read_benchmark(key).description}")


@options.command
def sweep(
    benchmark: Benchmark = options.BENCHMARK,
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
    plots: bool = typer.Option(
        True, "--plots/--no-plots", help="Draw one picture per axis, with error bars."
    ),
    encoding: EncodeOptions = options.ENCODING,
    json_file: Optional[Path] = options.JSON,
) -> None:
    """Run a method over a grid of settings, ratios, numbers of images, batch sizes, orders and seeds.

    Under torchrun its processes share the images and then the streams: torchrun --nproc-per-node 4 -m
    adaneg_openood sweep ... writes the same results as one process.
    """
    from adaneg_openood.benchmark.methods import with_published_groups
    from adaneg_openood.benchmark.run import encode_benchmark
    from adaneg_openood.evaluation.sweep import grid_configs
    from adaneg_openood.evaluation.sweep import sweep as run
    from adaneg_openood.evaluation.tables import GROUP_ROWS

    spec = benchmark.method(method)
    values = _grid(grid)
    axes = {name: values.pop(name) for name in _AXES if name in values}
    # a typing error comes before encoding
    n_configs = len(grid_configs(values, spec.settings, released, spec.detector))
    check_outputs(json_file, out / "results.csv")
    with process_group(encoding.device) as group:
        encoding = encoding.on(group)
        made = encode_benchmark(open_benchmark(benchmark, group=group), encoding, group)
        result = run(
            made.data,
            values,
            method=spec.detector,
            base=with_published_groups(spec.detector, spec.settings, made.labels),
            released=released,
            seeds=benchmark.seeds,
            batch_sizes=axes.get("batch_size", [benchmark.batch_size]),
            orders=axes.get("order", [benchmark.order]),
            ratios=axes.get("ratio", [None]),
            n_images=axes.get("n_images", [None]),
            folder=out,
            device=encoding.device,
            progress=True,
            group=group,
        )
        if not group.is_first:
            return
    typer.echo(f"{n_configs} configurations, {len(result.records)} runs, {result.computed} now")
    columns = [*result.axes, "FPR@95", "FPR@95 (ID positive)", "AUROC", "AUROC std"]
    for split in result.records["split"].unique():
        row = GROUP_ROWS[split]
        text = result.best("AUROC", row)[columns].head(_SHOWN).round(2).to_string(index=False)
        show(f"\nBest AUROC on {row}, in percent:\n{text}")
    for line in result.warnings():
        show(f"warning: {line}")
    written = ["results.csv", "summary.csv", "conventions.json"]
    if plots and result.axes:
        start = {**spec.to_dict(), "batch_size": benchmark.batch_size, "ratio": "1:1"}
        written += [file.name for file in result.plot(out, start)]
    records = result.records.astype(object).where(result.records.notna(), None)
    write_json(json_file, records.to_dict("records"))
    typer.echo(f"\n{out}: {', '.join(written)}")


def _grid(given: list[str] | None) -> dict[str, list[Any]]:
    """``["gamma=0.3,0.5"]`` -> ``{"gamma": [0.3, 0.5]}``; values are read as YAML, ratios as such."""
    from adaneg_openood.evaluation.streams import ORDERS, parse_ratio

    found: dict[str, list[Any]] = {}
    for key, text in named_values("--grid", "SETTING=VALUE,VALUE", given):
        words = [word.strip() for word in text.split(",") if word.strip()]
        if not words:
            raise ValueError(f"--grid takes SETTING=VALUE,VALUE, got {key}={text!r}")
        if key in found:
            raise ValueError(f"--grid: {key} is there twice; give all its values at once")
        found[key] = [parse_ratio(word) if key == "ratio" else yaml.safe_load(word) for word in words]
        for value in found[key]:
            if key in ("batch_size", "n_images") and (type(value) is not int or value < 1):
                raise ValueError(f"--grid: {key} takes whole numbers from 1, got {value!r}")
            if key == "order" and value not in ORDERS:
                raise ValueError(f"--grid: order {not_allowed(value, ORDERS)}")
    return found


cache_app = typer.Typer(no_args_is_help=True, help="List, verify and prune the encoded images on disk.")


@cache_app.command("ls")
@options.command
def cache_ls(cache: Optional[Path] = options.CACHE, json_file: Optional[Path] = options.JSON) -> None:
    """List every entry with its model, images, size and time of last use."""
    _show_entries(parts.entries(cache_folder("features", cache)), json_file)


@cache_app.command("verify")
@options.command
def cache_verify(
    cache: Optional[Path] = options.CACHE, json_file: Optional[Path] = options.JSON
) -> None:
    """Check every byte; the exit status is 1 if an entry is damaged."""
    found = parts.entries(cache_folder("features", cache), verify=True)
    _show_entries(found, json_file)
    bad = sum(bool(entry.problem) for entry in found)
    typer.echo(f"{bad} of {len(found)} entries cannot be used" if bad else "all entries are whole")
    if bad:
        raise typer.Exit(1)


@cache_app.command("prune")
@options.command
def cache_prune(
    older_than: Optional[float] = typer.Option(
        None, min=0, help="Remove entries that were not used for so many days."
    ),
    max_size: Optional[float] = typer.Option(
        None, min=0, help="Keep so many GB, the latest used first."
    ),
    damaged: bool = typer.Option(False, "--damaged", help="Remove damaged and unfinished entries."),
    everything: bool = typer.Option(False, "--all", help="Remove every entry."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Only say what would be removed."),
    cache: Optional[Path] = options.CACHE,
    json_file: Optional[Path] = options.JSON,
) -> None:
    """Remove entries that meet any of the conditions."""
    if older_than is None and max_size is None and not damaged and not everything:
        raise ValueError("say what goes: --older-than, --max-size, --damaged or --all")
    check_outputs(json_file)
    gone = parts.prune(
        cache_folder("features", cache),
        older_than_days=older_than,
        max_bytes=None if max_size is None else int(max_size * 1e9),
        damaged=damaged,
        everything=everything,
        dry_run=dry_run,
    )
    _show_entries(gone, json_file)
    typer.echo(f"{len(gone)} entries {'would go' if dry_run else 'removed'}")


def _show_entries(entries: list[parts.Entry], json_file: Path | None) -> None:
    for entry in entries:
        used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
        model, images, source = (entry.about.get(key, "?") for key in ("model", "images", "source"))
        problem = f"  [{entry.problem}]" if entry.problem else ""
        show(
            f"{entry.key[:12]}  {used}  {readable_bytes(entry.size):>9}  "
            f"{model}, {images} images of {source}{problem}"
        )
    rows = [{**dataclasses.asdict(entry), "files": list(map(str, entry.files))} for entry in entries]
    write_json(json_file, rows)
    typer.echo(f"{len(entries)} entries, {readable_bytes(sum(entry.size for entry in entries))}")
