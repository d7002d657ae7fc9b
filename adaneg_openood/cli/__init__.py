"""The command line: arguments to functions, nothing else. One module a group of commands."""

from __future__ import annotations

import logging

import typer

from adaneg_openood.cli import benchmarks, evaluate, labels, openood, predict, reports, sweeps

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


app.command()(evaluate.demo)
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
