"""The command line: arguments to functions, nothing else. One module per group of commands."""

from __future__ import annotations

import logging

import typer

from adaneg_openood._version import __version__
from adaneg_openood.cli import benchmarks, labels, openood, predict, reports
from adaneg_openood.io.names import harmless, harmless_lines

_HELP = """AdaNeg for OpenOOD: out-of-distribution detection with vision-language models.

Start with: adaneg-openood demo. Every command that loads a model takes --model demo, the embedded one,
which needs no download.

Exit status: 0 done; 1 done, but something was found missing, damaged or unreadable; 2 not done, for the
reason that the last line gives; 130 interrupted.
"""

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=_HELP)


class _Printable(logging.Formatter):
    """Log lines hold file names, which may hold anything."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return harmless_lines(text) if record.exc_info else harmless(text)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"adaneg-openood {__version__}")
        raise typer.Exit


@app.callback(help=_HELP)
def main(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Set up messages."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Printable("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


for command in (
    *(benchmarks.demo, benchmarks.evaluate_benchmark, benchmarks.benchmarks, benchmarks.sweep),
    *(labels.mine, labels.encode, predict.build, predict.predict),
    *(openood.compare, openood.leaderboard, openood.doctor, openood.trial),
    *(reports.reproduce, reports.report),
):
    app.command("eval" if command is benchmarks.evaluate_benchmark else None)(command)
app.add_typer(benchmarks.cache_app, name="cache")
