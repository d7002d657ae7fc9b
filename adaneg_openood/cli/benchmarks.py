"""``eval``, ``benchmarks`` and ``cache``: benchmarks from YAML, and their encoded images."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import typer

from adaneg_openood.cli.common import (
    CSV,
    DEVICE,
    JSON,
    SKIP_BROKEN,
    WORKERS,
    readable_errors,
    show_results,
)

if TYPE_CHECKING:
    from adaneg_openood.benchmark.definition import Benchmark
    from adaneg_openood.data.store_entries import Entry
    from adaneg_openood.io.processes import Group

SOURCE = typer.Argument(
    ..., help="A YAML file, a benchmark's name (see benchmarks), or an npz file or folder of features."
)
DATA = typer.Option(None, help="Root of the benchmark's image paths, instead of its own.")
FSOOD = typer.Option(None, "--fsood/--no-fsood", help="Covariate-shifted ID sets count as ID, or not.")
CACHE = typer.Option(None, "--cache", help="Folder of encoded images; the user's cache otherwise.")
ENCODE_BATCH = typer.Option(256, min=1, help="Images encoded at a time; changes no result.")


def evaluate_benchmark(
    source: str = SOURCE,
    check: bool = typer.Option(False, "--check", help="Only say what is there and what is missing."),
    data: Optional[Path] = DATA,
    fsood: Optional[bool] = FSOOD,
    batch_size: Optional[int] = typer.Option(
        None, min=1, help="Images scored at a time; AdaNeg depends on it. 256 unless the file says."
    ),
    seed: Optional[int] = typer.Option(None, min=0, help="First seed of the stream orders."),
    orders: Optional[int] = typer.Option(None, min=1, help="Stream orders to average; 3 unless said."),
    order: Optional[str] = typer.Option(None, help="mixed (the paper's protocol) or id_first."),
    intervals: bool = typer.Option(
        False, "--intervals", help="Bootstrap intervals, and tests of each method against the first."
    ),
    resamples: int = typer.Option(1000, min=100, help="Of the bootstrap, with --intervals."),
    workers: Optional[int] = WORKERS,
    encode_batch: int = ENCODE_BATCH,
    skip_broken: bool = SKIP_BROKEN,
    cache: Optional[Path] = CACHE,
    save_features: Optional[Path] = typer.Option(None, help="Write the features as .npz here."),
    device: str = DEVICE,
    json_file: Optional[Path] = JSON,
    csv_file: Optional[Path] = CSV,
) -> None:
    """Near- and far-OOD tables of a benchmark: its own methods, or MCM, NegLabel and AdaNeg.

    Under torchrun its processes share the images and then the streams: torchrun --nproc-per-node 4 -m
    adaneg_openood eval ... gives the same numbers as one process.
    """
    with readable_errors():
        benchmark = opened(source, data, fsood)
        if check:
            from adaneg_openood.benchmark.check import check as look
            from adaneg_openood.benchmark.check import missing, to_text

            items = look(benchmark, cache)
            typer.echo(to_text(items))
            if missing(items):
                raise typer.Exit(1)
            return
        from adaneg_openood.benchmark.check import refuse_missing
        from adaneg_openood.benchmark.run import run_benchmark
        from adaneg_openood.evaluation import save_features as save
        from adaneg_openood.io.processes import process_group

        chosen: dict[str, Any] = {"batch_size": batch_size, "order": order}
        protocol = {key: value for key, value in chosen.items() if value is not None}
        if seed is not None or orders is not None:
            protocol["seeds"] = seeds_of(benchmark, seed, orders)
        with process_group(device) as group:
            group.first(lambda: refuse_missing(benchmark, cache))
            settings = encode_settings(device, encode_batch, workers, skip_broken, cache, group)
            results, encoding = run_benchmark(benchmark, settings, group, **protocol)
            if not group.is_first:
                return
        if save_features is not None:
            save(save_features, encoding.data)
        bootstrap = results.bootstrap(resamples) if intervals else None
        show_results(results, json_file, csv_file, bootstrap)


def benchmarks(
    name: Optional[str] = typer.Argument(None, help="Print this definition, to copy and change."),
) -> None:
    """The benchmarks that come with this package; with a name, its definition."""
    with readable_errors():
        from adaneg_openood.benchmark.definition import load_benchmark, shipped_benchmarks

        shipped = shipped_benchmarks()
        if name is not None:
            if name not in shipped:
                raise ValueError(f"no benchmark {name!r}; there are {', '.join(shipped)}")
            typer.echo(shipped[name].read_text("utf-8"), nl=False)
            return
        width = max(map(len, shipped), default=0)
        for key in shipped:
            typer.echo(f"{key:<{width}}  {load_benchmark(key).description}")


cache_app = typer.Typer(no_args_is_help=True, help="Encoded images on disk: list, verify, prune.")


@cache_app.command("ls")
def cache_ls(cache: Optional[Path] = CACHE, json_file: Optional[Path] = JSON) -> None:
    """Every entry: model, images, size, and when it was last used."""
    with readable_errors():
        from adaneg_openood.data.store_entries import entries

        _show_entries(entries(cache_of(cache)), json_file)


@cache_app.command("verify")
def cache_verify(cache: Optional[Path] = CACHE, json_file: Optional[Path] = JSON) -> None:
    """Check every byte; the exit status is 1 if an entry is damaged."""
    with readable_errors():
        from adaneg_openood.data.store_entries import verified

        found = verified(cache_of(cache))
        _show_entries(found, json_file)
        bad = sum(bool(entry.problem) for entry in found)
        typer.echo(f"{bad} of {len(found)} entries cannot be used" if bad else "all entries are whole")
        if bad:
            raise typer.Exit(1)


@cache_app.command("prune")
def cache_prune(
    older_than: Optional[float] = typer.Option(None, min=0, help="Days without use."),
    max_size: Optional[float] = typer.Option(None, min=0, help="GB to keep, the latest used first."),
    damaged: bool = typer.Option(False, "--damaged", help="Damaged and unfinished entries."),
    everything: bool = typer.Option(False, "--all", help="Every entry."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Only say what would go."),
    cache: Optional[Path] = CACHE,
) -> None:
    """Remove entries that meet any of the conditions."""
    with readable_errors():
        if older_than is None and max_size is None and not damaged and not everything:
            raise ValueError("say what goes: --older-than, --max-size, --damaged or --all")
        from adaneg_openood.data.store_entries import prune

        gone = prune(
            cache_of(cache),
            older_than_days=older_than,
            max_bytes=None if max_size is None else int(max_size * 1e9),
            damaged=damaged,
            everything=everything,
            dry_run=dry_run,
        )
        _show_entries(gone, None)
        typer.echo(f"{len(gone)} entries {'would go' if dry_run else 'removed'}")


def opened(source: str, data: Path | None, fsood: bool | None) -> Benchmark:
    """The benchmark that a command was given."""
    from adaneg_openood.benchmark.definition import open_benchmark

    return open_benchmark(source, data=data, full_spectrum=fsood)


def encode_settings(
    device: str,
    batch_size: int,
    workers: int | None,
    skip_broken: bool,
    cache: Path | None,
    group: Group,
) -> Any:
    """Encoding options as the library takes them."""
    from adaneg_openood.benchmark.run import Settings
    from adaneg_openood.io.processes import local_device

    return Settings(
        device=local_device(device),
        batch_size=batch_size,
        workers=workers,
        skip_broken=skip_broken,
        cache=cache,
        progress=group.is_first,
    )


def seeds_of(benchmark: Benchmark, seed: int | None, orders: int | None) -> tuple[int, ...]:
    """``--seed`` and ``--orders`` over the benchmark's own seeds."""
    first = benchmark.seeds[0] if seed is None else seed
    return tuple(range(first, first + (len(benchmark.seeds) if orders is None else orders)))


def cache_of(folder: Path | None) -> Path:
    """The cache that a command was given, or the user's."""
    from adaneg_openood.data.store_entries import default_store

    return default_store() if folder is None else folder


def _show_entries(entries: list[Entry], json_file: Path | None) -> None:
    from adaneg_openood.benchmark.check import readable_bytes

    for entry in entries:
        about = entry.about
        used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
        model, images, source = (about.get(key, "?") for key in ("model", "images", "source"))
        what = f"{model}, {images} images of {source}"
        problem = f"  [{entry.problem}]" if entry.problem else ""
        typer.echo(f"{entry.key[:12]}  {used}  {readable_bytes(entry.size):>9}  {what}{problem}")
    if json_file is not None:
        import json

        from adaneg_openood.io.files import atomic_path

        rows = [{**dataclasses.asdict(entry), "files": list(map(str, entry.files))} for entry in entries]
        with atomic_path(json_file) as temporary:
            temporary.write_text(json.dumps(rows, indent=2) + "\n", "utf-8")
    total = sum(entry.size for entry in entries)
    typer.echo(f"{len(entries)} entries, {readable_bytes(total)}")
