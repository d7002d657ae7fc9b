"""Tables: means and deviations over seeds, of every set and of groups of sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adaneg_openood.evaluation.metrics import METRICS

if TYPE_CHECKING:
    import pandas as pd

GROUP_ROWS = {"near": "nearood", "far": "farood"}
RECORD_COLUMNS = (
    *("method", "split", "dataset", "seed", "n_id", "n_ood"),
    *METRICS,
    *("id_rows_filled", "n_id_rows"),
)
# OpenOOD's columns first, as it prints them
TABLE_METRICS = ("FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT", "ACC", "FPR@95 (ID positive)")


def over_seeds(
    records: pd.DataFrame, groups: Mapping[str, Sequence[str]], keys: Sequence[str] = ()
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Means and deviations (ddof = 1) over seeds, of every set and of the means of groups of sets.

    A group has the deviation of its mean per seed, not the mean of deviations.

    Args:
        records: one row per ``keys``, seed and dataset, with metrics, n_id and n_ood.
        groups: name of the group -> its sets; the name becomes the rows' ``dataset``.
        keys: columns that tell apart what is not to be averaged.

    Returns:
        Index ``keys`` and dataset, groups last. The first one has n_id and n_ood (a group's sum) too.
    """
    import pandas as pd

    sizes = {"n_id": "first", "n_ood": "sum"}
    wanted = {**dict.fromkeys(METRICS, "mean"), **sizes}
    parts = [records[[*keys, "seed", "dataset", *wanted]]]
    for name, members in groups.items():
        inside = records[records["dataset"].isin(list(members))]
        means = inside.groupby([*keys, "seed"], sort=False, dropna=False).agg(wanted)
        parts.append(means.reset_index().assign(dataset=name))
    rows = pd.concat(parts, ignore_index=True)
    grouped = rows.groupby([*keys, "dataset"], sort=False, dropna=False)
    return grouped.agg({**wanted, "n_ood": "first"}), grouped[list(METRICS)].std(ddof=1)


def with_spread(means: pd.DataFrame, spreads: pd.DataFrame) -> pd.DataFrame:
    """The means as text, "mean ± spread" in the columns of ``spreads`` where there is one."""
    import pandas as pd

    found = means.astype(object)
    for name in spreads:
        found[name] = [
            f"{mean:.2f}" if pd.isna(spread) else f"{mean:.2f} ± {spread:.2f}"
            for mean, spread in zip(means[name], spreads[name])
        ]
    return found


def plain_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """One dict of JSON values per row, missing values as None."""
    objects = frame.astype(object)
    return list(objects.where(frame.notna(), None).to_dict("records"))


def by_row(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """{row: {column: JSON value}}, missing values as None."""
    return dict(zip(map(str, frame.index), plain_rows(frame)))
