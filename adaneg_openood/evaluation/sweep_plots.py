"""Pictures of a sweep: one an axis, with error bars over seeds."""

from __future__ import annotations

import numbers
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaneg_openood.evaluation.sweep_result import SweepResult
from adaneg_openood.evaluation.tables import GROUP_ROWS
from adaneg_openood.io.files import atomic_path

if TYPE_CHECKING:
    import pandas as pd

_METRICS = ("FPR@95", "FPR@95 (ID positive)", "AUROC")
_LABELS = ("FPR@95, OOD positive (%)", "FPR@95, ID positive (%)", "AUROC (%)")
_STYLE = {"nearood": ("#0072B2", "o", "near"), "farood": ("#D55E00", "s", "far")}  # Okabe and Ito's


def plot_sweep(
    result: SweepResult,
    folder: str | os.PathLike[str],
    fixed: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write ``plot_AXIS.png`` for every axis that varies: means over seeds, bars of one deviation.

    An axis is drawn with all others held; the title says at what.

    Args:
        result: the sweep.
        folder: where the pictures go.
        fixed: axis -> the value it is held at while others are drawn; the first one otherwise.

    Returns:
        The files.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "adaneg_openood[plots]"') from error
    summary = result.summary()
    wanted = {} if fixed is None else dict(fixed)
    held = {axis: _held(summary, axis, wanted.get(axis)) for axis in result.axes}
    files = []
    for axis in result.axes:
        others = {key: value for key, value in held.items() if key != axis}
        part = summary
        for key, value in others.items():
            part = part[part[key].isna() if _missing(value) else part[key] == value]
        figure = Figure(figsize=(12, 3.9), layout="constrained")
        panels = figure.subplots(1, len(_METRICS))
        for panel, metric, label in zip(panels, _METRICS, _LABELS):
            _draw(panel, part, axis, metric)
            panel.set(xlabel=axis, ylabel=label)
            panel.grid(alpha=0.3)
        panels[-1].legend(frameon=False)
        n_seeds = result.records["seed"].nunique()
        at = ", ".join(f"{key} {_shown(value)}" for key, value in others.items())
        bars = f"mean and one standard deviation over {n_seeds} seeds" if n_seeds > 1 else "one seed"
        figure.suptitle(f"{axis}: {bars}" + (f"; {at}" if at else ""), fontsize=10)
        file = Path(folder) / f"plot_{axis}.png"
        with atomic_path(file) as temporary:
            figure.savefig(temporary, format="png", dpi=140)
        files.append(file)
    return files


def _draw(panel: Any, part: pd.DataFrame, axis: str, metric: str) -> None:
    for row in GROUP_ROWS.values():
        rows = part[part["dataset"] == row]
        if rows.empty:
            continue
        values = list(rows[axis])
        numeric = all(_is_number(value) for value in values)
        if numeric:
            rows = rows.sort_values(axis, kind="stable")
            values = list(rows[axis])
        places: Sequence[Any] = values if numeric else range(len(values))
        colour, marker, label = _STYLE[row]
        panel.errorbar(
            places,
            rows[metric],
            yerr=rows[f"{metric} std"],
            color=colour,
            marker=marker,
            capsize=3,
            label=label,
            # between words there is nothing to read off a line
            linestyle="-" if numeric or axis == "ratio" else "none",
        )
        if not numeric:
            panel.set_xticks(list(places), [_shown(value) for value in values])
            panel.margins(x=0.15)
        elif min(values) > 0 and max(values) / min(values) > 30:
            panel.set_xscale("log")


def _held(summary: pd.DataFrame, axis: str, wanted: Any) -> Any:
    values = list(summary[axis].unique())
    return wanted if wanted in values else values[0]


def _is_number(value: Any) -> bool:
    # numpy's bool is no Real, Python's is one
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _missing(value: Any) -> bool:
    import pandas as pd

    return bool(pd.isna(value))


def _shown(value: Any) -> str:
    if _missing(value):
        return "all"
    return f"{value:g}" if isinstance(value, float) else str(value)
