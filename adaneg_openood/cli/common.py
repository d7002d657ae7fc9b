"""What commands share: options, errors for people, tables."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from adaneg_openood.evaluation import Run
    from adaneg_openood.evaluation.intervals import Bootstrap
    from adaneg_openood.io.processes import Group

SEED = typer.Option(0, min=0, help="First seed of the stream orders.")
ORDERS = typer.Option(3, min=1, help="Stream orders to average.")
DEVICE = typer.Option("cpu", help="cpu, cuda, cuda:1, mps ...")
WORKERS = typer.Option(None, min=0, help="Decoding processes; as many as there are cores if not given.")
SKIP_BROKEN = typer.Option(False, help="Leave out images that cannot be read.")
PREPROCESSING = typer.Option("model", help="model, or paper (resize 256, crop 224).")
JSON = typer.Option(None, "--json", help="Write all results here.")
CSV = typer.Option(None, "--csv", help="Write one row a run here.")


def show_results(
    results: Run, json_file: Path | None, csv_file: Path | None, bootstrap: Bootstrap | None = None
) -> None:
    """Print every table, and write the files that were asked for."""
    for method in results.methods:
        typer.echo(f"\n{results.format_table(method)}")
    summary = results.summary().round(2).rename_axis(None)
    typer.echo(f"\nMeans over sets and orders, in percent:\n{summary.T.to_string()}")
    occupancy = results.format_occupancy()
    if occupancy:
        typer.echo(f"\n{occupancy}")
    warnings = results.format_warnings()
    if warnings:
        typer.echo(f"\n{warnings}")
    if bootstrap is not None:
        typer.echo(f"\n{bootstrap.format()}")
    if json_file is not None:
        results.to_json(json_file, bootstrap)
    if csv_file is not None:
        results.to_csv(csv_file)


@contextmanager
def readable_errors() -> Iterator[None]:
    """Errors made for people end as one line; all others keep their traceback."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        # of torchrun's processes the first speaks for all: an error on one is raised on every one
        if os.environ.get("RANK", "0") == "0":
            typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


def named_values(option: str, shape: str, given: Sequence[str] | None) -> Iterator[tuple[str, str]]:
    """``["a=1", "b=2"]`` -> ``("a", "1"), ("b", "2")``.

    Args:
        option: as people type it.
        shape: what it takes, for the error.
        given: its values.

    Raises:
        ValueError: one has no equals sign.
    """
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"{option} takes {shape}, got {text!r}")
        yield name, value


def say(group: Group, text: str) -> None:
    """Print, once a group."""
    if group.is_first:
        typer.echo(text)
