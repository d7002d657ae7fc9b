"""How sure a run's numbers are: intervals over its images, and tests against a reference method."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from adaneg_openood.evaluation.results import GROUP_ROWS
from adaneg_openood.evaluation.uncertainty import BOOTSTRAPPED, Bootstrap, observed_and_drawn
from adaneg_openood.report.record import RunRecord
from adaneg_openood.report.tables import GROUP_NAMES, METRICS

if TYPE_CHECKING:
    import pandas as pd

REFERENCE = "NegLabel"


def bootstrap_of(record: RunRecord, n_resamples: int) -> Bootstrap:
    """Resampled metrics of every method and OOD set, as ``evaluate(resamples=...)`` has them."""
    observed: dict[tuple[str, str], np.ndarray] = {}
    drawn: dict[tuple[str, str], np.ndarray] = {}
    for number, dataset in enumerate(record.sets):
        confs = {method: list(record.streams[method, dataset].conf) for method in record.methods}
        labels = record.labels(dataset)
        parts = observed_and_drawn(confs, labels, n_resamples, record.seeds[0], number)
        for kept, part in zip((observed, drawn), parts):
            kept.update({(method, dataset): values for method, values in part.items()})
    groups = {
        split: tuple(name for name, of in record.sets.items() if of == split) for split in GROUP_ROWS
    }
    return Bootstrap(observed, drawn, groups, n_resamples)


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
