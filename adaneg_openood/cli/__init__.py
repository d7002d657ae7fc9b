"""The command line: arguments to functions, nothing else. One module a group of commands."""

from __future__ import annotations

import logging

import typer

from adaneg_openood.cli import evaluate, labels, openood, predict

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
app.command("eval")(evaluate.evaluate_features)
app.command()(labels.mine)
app.command()(labels.encode)
app.command()(predict.build)
app.command()(predict.predict)
app.command()(openood.compare)
app.command()(openood.leaderboard)
app.command()(openood.doctor)
app.command()(openood.trial)
