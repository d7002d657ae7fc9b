"""How sure a run's numbers are: intervals over its images, and tests against a reference method."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaneg_openood.evaluation.intervals import BOOTSTRAPPED, Bootstrap
from adaneg_openood.report.tables import GROUP_NAMES, METRICS, Table

if TYPE_CHECKING:
    import pandas as pd

REFERENCE = "NegLabel"


def reference_of(bootstrap: Bootstrap) -> str:
    """The method that others are compared with: NegLabel, or the first."""
    return REFERENCE if REFERENCE in bootstrap.methods else bootstrap.methods[0]


def surely_best(table: Table, column: str, bootstrap: Bootstrap | None) -> str | None:
    """The best method of a column, if a paired test tells it from the second best, else None.

    Args:
        table: of one metric.
        column: an OOD set, or a group's mean.
        bootstrap: None tells nothing.
    """
    if bootstrap is None or table.key not in BOOTSTRAPPED or len(table.mean) < 2:
        return None
    ordered = table.mean[column].sort_values(ascending=not table.higher_is_better)
    best, second = map(str, ordered.index[:2])
    row = next((group for group, name in GROUP_NAMES.items() if name == column), column)
    return None if bootstrap.differences(best, second, row)[table.key].may_be_chance else best


def certainty_table(bootstrap: Bootstrap) -> pd.DataFrame:
    """One row per metric, OOD set or group mean, and method.

    Returns:
        Columns metric, column, method, value, low, high (percent); reference (NegLabel, or the first
        method); difference, difference_low, difference_high (points, to the reference) and p_value, NaN
        for the reference itself.
    """
    import pandas as pd

    reference, rows = reference_of(bootstrap), []
    for metric in BOOTSTRAPPED:
        for row in bootstrap.rows:
            for method in bootstrap.methods:
                value = bootstrap.intervals(method, row)[metric]
                found = [METRICS[metric][0], GROUP_NAMES.get(row, row), method, *value[:3], reference]
                if method != reference:
                    test = bootstrap.differences(method, reference, row)[metric]
                    found += [test.value, test.low, test.high, test.p_value]
                rows.append(found)
    columns = ["metric", "column", "method", "value", "low", "high", "reference"]
    columns += ["difference", "difference_low", "difference_high", "p_value"]
    return pd.DataFrame([row + [None] * (len(columns) - len(row)) for row in rows], columns=columns)
