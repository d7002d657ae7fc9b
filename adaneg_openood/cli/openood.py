"""``compare``, ``leaderboard``, ``doctor`` and ``trial``: what concerns OpenOOD."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Optional

import typer
import yaml

from adaneg_openood.benchmark.opening import to_text
from adaneg_openood.benchmark.postprocessor import check_postprocessor_name
from adaneg_openood.benchmark.settings import DEFAULT_MODEL, shifted
from adaneg_openood.cli import options
from adaneg_openood.cli.common import (
    check_outputs,
    settings_text,
    show,
    show_run,
    write_json,
    write_text,
)
from adaneg_openood.cli.options import setting

if TYPE_CHECKING:
    from adaneg_openood.openood import CLIPNetwork


@dataclass
class Evaluation:
    """What is evaluated through OpenOOD: a benchmark of OpenOOD's and a network."""

    benchmark: str = typer.Option(
        ..., "--benchmark", help="OpenOOD's ID dataset: cifar10, cifar100, imagenet ..."
    )
    data: Optional[Path] = typer.Option(
        None,
        help="OpenOOD's data folder; ./data if not given. The benchmark demo is drawn anew.",
    )
    configs: Optional[Path] = typer.Option(
        None, help="OpenOOD's configs folder; if not given, configs in the data folder, or ./configs."
    )
    model: Optional[str] = typer.Option(
        None, help="The model; open_clip:ViT-B-16/openai if not given, or demo for the benchmark demo."
    )
    classes: Optional[str] = setting("classes", note="The benchmark's own if not given.")
    settings: Optional[list[str]] = typer.Option(
        None, "--set", help="A setting of a method of this package, such as adaneg.negatives=list.txt."
    )
    batch_size: int = typer.Option(200, min=1, help="Images encoded at a time; changes no result.")
    workers: int = typer.Option(
        min(4, os.cpu_count() or 1),
        min=0,
        help="Number of processes that decode images.",
        show_default="one per core, at most 4",
    )
    preprocessing: str = setting("preprocessing")
    device: str = options.DEVICE
    precision: str = setting("precision")

    @property
    def loading(self) -> dict[str, Any]:
        """How OpenOOD's loaders read the images."""
        return {"batch_size": self.batch_size, "num_workers": self.workers}

    @contextmanager
    def folders(self) -> Iterator[tuple[Path, Path]]:
        """OpenOOD's data and configs; the benchmark demo is drawn where no data folder is given.

        Raises:
            ValueError: a folder that was named is not there.
        """
        from adaneg_openood.openood.trial import NAME, write_trial

        for option, folder in (("--data", self.data), ("--configs", self.configs)):
            if folder is not None and not folder.is_dir():
                raise ValueError(f"{option}: there is no folder {folder}")
        with ExitStack() as stack:
            data = self.data
            if data is None and self.benchmark == NAME:
                data = Path(stack.enter_context(TemporaryDirectory(prefix="adaneg-trial-")))
                write_trial(data)
            data = data or Path("data")
            beside = data / "configs"
            yield data, self.configs or (beside if beside.is_dir() else Path("configs"))

    def network(self) -> CLIPNetwork:
        """The network, with the names of its classes."""
        from adaneg_openood.openood.labels import known_names
        from adaneg_openood.openood.network import CLIPNetwork
        from adaneg_openood.openood.trial import NAME
        from adaneg_openood.vlm import load_model

        classes = self.classes or self.benchmark
        names = known_names(classes)  # a typing error should not wait for a model to load
        chosen = {"precision": self.precision, "preprocessing": self.preprocessing}
        name = self.model or ("demo" if classes == NAME else DEFAULT_MODEL)
        return CLIPNetwork(load_model(name, device=self.device, **chosen), names)

    def by_method(self) -> dict[str, dict[str, Any]]:
        """``["adaneg.gap=0.2"]`` -> ``{"adaneg": {"gap": 0.2}}``; values are read as YAML."""
        found: dict[str, dict[str, Any]] = {}
        for text in self.settings or []:
            name, equals, value = text.partition("=")
            method, dot, key = name.partition(".")
            if not equals or not dot:
                raise ValueError(f"--set takes METHOD.NAME=VALUE, got {text!r}")
            found.setdefault(method, {})[key] = yaml.safe_load(value)
        return found


EVALUATION: Any = options.Made(Evaluation)


@options.command
def compare(
    chosen: Evaluation = EVALUATION,
    postprocessors: Optional[str] = typer.Option(
        None, help="Names with commas, such as msp,knn,mcm,adaneg; all if not given."
    ),
    fsood: bool = typer.Option(False, help="Count images of csid sets as ID."),
    json_file: Optional[Path] = options.JSON,
    markdown: Optional[Path] = typer.Option(None, help="Write the table here as Markdown."),
) -> None:
    """Run OpenOOD's postprocessors and this package's side by side, through OpenOOD's evaluator."""
    from adaneg_openood.openood.compare import compare as run

    check_outputs(json_file, markdown)
    with chosen.folders() as (data_root, config_root):
        result = run(
            chosen.network,
            chosen.benchmark,
            None if postprocessors is None else [name.strip() for name in postprocessors.split(",")],
            data_root=data_root,
            config_root=config_root,
            settings=chosen.by_method(),
            fsood=fsood,
            **chosen.loading,
        )
    show(result.table.round(2).to_string())
    for name, why in result.failed.items():
        show(f"{name}: cannot run, {why}")
    if result.settings:
        typer.echo(settings_text(result.settings))
    about = {"benchmark": chosen.benchmark, "full_spectrum": fsood, "settings": result.settings}
    write_json(json_file, {"table": result.table.to_dict("index"), "failed": result.failed, **about})
    write_text(markdown, result.to_markdown())
    if result.failed and postprocessors is not None:  # of all, some are known to fail
        raise typer.Exit(1)


@options.command
def leaderboard(
    chosen: Evaluation = EVALUATION,
    arch: str = typer.Option(..., help="Architecture as the leaderboard writes it, such as ViT-B/16."),
    out: Path = typer.Option(Path("leaderboard"), help="Folder for the row and the table."),
    method: str = typer.Option("adaneg", help="One of this package's methods."),
    seed: Optional[int] = options.SEED,
    seeds: Optional[Any] = options.SEEDS,
    json_file: Optional[Path] = options.JSON,
) -> None:
    """Evaluate one method and write the row and file that OpenOOD's leaderboard takes."""
    from adaneg_openood.openood import Evaluator
    from adaneg_openood.openood.benchmark_files import refuse_missing
    from adaneg_openood.openood.compare import refuse_unused
    from adaneg_openood.openood.leaderboard import check_arch, write_files
    from adaneg_openood.openood.postprocessors import POSTPROCESSORS, configured

    benchmark = chosen.benchmark
    check_outputs(json_file, out / f"{benchmark}_{method}.csv")
    check_postprocessor_name(method, POSTPROCESSORS)
    refuse_unused(chosen.by_method(), [method])
    check_arch(arch, "--arch")
    own = chosen.by_method().get(method, {})
    with chosen.folders() as (data_root, config_root):
        refuse_missing(data_root, benchmark)
        postprocessor = configured(method, benchmark, config_root, **own)
        if seed is None and not seeds:
            seed = getattr(postprocessor.settings, "seed", 0)
        evaluator = Evaluator(
            chosen.network(),
            benchmark,
            data_root,
            config_root,
            postprocessor=postprocessor,
            **chosen.loading,
        )
        run = evaluator.eval_streams(shifted(seeds or (0, 1, 2), seed), save_dir=out / "streams")
        accuracy = evaluator.eval_acc()
    show_run(run, json_file, None)
    for path in write_files(run, out, benchmark, arch=arch, method=method, id_accuracy=accuracy):
        typer.echo(f"{path}: written")


@options.command
def doctor(
    data: Optional[Path] = typer.Option(None, "--data-root", help="OpenOOD's data folder."),
    benchmark: Optional[str] = typer.Option(
        None, help="A benchmark of OpenOOD; those that are found if not given."
    ),
    full: bool = typer.Option(False, help="Also look for the images of training lists."),
    json_file: Optional[Path] = options.JSON,
) -> None:
    """Say what is installed, what is missing, what that disables, and which command mends it."""
    from adaneg_openood.openood.doctor import diagnose

    items = diagnose(data, benchmark, full=full)
    show(to_text(items))
    write_json(json_file, [dataclasses.asdict(item) for item in items])
    if any(item.ok is False for item in items):
        raise typer.Exit(1)


@options.command
def trial(folder: Path = typer.Argument(..., help="Where to draw the benchmark.")) -> None:
    """Draw the demo's benchmark in OpenOOD's layout, with the configurations that evaluate it."""
    from adaneg_openood.openood.trial import write_trial

    files = " ".join(map(str, write_trial(folder)))
    typer.echo(f"{folder}: written. In OpenOOD's checkout, evaluate it with")
    typer.echo(f"  python -m adaneg_openood main.py --config {files} --num_gpus 0")
