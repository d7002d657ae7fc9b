"""Every image of a run as a table that people work with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from adaneg_openood.detectors.threshold import find_threshold

if TYPE_CHECKING:
    import pandas as pd

    from adaneg_openood.report.record import RunRecord

_LEAST_IMAGES = 20  # below which a threshold says little


def image_table(record: RunRecord) -> pd.DataFrame:
    """One row per OOD set's image, and one per ID image in each set's stream, of the first seed.

    Returns:
        Columns image (its name, or its number in its set), set, label (the class, or OOD), verdict (the
        class that the first method's threshold lets it be, or OOD), seen as (the predicted class), and
        one column of confidences per method. The threshold keeps 95 % of the stream's ID images; with
        fewer than 20 of them there is no verdict.
    """
    import pandas as pd

    parts = []
    judge = record.example_method or next(iter((*record.bank_methods[:1], *record.methods)))
    for dataset in record.sets:
        result = record.stream_of(judge, dataset)
        is_ood = result.label == -1
        names = [
            *record.image_names(dataset, result.n_ood),
            *record.image_names("id", result.n_id),
        ]
        seen = [record.row_name(pred) for pred in result.pred.tolist()]
        verdict = np.full(len(seen), "", dtype=object)
        if result.n_id >= _LEAST_IMAGES:
            value = find_threshold(result.conf[~is_ood]).value
            verdict = np.where(result.conf >= value, np.array(seen, dtype=object), "OOD")
        parts.append(
            pd.DataFrame(
                {
                    "image": names,
                    "set": np.where(is_ood, dataset, f"id (with {dataset})"),
                    "label": ["OOD" if label < 0 else record.row_name(label) for label in result.label],
                    "verdict": verdict,
                    "seen as": seen,
                    **{method: record.conf(method, dataset) for method in record.methods},
                }
            )
        )
    return pd.concat(parts, ignore_index=True)
