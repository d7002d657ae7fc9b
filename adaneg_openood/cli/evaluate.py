"""``demo`` and ``eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import typer

from adaneg_openood.cli.common import CSV, DEVICE, JSON, ORDERS, SEED, readable_errors, show_results


def demo(
    seed: int = SEED,
    orders: int = ORDERS,
    device: str = DEVICE,
    json_file: Optional[Path] = JSON,
    csv_file: Optional[Path] = CSV,
) -> None:
    """Near- and far-OOD tables on an embedded world of drawn images; no download, under a minute."""
    with readable_errors():
        from adaneg_openood.demo.run import run_demo

        results = run_demo(tuple(range(seed, seed + orders)), device)
        show_results(results, json_file, csv_file)


def evaluate_features(
    features: Path = typer.Argument(..., help="npz file or folder of saved features."),
    batch_size: int = typer.Option(256, min=1, help="Images scored at a time; AdaNeg depends on it."),
    seed: int = SEED,
    orders: int = ORDERS,
    order: str = typer.Option("mixed", help="mixed (the paper's protocol) or id_first."),
    device: str = DEVICE,
    json_file: Optional[Path] = JSON,
    csv_file: Optional[Path] = CSV,
) -> None:
    """Near- and far-OOD tables of MCM, NegLabel and AdaNeg on saved features."""
    with readable_errors():
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
        show_results(results, json_file, csv_file)
