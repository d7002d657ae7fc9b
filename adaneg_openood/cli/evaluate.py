"""``demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

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
