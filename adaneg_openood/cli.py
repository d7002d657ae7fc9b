"""The command line: arguments to functions, nothing else."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Optional

import typer

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


@app.command("eval")
def evaluate_features(
    features: Path = typer.Argument(..., help="npz file or folder of saved features."),
    batch_size: int = typer.Option(256, min=1, help="Images scored at a time; AdaNeg depends on it."),
    seed: int = typer.Option(0, min=0, help="First seed of the stream orders."),
    orders: int = typer.Option(3, min=1, help="Stream orders to average."),
    order: str = typer.Option("mixed", help="mixed (the paper's protocol) or id_first."),
    device: str = typer.Option("cpu", help="cpu, cuda, cuda:1, mps ..."),
    json_file: Optional[Path] = typer.Option(None, "--json", help="Write all results here."),  # noqa: UP045
    csv_file: Optional[Path] = typer.Option(None, "--csv", help="Write one row a run here."),  # noqa: UP045
) -> None:
    """Near- and far-OOD tables of MCM, NegLabel and AdaNeg on saved features."""
    from adaneg_openood import MCM, AdaNeg, AdaNegConfig, NegLabel
    from adaneg_openood.evaluation import evaluate, load_features

    try:
        data = load_features(features)
        text, n_id, scale = data.text_features, data.n_id, data.logit_scale
        detectors = {
            "MCM": MCM(text, n_id),
            "NegLabel": NegLabel(text, n_id, logit_scale=scale),
            "AdaNeg (task)": AdaNeg(text, n_id, scale),
            "AdaNeg (sample)": AdaNeg(text, n_id, scale, AdaNegConfig(proxy="sample")),
        }
        results = evaluate(
            detectors,
            data,
            seeds=tuple(range(seed, seed + orders)),
            batch_size=batch_size,
            order=order,
            device=device,
        )
        for method in results.methods:
            typer.echo(f"\n{method}")
            typer.echo(results.format_table(method))
        if json_file is not None:
            results.to_json(json_file)
        if csv_file is not None:
            results.to_csv(csv_file)
    except (ValueError, TypeError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
