"""The command line: arguments to functions, nothing else."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import typer

if TYPE_CHECKING:
    from adaneg_openood.evaluation import Results

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="AdaNeg for OpenOOD: out-of-distribution detection with vision-language models.",
)


@app.callback()
def main() -> None:
    """AdaNeg for OpenOOD: out-of-distribution detection with vision-language models."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")


SEED = typer.Option(0, min=0, help="First seed of the stream orders.")
ORDERS = typer.Option(3, min=1, help="Stream orders to average.")
DEVICE = typer.Option("cpu", help="cpu, cuda, cuda:1, mps ...")
JSON = typer.Option(None, "--json", help="Write all results here.")
CSV = typer.Option(None, "--csv", help="Write one row a run here.")


@app.command()
def demo(
    seed: int = SEED,
    orders: int = ORDERS,
    device: str = DEVICE,
    json_file: Optional[Path] = JSON,  # noqa: UP045
    csv_file: Optional[Path] = CSV,  # noqa: UP045
) -> None:
    """Near- and far-OOD tables on an embedded world of drawn images; no download, under a minute."""
    with _readable_errors():
        from adaneg_openood.demo.run import run_demo

        results = run_demo(tuple(range(seed, seed + orders)), device)
        _show(results, json_file, csv_file)


@app.command("eval")
def evaluate_features(
    features: Path = typer.Argument(..., help="npz file or folder of saved features."),
    batch_size: int = typer.Option(256, min=1, help="Images scored at a time; AdaNeg depends on it."),
    seed: int = SEED,
    orders: int = ORDERS,
    order: str = typer.Option("mixed", help="mixed (the paper's protocol) or id_first."),
    device: str = DEVICE,
    json_file: Optional[Path] = JSON,  # noqa: UP045
    csv_file: Optional[Path] = CSV,  # noqa: UP045
) -> None:
    """Near- and far-OOD tables of MCM, NegLabel and AdaNeg on saved features."""
    with _readable_errors():
        from adaneg_openood.evaluation import evaluate, load_features, standard_detectors

        data = load_features(features)
        results = evaluate(
            standard_detectors(data),
            data,
            seeds=tuple(range(seed, seed + orders)),
            batch_size=batch_size,
            order=order,
            device=device,
        )
        _show(results, json_file, csv_file)


def _show(results: Results, json_file: Path | None, csv_file: Path | None) -> None:
    for method in results.methods:
        typer.echo(f"\n{results.format_table(method)}")
    summary = results.summary().round(2).rename_axis(None)
    typer.echo(f"\nMeans over sets and orders, in percent:\n{summary.T.to_string()}")
    occupancy = results.format_occupancy()
    if occupancy:
        typer.echo(f"\n{occupancy}")
    if json_file is not None:
        results.to_json(json_file)
    if csv_file is not None:
        results.to_csv(csv_file)


@contextmanager
def _readable_errors() -> Iterator[None]:
    """Errors made for people end as one line; all others keep their traceback."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
