"""The row that OpenOOD's leaderboard takes, made of results that are complete."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaneg_openood.detectors import DETECTORS
from adaneg_openood.evaluation.streams import ORDERS
from adaneg_openood.io.files import atomic_path

if TYPE_CHECKING:
    from adaneg_openood.evaluation import Run

_METRICS = ["FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT", "ACC"]
# what the description tells of a method's settings; all stand in the run
_TOLD = ("proxy", "gamma", "gap", "memory_length", "alpha", "k", "queue", "window", "groups", "tau")
_FAMILIES = {"siglip": "SigLIP", "coca": "CoCa", "clip": "CLIP"}  # the first that a model's name holds


def leaderboard_row(
    run: Run,
    id_name: str,
    *,
    method: str = "adaneg",
    arch: str,
    id_accuracy: float | None = None,
    description: str = "",
) -> dict[str, str]:
    """One row, by column; protocol, settings and negative labels stated.

    Args:
        run: of :meth:`Evaluator.eval_streams` or :func:`adaneg_openood.evaluation.replay`.
        id_name: OpenOOD's benchmark.
        method: of the run.
        arch: such as ``"CLIP ViT-B/16"``.
        id_accuracy: of the zero-shot classifier, in percent, as OpenOOD reports it; None takes the
            detector's own.
        description: added to what is said of the protocol.

    Raises:
        ValueError: an OOD set of the benchmark is missing or unknown, or metrics are.
    """
    sets = run.about.provenance.get("sets", {})
    check_row(run.methods, run.splits, id_name, method=method, arch=arch, sets=sets)
    records = run.records[run.records["method"] == method]
    if records[_METRICS].isna().any().any():
        raise ValueError(f"the results are not complete for {id_name}: metrics are missing")
    if records["n_id"].nunique() > 1:
        raise ValueError(f"{id_name}: the number of ID images differs between sets")
    table, spread = run.table(method), run.spread(method)
    orders = len({seed for name, _, seed in run.streams if name == method})

    def auroc(group: str) -> str:
        mean = f"{float(table['AUROC'][group]):.2f}"
        return mean if orders == 1 else f"{mean} ± {float(spread['AUROC'][group]):.2f}"

    accuracy = float(table["ACC"]["farood"]) if id_accuracy is None else id_accuracy
    info = DETECTORS[method].info if method in DETECTORS else None
    return {
        "Training": f"Zero-shot {_family(run)}",
        "Postprocessor": info.title if info else method,
        "Near-OOD_AUROC": auroc("nearood"),
        "Far-OOD_AUROC": auroc("farood"),
        "ID_Accuracy": f"{accuracy:.2f}",
        "Outlier_Data": "No",
        "Arch": arch.strip(),
        "Additional_Description": "; ".join(
            _told(run, method, orders, id_accuracy is None, description)
        ),
    }


def _family(run: Run) -> str:
    """What kind of model it was; CLIP is said of CLIP only."""
    model = run.about.provenance.get("model") or {}
    name = str(model if isinstance(model, str) else model.get("model", "")).lower()
    if name.startswith("open_clip:"):
        name += " clip"  # its architectures are CLIP's unless they say otherwise
    name = name.removeprefix("open_clip:")
    return next((title for word, title in _FAMILIES.items() if word in name), "image-text model")


def _told(run: Run, method: str, orders: int, by_detector: bool, description: str) -> list[str]:
    settings: dict[str, Any] = dict(run.about.settings[method])
    negatives = run.about.data["negatives"]
    told = [f"{name} {settings[name]}" for name in _TOLD if name in settings]
    if negatives["rows"]:
        told.append(
            f"{negatives['rows']} negative labels (sha256 of their features {negatives['sha256']})"
        )
    told += [
        f"order: {ORDERS[run.order]}",
        f"batches of {run.batch_size}",
        f"mean ± std of {orders} stream orders" if orders > 1 else "one stream order",
        "zero-shot, no training images",
        "ID accuracy by the detector" if by_detector else "",
        description.strip(),
    ]
    return list(filter(None, told))


def write_files(
    run: Run, folder: str | os.PathLike[str], id_name: str, *, method: str = "adaneg", **about: Any
) -> tuple[Path, Path]:
    """Write the leaderboard's row and OpenOOD's result table (its ``--save-csv``), atomically.

    Args:
        run, id_name, method, about: see :func:`leaderboard_row`.
        folder: made if needed.

    Returns:
        ``<folder>/<id_name>_<method>_row.csv`` and ``<folder>/<id_name>_<method>.csv``.

    Raises:
        ValueError: see :func:`leaderboard_row`; then nothing is written.
    """
    import pandas as pd

    row = leaderboard_row(run, id_name, method=method, **about)
    table = run.table(method)[_METRICS]
    if about.get("id_accuracy") is not None:
        table = table.assign(ACC=about["id_accuracy"])
    stem = "_".join([id_name, *method.split()])
    row_path, table_path = Path(folder) / f"{stem}_row.csv", Path(folder) / f"{stem}.csv"
    with atomic_path(row_path) as temporary:
        pd.DataFrame([row]).to_csv(temporary, index=False)
    with atomic_path(table_path) as temporary:
        table.rename_axis(None).to_csv(temporary, float_format="{:.2f}".format)
    return row_path, table_path


def check_arch(arch: str, name: str = "arch") -> None:
    """Raise a ValueError if the architecture, which the caller calls ``name``, says nothing."""
    if not arch.strip():
        raise ValueError(f"{name} is empty; the leaderboard asks for it, such as 'CLIP ViT-B/16'")


def check_row(
    methods: Collection[str],
    splits: Mapping[str, str],
    id_name: str,
    *,
    method: str,
    arch: str,
    sets: Mapping[str, Mapping[str, Any]],
) -> None:
    """Whether a run can give a row, as far as it is known before the run.

    Args:
        methods: of the run.
        splits: OOD set -> ``"near"`` or ``"far"``.
        id_name, method, arch: as for :func:`leaderboard_row`.
        sets: title of an image set, such as ``"near/tin"`` -> ``limit`` and ``skipped``, as far as they
            are known.

    Raises:
        ValueError: it cannot.
    """
    from openood.evaluation_api.datasets import DATA_INFO

    if method not in methods:
        raise ValueError(f"the results hold no method {method!r}; there are {', '.join(methods)}")
    check_arch(arch)
    if id_name not in DATA_INFO:
        raise ValueError(f"id_name must be one of {', '.join(DATA_INFO)}, got {id_name!r}")
    problems = []
    for title, known in sets.items():
        if title.startswith("csid/"):
            problems.append(
                f"{title} counts as ID, and the leaderboard's rows are without full spectrum"
            )
        if known.get("limit") or known.get("skipped"):
            problems.append(f"{title} is not whole (limit or broken images)")
    for split in ("near", "far"):
        wanted = set(DATA_INFO[id_name]["ood"][split]["datasets"])
        found = {name for name, of in splits.items() if of == split}
        if wanted - found:
            problems.append(f"{split}-OOD lacks {', '.join(sorted(wanted - found))}")
        if found - wanted:
            odd = ", ".join(sorted(found - wanted))
            problems.append(f"{split}-OOD holds {odd}, not of the benchmark")
    if problems:
        raise ValueError(f"the results are not complete for {id_name}: {'; '.join(problems)}")
