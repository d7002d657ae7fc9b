"""``demo``, ``eval``, ``benchmarks`` and ``cache``: benchmarks from YAML, and their encoded images."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import typer

from adaneg_openood.cli import options
from adaneg_openood.cli.common import (
    check_outputs,
    read_source,
    readable_errors,
    show,
    show_run,
    write_json,
)

if TYPE_CHECKING:
    from adaneg_openood.benchmark.definition import Benchmark
    from adaneg_openood.benchmark.run import EncodeOptions
    from adaneg_openood.data.store_entries import Entry
    from adaneg_openood.io.processes import Group


def demo(
    seed: Optional[int] = options.SEED,
    seeds: Optional[Any] = options.SEEDS,
    device: str = options.DEVICE,
    cache: Optional[Path] = options.CACHE,
    json_file: Optional[Path] = options.JSON,
    csv_file: Optional[Path] = options.CSV,
    draw: Optional[Path] = typer.Option(
        None, help="Only draw pictures into this folder, to try the tutorial's steps on."
    ),
) -> None:
    """Print near- and far-OOD tables of an embedded world of drawn images, without any download.

    It is the same as: adaneg-openood eval demo
    """
    with readable_errors():
        if draw is not None:
            from adaneg_openood.demo.benchmark import draw_pictures

            draw_pictures(draw)
            typer.echo(f"{draw}: drawn; test and validation hold one folder per class, others has none")
            return
        benchmark = read_source("demo", None, seed=seed, seeds=seeds, cache=cache)
        _evaluate(benchmark, device, workers=0, json_file=json_file, csv_file=csv_file)


def evaluate_benchmark(
    source: str = options.SOURCE,
    check: bool = typer.Option(
        False, "--check", help="Only say what is there and what is missing; nothing is encoded."
    ),
    data: Optional[Path] = options.DATA,
    full_spectrum: Optional[bool] = options.FULL_SPECTRUM,
    batch_size: Optional[int] = options.BATCH_SIZE,
    order: Optional[str] = options.ORDER,
    seed: Optional[int] = options.SEED,
    seeds: Optional[Any] = options.SEEDS,
    intervals: bool = typer.Option(
        False, "--intervals", help="Add bootstrap intervals, and tests of each method against the first."
    ),
    resamples: int = typer.Option(1000, min=100, help="How many bootstrap resamples --intervals draws."),
    workers: Optional[int] = options.WORKERS,
    encode_batch: int = options.ENCODE_BATCH,
    skip_broken: Optional[bool] = options.SKIP_BROKEN,
    cache: Optional[Path] = options.CACHE,
    save: Optional[Path] = typer.Option(
        None, help="Keep every image's score in this folder; the same command resumes there."
    ),
    save_features: Optional[Path] = typer.Option(None, help="Write the features as .npz here."),
    device: str = options.DEVICE,
    json_file: Optional[Path] = options.JSON,
    csv_file: Optional[Path] = options.CSV,
) -> None:
    """Print the near- and far-OOD tables of a benchmark, for its methods or MCM, NegLabel and AdaNeg.

    Under torchrun its processes share the images and then the streams: torchrun --nproc-per-node 4 -m
    adaneg_openood eval ... gives the same numbers as one process.
    """
    with readable_errors():
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
        if check:
            from adaneg_openood.benchmark.check import to_text
            from adaneg_openood.benchmark.opening import open_benchmark

            opened = open_benchmark(benchmark, fetch=False)
            show(to_text(opened.items))
            if opened.missing():
                raise typer.Exit(1)
            return
        _evaluate(
            benchmark,
            device,
            encode_batch,
            workers,
            save,
            save_features,
            resamples if intervals else None,
            json_file,
            csv_file,
        )


def _evaluate(
    benchmark: Benchmark,
    device: str,
    encode_batch: int = 256,
    workers: int | None = None,
    save: Path | None = None,
    save_features: Path | None = None,
    resamples: int | None = None,
    json_file: Path | None = None,
    csv_file: Path | None = None,
) -> None:
    from adaneg_openood.benchmark.opening import open_benchmark
    from adaneg_openood.benchmark.run import run_benchmark
    from adaneg_openood.evaluation import save_features as write_features
    from adaneg_openood.evaluation.run_files import INDEX
    from adaneg_openood.io.processes import process_group

    check_outputs(json_file, csv_file, save_features, None if save is None else save / INDEX)
    with process_group(device) as group:
        opened = group.local(lambda: open_benchmark(benchmark), first_alone=True)
        chosen = encode_options(device, encode_batch, workers, group)
        run, encoding = run_benchmark(opened, chosen, group, folder=save)
        if not group.is_first:
            return
    if save_features is not None:
        write_features(save_features, encoding.data)
    show_run(run, json_file, csv_file, None if resamples is None else run.bootstrap(resamples))


def benchmarks(
    name: Optional[str] = typer.Argument(
        None,
        help="Print this definition, to copy and change; schema prints the JSON schema of all keys.",
    ),
) -> None:
    """List the benchmarks that come with this package, or print the definition of one."""
    with readable_errors():
        from adaneg_openood.benchmark.definition import benchmark_schema, read_benchmark
        from adaneg_openood.io.configuration import not_allowed, shipped

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


cache_app = typer.Typer(no_args_is_help=True, help="List, verify and prune the encoded images on disk.")


@cache_app.command("ls")
def cache_ls(cache: Optional[Path] = options.CACHE, json_file: Optional[Path] = options.JSON) -> None:
    """List every entry with its model, images, size and time of last use."""
    with readable_errors():
        from adaneg_openood.data.store_entries import entries, store_folder

        _show_entries(entries(store_folder(cache)), json_file)


@cache_app.command("verify")
def cache_verify(
    cache: Optional[Path] = options.CACHE, json_file: Optional[Path] = options.JSON
) -> None:
    """Check every byte; the exit status is 1 if an entry is damaged."""
    with readable_errors():
        from adaneg_openood.data.store_entries import store_folder, verified

        found = verified(store_folder(cache))
        _show_entries(found, json_file)
        bad = sum(bool(entry.problem) for entry in found)
        typer.echo(f"{bad} of {len(found)} entries cannot be used" if bad else "all entries are whole")
        if bad:
            raise typer.Exit(1)


@cache_app.command("prune")
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
    with readable_errors():
        if older_than is None and max_size is None and not damaged and not everything:
            raise ValueError("say what goes: --older-than, --max-size, --damaged or --all")
        check_outputs(json_file)
        from adaneg_openood.data.store_entries import prune, store_folder

        gone = prune(
            store_folder(cache),
            older_than_days=older_than,
            max_bytes=None if max_size is None else int(max_size * 1e9),
            damaged=damaged,
            everything=everything,
            dry_run=dry_run,
        )
        _show_entries(gone, json_file)
        typer.echo(f"{len(gone)} entries {'would go' if dry_run else 'removed'}")


def encode_options(device: str, batch_size: int, workers: int | None, group: Group) -> EncodeOptions:
    """Encoding options as the library takes them."""
    from adaneg_openood.benchmark.run import EncodeOptions
    from adaneg_openood.io.processes import local_device

    return EncodeOptions(local_device(device), batch_size, workers, progress=group.is_first)


def _show_entries(entries: list[Entry], json_file: Path | None) -> None:
    from adaneg_openood.benchmark.check import readable_bytes

    for entry in entries:
        about = entry.about
        used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
        model, images, source = (about.get(key, "?") for key in ("model", "images", "source"))
        what = f"{model}, {images} images of {source}"
        problem = f"  [{entry.problem}]" if entry.problem else ""
        show(f"{entry.key[:12]}  {used}  {readable_bytes(entry.size):>9}  {what}{problem}")
    rows = [{**dataclasses.asdict(entry), "files": list(map(str, entry.files))} for entry in entries]
    write_json(json_file, rows)
    total = sum(entry.size for entry in entries)
    typer.echo(f"{len(entries)} entries, {readable_bytes(total)}")
