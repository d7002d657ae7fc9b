"""How sure a run's numbers are: intervals over its images, and tests against a reference method."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaneg_openood.evaluation.intervals import BOOTSTRAPPED, Bootstrap
from adaneg_openood.report.tables import GROUP_NAMES, METRICS

if TYPE_CHECKING:
    import pandas as pd

REFERENCE = "NegLabel"


def certainty_table(bootstrap: Bootstrap) -> pd.DataFrame:
    """One row a metric, OOD set or group mean, and method.

    Returns:
        Columns metric, column, method, value, low, high (percent); difference, difference_low,
        difference_high (points, to the reference method: NegLabel, or the first) and p_value, NaN for
        the reference itself.
    """
    import pandas as pd

    reference = REFERENCE if REFERENCE in bootstrap.methods else bootstrap.methods[0]
    rows = []
    for metric in BOOTSTRAPPED:
        for row in bootstrap.rows:
            for method in bootstrap.methods:
                interval = bootstrap.intervals(method, row)[metric]
                found = {
                    "metric": METRICS[metric][0],
                    "column": GROUP_NAMES.get(row, row),
                    "method": method,
                    **interval._asdict(),
                    "reference": reference,
                }
                if method != reference:
                    difference = bootstrap.differences(method, reference, row)[metric]._asdict()
                    found["p_value"] = difference.pop("p_value")
                    found["difference"] = difference.pop("value")
                    found.update({f"difference_{end}": value for end, value in difference.items()})
                rows.append(found)
    columns = ["metric", "column", "method", "value", "low", "high", "reference"]
    columns += ["difference", "difference_low", "difference_high", "p_value"]
    return pd.DataFrame(rows, columns=columns)
