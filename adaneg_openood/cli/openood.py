"""``compare``, ``leaderboard`` and ``doctor``: what concerns OpenOOD."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Optional

import typer

from adaneg_openood.cli import options
from adaneg_openood.cli.common import check_outputs, readable_errors, show, show_run
from adaneg_openood.cli.options import DEVICE, JSON, PRECISION, PREPROCESSING

if TYPE_CHECKING:
    from adaneg_openood.openood import CLIPNetwork

BENCHMARK = typer.Option(
    ..., "--benchmark", help="OpenOOD's ID dataset: cifar10, cifar100, imagenet ..."
)
DATA = typer.Option(
    None, help="OpenOOD's data folder; ./data if not given. The benchmark demo is drawn anew."
)
CONFIGS = typer.Option(
    None, help="OpenOOD's configs folder; if not given, configs in the data folder, or ./configs."
)
NETWORK = typer.Option(
    None,
    "--model",
    help="The model; open_clip:ViT-B-16/openai if not given, or demo for the benchmark demo.",
)
SETTINGS = typer.Option(
    None, "--set", help="A setting of a method of this package, such as adaneg.negatives=list.txt."
)
CLASSES = options.setting("classes", note="The benchmark's own if not given.")


def compare(
    benchmark: str = BENCHMARK,
    postprocessors: Optional[str] = typer.Option(
        None, help="Names with commas, such as msp,knn,mcm,adaneg; all if not given."
    ),
    data: Optional[Path] = DATA,
    configs: Optional[Path] = CONFIGS,
    model: Optional[str] = NETWORK,
    classes: Optional[str] = CLASSES,
    settings: Optional[list[str]] = SETTINGS,
    fsood: bool = typer.Option(False, help="Count images of csid sets as ID."),
    batch_size: int = typer.Option(200, min=1, help="Images encoded at a time; changes no result."),
    workers: int = typer.Option(4, min=0, help="Number of processes that decode images."),
    preprocessing: str = PREPROCESSING,
    device: str = DEVICE,
    precision: str = PRECISION,
    json_file: Optional[Path] = JSON,
    markdown: Optional[Path] = typer.Option(None, help="Write the table here as Markdown."),
) -> None:
    """Run OpenOOD's postprocessors and this package's side by side, through OpenOOD's evaluator."""
    with readable_errors():
        from adaneg_openood.io.files import atomic_path
        from adaneg_openood.openood.compare import compare as run

        check_outputs(json_file, markdown)
        names = None if postprocessors is None else [name.strip() for name in postprocessors.split(",")]
        with _folders(benchmark, data, configs) as (data_root, config_root):
            result = run(
                lambda: _network(model, classes or benchmark, device, precision, preprocessing),
                benchmark,
                names,
                data_root=data_root,
                config_root=config_root,
                settings=_parsed(settings),
                batch_size=batch_size,
                num_workers=workers,
                fsood=fsood,
            )
        show(result.table.round(2).to_string())
        for name, why in result.failed.items():
            show(f"{name}: cannot run, {why}")
        if json_file is not None:
            report = {"table": result.table.to_dict("index"), "failed": result.failed}
            with atomic_path(json_file) as temporary:
                temporary.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")
        if markdown is not None:
            with atomic_path(markdown) as temporary:
                temporary.write_text(result.to_markdown(), "utf-8")


def leaderboard(
    benchmark: str = BENCHMARK,
    arch: str = typer.Option(..., help="Architecture as the leaderboard writes it, such as ViT-B/16."),
    out: Path = typer.Option(Path("leaderboard"), help="Folder for the row and the table."),
    method: str = typer.Option("adaneg", help="One of this package's methods."),
    data: Optional[Path] = DATA,
    configs: Optional[Path] = CONFIGS,
    model: Optional[str] = NETWORK,
    classes: Optional[str] = CLASSES,
    settings: Optional[list[str]] = SETTINGS,
    seed: Optional[int] = options.SEED,
    seeds: Optional[Any] = options.SEEDS,
    batch_size: int = typer.Option(200, min=1, help="Images encoded at a time; changes no result."),
    workers: int = typer.Option(4, min=0, help="Number of processes that decode images."),
    preprocessing: str = PREPROCESSING,
    device: str = DEVICE,
    precision: str = PRECISION,
    json_file: Optional[Path] = JSON,
) -> None:
    """Evaluate one method and write the row and file that OpenOOD's leaderboard takes."""
    with readable_errors():
        from adaneg_openood.benchmark.postprocessor import check_postprocessor_name
        from adaneg_openood.benchmark.settings import shifted
        from adaneg_openood.openood import Evaluator
        from adaneg_openood.openood.benchmark_files import refuse_missing
        from adaneg_openood.openood.leaderboard import write_files
        from adaneg_openood.openood.postprocessors import POSTPROCESSORS, configured

        check_outputs(json_file, out / f"{benchmark}_{method}.csv")
        check_postprocessor_name(method, POSTPROCESSORS)
        own = _parsed(settings).get(method, {})
        with _folders(benchmark, data, configs) as (data_root, config_root):
            refuse_missing(data_root, benchmark)
            postprocessor = configured(method, benchmark, config_root, **own)
            first = seed
            if first is None and not seeds:
                first = getattr(postprocessor.settings, "seed", 0)
            evaluator = Evaluator(
                _network(model, classes or benchmark, device, precision, preprocessing),
                benchmark,
                data_root,
                config_root,
                postprocessor=postprocessor,
                batch_size=batch_size,
                num_workers=workers,
            )
            run = evaluator.eval_streams(shifted(seeds or (0, 1, 2), first), save_dir=out / "streams")
            accuracy = evaluator.eval_acc()
        show_run(run, json_file, None)
        for path in write_files(run, out, benchmark, arch=arch, method=method, id_accuracy=accuracy):
            typer.echo(f"{path}: written")


def doctor(
    data: Optional[Path] = typer.Option(None, "--data-root", help="OpenOOD's data folder."),
    benchmark: Optional[str] = typer.Option(
        None, help="A benchmark of OpenOOD; those that are found if not given."
    ),
    full: bool = typer.Option(False, help="Also look for the images of training lists."),
    json_file: Optional[Path] = JSON,
) -> None:
    """Say what is installed, what is missing, what that disables, and which command mends it."""
    with readable_errors():
        from adaneg_openood.benchmark.check import to_text
        from adaneg_openood.io.files import atomic_path
        from adaneg_openood.openood.doctor import diagnose

        items = diagnose(data, benchmark, full=full)
        show(to_text(items))
        if json_file is not None:
            found = [dataclasses.asdict(item) for item in items]
            with atomic_path(json_file) as temporary:
                temporary.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


def trial(folder: Path = typer.Argument(..., help="Where to draw the benchmark.")) -> None:
    """Draw the demo's benchmark in OpenOOD's layout, with the configurations that evaluate it."""
    with readable_errors():
        from adaneg_openood.openood.trial import write_trial

        files = " ".join(map(str, write_trial(folder)))
        typer.echo(f"{folder}: written. In OpenOOD's checkout, evaluate it with")
        typer.echo(f"  python -m adaneg_openood main.py --config {files} --num_gpus 0")


@contextmanager
def _folders(benchmark: str, data: Path | None, configs: Path | None) -> Iterator[tuple[Path, Path]]:
    """OpenOOD's data and configs folders; the benchmark demo is drawn where no data folder is given.

    Raises:
        ValueError: a folder that was named is not there.
    """
    from adaneg_openood.openood.trial import NAME, write_trial

    for option, folder in (("--data", data), ("--configs", configs)):
        if folder is not None and not folder.is_dir():
            raise ValueError(f"{option}: there is no folder {folder}")
    with ExitStack() as stack:
        if data is None and benchmark == NAME:
            data = Path(stack.enter_context(TemporaryDirectory(prefix="adaneg-trial-")))
            write_trial(data)
        data = data or Path("data")
        beside = data / "configs"
        yield data, configs or (beside if beside.is_dir() else Path("configs"))


def _network(
    model: str | None, classes: str, device: str, precision: str, preprocessing: str
) -> CLIPNetwork:
    from adaneg_openood.openood.labels import known_names
    from adaneg_openood.openood.network import CLIPNetwork
    from adaneg_openood.openood.trial import NAME
    from adaneg_openood.vlm import load_model

    names = known_names(classes).names  # a typing error should not wait for a model to load
    name = model or ("demo" if classes == NAME else "open_clip:ViT-B-16/openai")
    return CLIPNetwork(
        load_model(name, device=device, precision=precision, preprocessing=preprocessing), names
    )


def _parsed(settings: list[str] | None) -> dict[str, dict[str, Any]]:
    """``["adaneg.gap=0.2"]`` -> ``{"adaneg": {"gap": 0.2}}``; values are read as YAML."""
    import yaml

    found: dict[str, dict[str, Any]] = {}
    for text in settings or []:
        name, equals, value = text.partition("=")
        method, dot, key = name.partition(".")
        if not equals or not dot:
            raise ValueError(f"--set takes METHOD.NAME=VALUE, got {text!r}")
        found.setdefault(method, {})[key] = yaml.safe_load(value)
    return found
