"""The command line: arguments to functions, nothing else. One module per group of commands."""

from __future__ import annotations

import logging

import typer

from adaneg_openood.cli import benchmarks, labels, openood, predict, reports, sweeps

_HELP = """AdaNeg for OpenOOD: out-of-distribution detection with vision-language models.

Start with: adaneg-openood demo. Every command that loads a model takes --model demo, the embedded one,
which needs no download.

Exit status: 0 done; 1 done, but something was found missing, damaged or unreadable; 2 not done, for the
reason that the last line gives.
"""

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=_HELP)


class _Printable(logging.Formatter):
    """Log lines hold file names, which may hold anything."""

    def format(self, record: logging.LogRecord) -> str:
        from adaneg_openood.io.names import harmless, harmless_lines

        text = super().format(record)
        return harmless_lines(text) if record.exc_info else harmless(text)


def _version(asked: bool) -> None:
    if asked:
        from adaneg_openood import __version__

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


app.command()(benchmarks.demo)
app.command("eval")(benchmarks.evaluate_benchmark)
app.command()(benchmarks.benchmarks)
app.command()(sweeps.sweep)
app.command()(labels.mine)
app.command()(labels.encode)
app.command()(predict.build)
app.command()(predict.predict)
app.command()(openood.compare)
app.command()(openood.leaderboard)
app.command()(openood.doctor)
app.command()(openood.trial)
app.command()(reports.reproduce)
app.command()(reports.report)
app.add_typer(benchmarks.cache_app, name="cache")
