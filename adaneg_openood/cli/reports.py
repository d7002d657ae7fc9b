"""``reproduce`` and ``report``: the paper's tables and figures, and a run as a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import numpy as np
import typer

from adaneg_openood.benchmark.settings import shifted
from adaneg_openood.cli import options
from adaneg_openood.cli.common import check_outputs, means, named_values, show, write_tables

if TYPE_CHECKING:
    from adaneg_openood.benchmark.definition import Benchmark
    from adaneg_openood.evaluation import FeatureSet

_DEMO_BATCH = 64


@options.command
def reproduce(
    target: str = typer.Argument(..., help="A table or figure; 'list' names them."),
    features: Optional[list[str]] = typer.Option(
        None,
        help="npz file, folder or YAML, or NAME=PATH (repeatable); the demo world if not given.",
    ),
    seed: Optional[int] = options.SEED,
    seeds: Optional[Any] = options.SEEDS,
    batch_size: Optional[int] = typer.Option(
        None, min=1, help="Images scored at a time; as published if not given."
    ),
    settings: Optional[list[str]] = typer.Option(
        None,
        "--set",
        help="A setting of AdaNeg, such as groups=5, instead of the published one. Repeatable.",
    ),
    backbone: str = typer.Option("ViT-B/16", help="The model that the features were made with."),
    stream: Optional[list[str]] = typer.Option(
        None, help="SET=FILE.npy: an order over concat(OOD, ID), instead of the seeds' orders."
    ),
    double: bool = typer.Option(False, help="Score in float64."),
    every_set: Optional[bool] = typer.Option(
        None, "--every-set/--means", help="Show rows of every OOD set, or of means alone."
    ),
    plot: Optional[Path] = typer.Option(None, help="Draw the figure here (.png, .svg or .pdf)."),
    device: str = options.DEVICE,
    json_file: Optional[Path] = options.JSON,
    csv_file: Optional[Path] = options.CSV,
) -> None:
    """Print a table or figure of the paper, with our numbers beside the published ones."""
    from adaneg_openood.reproduce import TARGETS
    from adaneg_openood.reproduce import reproduce as run

    if target == "list":
        width = max(map(len, TARGETS))
        for name, spec in TARGETS.items():
            typer.echo(f"{name:<{width}}  {spec.title}")
        return
    if target not in TARGETS:
        raise ValueError(f"no target {target!r}; there are {', '.join(TARGETS)} (and 'list')")
    if plot is not None:
        from adaneg_openood.evaluation.drawing import picture_format, require_matplotlib

        require_matplotlib()
        picture_format(plot)
    check_outputs(json_file, csv_file, plot)
    result = run(
        target,
        _features(features, device),
        seeds=shifted(seeds or (0, 1, 2), seed),
        batch_size=batch_size if batch_size or features else _DEMO_BATCH,
        settings={name: _value(text) for name, text in named_values("--set", "NAME=VALUE", settings)},
        streams=_streams(stream),
        backbone=backbone,
        double=double,
        device=device,
    )
    show(result.to_text(every_set))
    write_tables(result, json_file, csv_file)
    if plot is not None:
        from adaneg_openood.evaluation.drawing import save_figure
        from adaneg_openood.reproduce.figures import reproduction_figure

        save_figure(reproduction_figure(result), plot)
        typer.echo(f"{plot}: written")


def _features(given: list[str] | None, device: str) -> FeatureSet | dict[str, FeatureSet]:
    """``PATH`` or ``NAME=PATH`` arguments; the demo world without any."""
    if not given:
        return _read("demo", device)
    found: dict[str, FeatureSet] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            name, path = ("" if len(given) == 1 else Path(text).stem), text
        if name in found:
            raise ValueError(f"--features: two sets are named {name!r}; write NAME=PATH")
        found[name] = _read(path, device)
    return found


def _read(path: str, device: str) -> FeatureSet:
    """Saved features, or those of a benchmark definition."""
    from adaneg_openood.benchmark.run import benchmark_features
    from adaneg_openood.evaluation import load_features

    if Path(path).suffix in (".yml", ".yaml") or path == "demo":
        return benchmark_features(path, device)
    return load_features(path)


def _streams(given: list[str] | None) -> dict[str, np.ndarray]:
    found = {}
    for name, path in named_values("--stream", "SET=FILE.npy", given):
        try:
            with Path(path).open("rb") as file:
                found[name] = np.lib.format.read_array(file, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"--stream: {path} is no array of numpy's ({error})") from error
    return found


def _value(text: str) -> Any:
    """A number, true, false or a word."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


@options.command
def report(
    run: str = typer.Argument(
        ...,
        help="demo, saved features (npz file or folder), a benchmark YAML, or a run that report --save "
        "kept.",
    ),
    out: Path = typer.Option(Path("report.html"), help="File of the page."),
    files: Optional[Path] = typer.Option(
        None, help="Folder for PNG, CSV, Markdown and LaTeX; named like the page if not given."
    ),
    save: Optional[Path] = typer.Option(
        None, help="Keep the run in this folder: every image's score, and the banks."
    ),
    images: Optional[list[str]] = typer.Option(
        None, help="PART=FOLDER or PART=IMGLIST in the features' order; PART is id or an OOD set."
    ),
    images_root: Optional[Path] = typer.Option(
        None, help="Folder that the paths of imglists are relative to."
    ),
    example_method: Optional[str] = typer.Option(
        None, help="The method whose confidences choose the examples."
    ),
    title: Optional[str] = typer.Option(None, help="Title of the page."),
    resamples: Optional[int] = typer.Option(
        200, min=2, help="Bootstrap resamples for intervals and paired tests; take 1000 for a paper."
    ),
    leaderboard: Optional[str] = typer.Option(
        None, help="Also write the row of OpenOOD's leaderboard; with --method and --arch."
    ),
    arch: Optional[str] = typer.Option(
        None, help="Architecture as the leaderboard writes it, such as ViT-B/16."
    ),
    method: Optional[str] = typer.Option(None, help="The method whose row --leaderboard writes."),
    changed: dict[str, Any] = options.BENCHMARK.some(
        "data", "cache", "batch_size", "seed", "seeds", "order"
    ),
    device: str = options.DEVICE,
    json_file: Optional[Path] = options.JSON,
    csv_file: Optional[Path] = options.CSV,
) -> None:
    """Write a run as one self-contained page, with its tables and pictures as files beside it."""
    from adaneg_openood.evaluation.drawing import require_matplotlib
    from adaneg_openood.evaluation.run_files import INDEX
    from adaneg_openood.io.configuration import shipped
    from adaneg_openood.openood import compat
    from adaneg_openood.openood.leaderboard import check_row, write_files
    from adaneg_openood.report import load_record, save_record, write_report
    from adaneg_openood.report.record import RECORD_FILE
    from adaneg_openood.report.sources import DEMO, benchmark_record, given_images
    from adaneg_openood.report.write import folder_of

    require_matplotlib()
    folder = folder_of(out, files)
    kept = None if save is None else save / RECORD_FILE
    check_outputs(out, folder / "tables.csv", kept, json_file, csv_file)
    row: dict[str, Any] = {}
    if leaderboard is not None and method is not None and arch is not None:
        row = {"id_name": leaderboard, "method": method, "arch": arch}
        if not compat.installed():
            raise ImportError("--leaderboard needs OpenOOD, which says what a complete result is")
    elif (leaderboard, method, arch) != (None, None, None):
        raise ValueError("--leaderboard BENCHMARK, --method METHOD and --arch ARCHITECTURE go together")
    # the page of a shipped benchmark may have left a folder of the benchmark's name
    if run not in shipped("benchmarks") and (Path(run) / RECORD_FILE).is_file():
        making = {"images": images, "images_root": images_root, "example_method": example_method}
        unused = [name for name, value in {**making, **changed}.items() if value is not None]
        if unused:
            told = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
            raise ValueError(f"{run} is a run that was kept, and {told} would have to make another one")
        record = load_record(run)
        made_of = record.results.about.provenance
        name = str(made_of.get("benchmark") or Path(run).name)
        if row:
            sets = made_of.get("sets", {})
            check_row(record.results.methods, record.results.splits, **row, sets=sets)
    elif (Path(run) / INDEX).is_file():
        raise ValueError(
            f"{run}: holds the scores that eval --save keeps, without the memory that a report shows; "
            "run report on the benchmark, with --save to keep what it needs"
        )
    else:
        benchmark = options.read_source(**{**changed, "source": run})
        name = "The demo world" if run == DEMO else benchmark.name
        if row:
            sets = {part.title: {"limit": part.definition.limit} for part in benchmark.sets}
            check_row(list(benchmark.methods), _splits(benchmark), **row, sets=sets)
        given = dict(named_values("--images", "PART=FOLDER or PART=IMGLIST", images))
        if given and run == DEMO:
            raise ValueError("--images: the demo world brings its own images")
        record = benchmark_record(
            benchmark,
            device=device,
            images=given_images(given, images_root),
            images_root=images_root,
            example_method=example_method,
        )
    if save is not None:
        typer.echo(f"{save_record(record, save)}: written")
    page_title = f"{title or name}: out-of-distribution detection"
    written = write_report(record, out, files=files, title=page_title, resamples=resamples)
    if row:
        for path in write_files(record.results, folder, **row):
            typer.echo(f"{path}: written")
    write_tables(record.results, json_file, csv_file)
    show(f"{means(record.results)}\n")
    typer.echo(f"{out}: written, and {len(written) - 1} files in {folder}")


def _splits(benchmark: Benchmark) -> dict[str, str]:
    """OOD set -> split, of a run that is to be made."""
    from adaneg_openood.evaluation import load_features

    if benchmark.features is None:
        return {part.name: part.split for part in benchmark.sets if not part.labelled}
    whole = load_features(benchmark.features)
    return {**dict.fromkeys(whole.near, "near"), **dict.fromkeys(whole.far, "far")}
