"""``reproduce`` and ``report``: the paper's tables and figures, and a run as a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import typer

from adaneg_openood.cli import options
from adaneg_openood.cli.common import check_outputs, named_values, readable_errors, show
from adaneg_openood.cli.options import CSV, DEVICE, JSON

if TYPE_CHECKING:
    import numpy as np

    from adaneg_openood.evaluation import FeatureSet
    from adaneg_openood.report import RunRecord

_DEMO_BATCH = 64


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
    device: str = DEVICE,
    json_file: Optional[Path] = JSON,
    csv_file: Optional[Path] = CSV,
) -> None:
    """Print a table or figure of the paper, with our numbers beside the published ones."""
    with readable_errors():
        from adaneg_openood.benchmark.settings import shifted
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
            settings=_settings(settings),
            streams=_streams(stream),
            backbone=backbone,
            double=double,
            device=device,
        )
        show(result.to_text(every_set))
        if json_file is not None:
            result.to_json(json_file)
        if csv_file is not None:
            result.to_csv(csv_file)
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
    from adaneg_openood.evaluation import load_features

    if Path(path).suffix not in (".yml", ".yaml") and path != "demo":
        return load_features(path)
    from adaneg_openood.benchmark.run import benchmark_features

    return benchmark_features(path, device)


def _settings(given: list[str] | None) -> dict[str, Any]:
    """``["gap=0.2"]`` -> ``{"gap": 0.2}``: numbers, true, false and words."""
    import json

    found: dict[str, Any] = {}
    for name, value in named_values("--set", "NAME=VALUE", given):
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def _streams(given: list[str] | None) -> dict[str, np.ndarray]:
    import numpy as np

    found = {}
    for name, path in named_values("--stream", "SET=FILE.npy", given):
        try:
            with Path(path).open("rb") as file:
                found[name] = np.lib.format.read_array(file, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"--stream: {path} is no array of numpy's ({error})") from error
    return found


def report(
    run: str = typer.Argument(
        ..., help="demo, saved features (npz file or folder), a benchmark YAML, or a run of --save."
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
    data: Optional[Path] = typer.Option(
        None, help="Folder that the image paths are relative to, instead of the benchmark's own."
    ),
    cache: Optional[Path] = typer.Option(None, help="Folder of encoded images and texts."),
    batch_size: Optional[int] = typer.Option(
        None, min=1, help="Images scored at a time; the benchmark's, or 256 (demo: 64), if not given."
    ),
    seed: Optional[int] = options.SEED,
    seeds: Optional[Any] = options.SEEDS,
    order: Optional[str] = options.ORDER,
    device: str = DEVICE,
    json_file: Optional[Path] = JSON,
    csv_file: Optional[Path] = CSV,
) -> None:
    """Write a run as one self-contained page, with its tables and pictures as files beside it."""
    with readable_errors():
        from adaneg_openood.benchmark.settings import shifted
        from adaneg_openood.evaluation.drawing import require_matplotlib
        from adaneg_openood.openood import compat
        from adaneg_openood.openood.leaderboard import check_row, write_files
        from adaneg_openood.report import load_record, save_record, write_report
        from adaneg_openood.report.record import RECORD_FILE
        from adaneg_openood.report.sources import DEMO
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
            raise ValueError(
                "--leaderboard BENCHMARK, --method METHOD and --arch ARCHITECTURE go together"
            )
        if (Path(run) / RECORD_FILE).is_file():
            record = load_record(run)
            if row:
                check_row(record.results.methods, record.results.splits, **row)
        else:
            if row:
                check_row(*_planned(run, data), **row)
            chosen = {"batch_size": batch_size, "order": order, "example_method": example_method}
            settings: dict[str, Any] = {key: value for key, value in chosen.items() if value is not None}
            if seed is not None or seeds is not None:
                settings["seeds"] = shifted(seeds or (0, 1, 2), seed)
            places = {"data": data, "cache": cache, "images_root": images_root}
            record = _collected(run, images or [], device, places, settings)
        if save is not None:
            typer.echo(f"{save_record(record, save)}: written")
        name = title or ("The demo world" if run == DEMO else Path(run).name)
        page_title = f"{name}: out-of-distribution detection"
        written = write_report(record, out, files=files, title=page_title, resamples=resamples)
        if row:
            for path in write_files(record.results, folder, **row):
                typer.echo(f"{path}: written")
        if json_file is not None:
            record.results.to_json(json_file)
        if csv_file is not None:
            record.results.to_csv(csv_file)
        summary = record.results.summary().round(2).rename_axis(None)
        show(f"Means over sets and orders, in percent:\n{summary.T.to_string()}\n")
        typer.echo(f"{out}: written, and {len(written) - 1} files in {folder}")


def _planned(source: str, data: Path | None) -> tuple[list[str], dict[str, str]]:
    """Methods, and OOD set -> split, of a run that is to be made."""
    from adaneg_openood.benchmark.definition import read_benchmark
    from adaneg_openood.evaluation import load_features

    benchmark = read_benchmark(source, data=data)
    splits = {part.name: part.split for part in benchmark.sets if not part.labelled}
    if benchmark.features is not None:
        whole = load_features(benchmark.features)
        splits = {**dict.fromkeys(whole.near, "near"), **dict.fromkeys(whole.far, "far")}
    return list(benchmark.methods), splits


def _collected(
    run: str, images: list[str], device: str, places: dict[str, Path | None], settings: dict[str, Any]
) -> RunRecord:
    from adaneg_openood.report.sources import DEMO, benchmark_record, given_images

    given = dict(named_values("--images", "PART=FOLDER or PART=IMGLIST", images))
    if run == DEMO and not Path(run).exists():
        if given:
            raise ValueError("--images: the demo world brings its own images")
    sources = given_images(given, places["images_root"])
    return benchmark_record(run, device=device, images=sources, **places, **settings)
