"""The row that OpenOOD's leaderboard takes, made of results that are complete."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adaneg_openood.evaluation import Run
from adaneg_openood.evaluation.streams import ORDERS
from adaneg_openood.io.files import atomic_path

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "Training",
    "Postprocessor",
    "Near-OOD_AUROC",
    "Far-OOD_AUROC",
    "ID_Accuracy",
    "Outlier_Data",
    "Arch",
    "Additional_Description",
)
NAMES = {"adaneg": "AdaNeg", "neglabel": "NegLabel", "mcm": "MCM"}
_METRICS = ("FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT", "ACC")


def leaderboard_row(
    results: Run,
    id_name: str,
    *,
    method: str = "adaneg",
    arch: str,
    id_accuracy: float | None = None,
    description: str = "",
) -> dict[str, str]:
    """One row, by column; protocol, seeds and text prompts stated.

    Args:
        results: of :meth:`Evaluator.eval_streams` or :func:`adaneg_openood.evaluation.evaluate`.
        id_name: OpenOOD's benchmark.
        method: of the results.
        arch: such as ``"CLIP ViT-B/16"``.
        id_accuracy: of the zero-shot classifier, in percent, as OpenOOD reports it; None takes the
            detector's own.
        description: added to what is said of the protocol.

    Raises:
        ValueError: an OOD set of the benchmark is missing or unknown, or metrics are.
    """
    records = results.records[results.records["method"] == method]
    if records.empty:
        raise ValueError(
            f"the results hold no method {method!r}; there are {', '.join(results.methods)}"
        )
    _refuse_incomplete(records, id_name, results.seeds)
    if not arch.strip():
        raise ValueError("arch is empty; the leaderboard asks for it, such as 'CLIP ViT-B/16'")
    table = results.table(method)
    near, far = (float(table["AUROC"][group]) for group in ("nearood", "farood"))
    accuracy = float(table["ACC"]["farood"]) if id_accuracy is None else id_accuracy
    by_detector = "; ID accuracy by the detector" if id_accuracy is None else ""
    said = [
        f"Protocol: {ORDERS[results.order]}",
        f"batches of {results.batch_size}",
        f"mean of {len(results.seeds)} stream order(s)",
        "zero-shot, no training images" + by_detector,
    ]
    return dict(
        zip(
            COLUMNS,
            (
                "Zero-shot CLIP",
                NAMES.get(method, method),
                f"{near:.2f}",
                f"{far:.2f}",
                f"{accuracy:.2f}",
                "No",
                arch.strip(),
                "; ".join([*said, *([description.strip()] if description.strip() else [])]),
            ),
        )
    )


def to_csv(rows: Sequence[dict[str, str]], *, header: bool = True) -> str:
    """Rows as CSV text."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def write_files(
    results: Run,
    folder: str | os.PathLike[str],
    id_name: str,
    *,
    arch: str,
    method: str = "adaneg",
    id_accuracy: float | None = None,
    description: str = "",
) -> tuple[Path, Path]:
    """Write the leaderboard's row and OpenOOD's result table (its ``--save-csv``), atomically.

    Returns:
        ``<folder>/<id_name>_<method>_row.csv`` and ``<folder>/<id_name>_<method>.csv``.

    Raises:
        ValueError: see :func:`leaderboard_row`; then nothing is written.
    """
    row = leaderboard_row(
        results,
        id_name,
        method=method,
        arch=arch,
        id_accuracy=id_accuracy,
        description=description,
    )
    table = results.table(method)[list(_METRICS)]
    if id_accuracy is not None:
        table = table.assign(ACC=id_accuracy)
    stem = "_".join([id_name, *method.split()])
    row_path, table_path = Path(folder) / f"{stem}_row.csv", Path(folder) / f"{stem}.csv"
    with atomic_path(row_path) as temporary:
        temporary.write_text(to_csv([row]), encoding="utf-8")
    with atomic_path(table_path) as temporary:
        table.rename_axis(None).to_csv(temporary, float_format="{:.2f}".format)
    return row_path, table_path


def _refuse_incomplete(records: pd.DataFrame, id_name: str, seeds: Sequence[int]) -> None:
    from openood.evaluation_api.datasets import DATA_INFO

    if id_name not in DATA_INFO:
        raise ValueError(f"id_name must be one of {', '.join(DATA_INFO)}, got {id_name!r}")
    problems = []
    for split in ("near", "far"):
        wanted = set(DATA_INFO[id_name]["ood"][split]["datasets"])
        found = set(records.loc[records["split"] == split, "dataset"])
        if wanted - found:
            problems.append(f"{split}-OOD lacks {', '.join(sorted(wanted - found))}")
        if found - wanted:
            problems.append(
                f"{split}-OOD holds {', '.join(sorted(found - wanted))}, not of the benchmark"
            )
    if records[list(_METRICS)].isna().any().any():
        problems.append("metrics are missing")
    if records["n_id"].nunique() > 1:
        problems.append("the number of ID images differs between sets")
    per_set = records.groupby("dataset")["seed"].apply(set)
    if any(found != set(seeds) for found in per_set):
        problems.append("not every set was run with every seed")
    if problems:
        raise ValueError(f"the results are not complete for {id_name}: {'; '.join(problems)}")
