"""What commands share: errors for people, checks before the work, and what is printed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from adaneg_openood.io.files import atomic_path, check_writable
from adaneg_openood.io.names import harmless_lines

if TYPE_CHECKING:
    from adaneg_openood.evaluation import Run
    from adaneg_openood.evaluation.intervals import Bootstrap


@contextmanager
def readable_errors() -> Iterator[None]:
    """Errors made for people, and Ctrl-C, end as one line; all other errors keep their traceback."""
    try:
        yield
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            show(
                "interrupted; run again, the command takes up what is already encoded or saved", err=True
            )
        raise typer.Exit(130) from None
    except (ValueError, TypeError, OSError, ImportError) as error:
        # of torchrun's processes the first speaks for all: an error on one is raised on every one
        if os.environ.get("RANK", "0") == "0":
            text = str(error)
            if isinstance(error, ModuleNotFoundError) and error.name == "openood":
                text = (
                    "this needs OpenOOD, which is not installed; adaneg-openood doctor gives the command"
                )
            show(f"error: {text}", err=True)
        raise typer.Exit(2) from None


def show(text: str, err: bool = False) -> None:
    """Print what may hold names of a stranger's."""
    typer.echo(harmless_lines(text), err=err)


def check_outputs(*files: Path | None) -> None:
    """Refuse files that cannot be written, before the work for them begins.

    Raises:
        OSError: naming the first.
    """
    for file in files:
        if file is not None:
            check_writable(file)


def write_text(file: Path | None, text: str) -> None:
    """Write text where a file was asked for."""
    if file is not None:
        with atomic_path(file) as temporary:
            temporary.write_text(text, "utf-8")


def write_json(file: Path | None, content: Any) -> None:
    """Write JSON where a file was asked for."""
    if file is not None:
        write_text(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_tables(result: Any, json_file: Path | None, csv_file: Path | None, *more: Any) -> None:
    """Write the files that were asked for of a run or a reproduction."""
    if json_file is not None:
        result.to_json(json_file, *more)
    if csv_file is not None:
        result.to_csv(csv_file)


def show_run(
    run: Run, json_file: Path | None, csv_file: Path | None, bootstrap: Bootstrap | None = None
) -> None:
    """Print every table and the settings, and write the files that were asked for."""
    for method in run.methods:
        show(f"\n{run.format_table(method)}")
    show(f"\n{means(run)}")
    for text in (run.format_occupancy(), run.format_warnings(), bootstrap and bootstrap.format()):
        if text:
            show(f"\n{text}")
    about = run.provenance()
    show(f"\n{settings_text(about['methods'])}")
    typer.echo(f"Negative labels: {about['negatives']['rows']}")
    write_tables(run, json_file, csv_file, bootstrap)


def means(run: Run) -> str:
    """A run's means, one line per method."""
    summary = run.summary().round(2).rename_axis(None)
    return f"Means over sets and orders, in percent:\n{summary.T.to_string()}"


def settings_text(methods: Mapping[str, Mapping[str, Any]]) -> str:
    """One line per method with all of its settings."""
    lines = ["Settings"]
    for title, settings in methods.items():
        told = ", ".join(f"{key} {_plain(value)}" for key, value in settings.items())
        lines.append(f"{title}: {told}")
    return "\n".join(lines)


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value) if isinstance(value, (bool, type(None))) else str(value)


def named_values(option: str, shape: str, given: Sequence[str] | None) -> Iterator[tuple[str, str]]:
    """``["a=1", "b=2"]`` -> ``("a", "1"), ("b", "2")``; ``shape`` is what is asked for."""
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"{option} takes {shape}, got {text!r}")
        yield name, value
