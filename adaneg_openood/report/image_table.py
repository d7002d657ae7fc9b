"""Every image of a run as a table that people work with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from adaneg_openood.detectors.threshold import LEAST_SCORES, find_threshold

if TYPE_CHECKING:
    import pandas as pd

    from adaneg_openood.evaluation import StreamResult
    from adaneg_openood.report.record import RunRecord


def threshold_of(stream: StreamResult) -> float | None:
    """The confidence that keeps 95 % of a stream's ID images; None where these are too few."""
    if stream.n_id < LEAST_SCORES:
        return None
    return find_threshold(torch.from_numpy(stream.conf[stream.label >= 0])).value


def image_table(record: RunRecord) -> pd.DataFrame:
    """One row per OOD set's image, and one per ID image in each set's stream, of the first seed.

    Returns:
        Columns path (the image's name, or its number in its set), set, label (the class, or OOD),
        verdict (the class that the judging method's threshold lets it be, or OOD; empty where there is
        no threshold), seen as (the predicted class), one column of confidences per method, and nearest
        negatives (names, nearest first) where there are negative labels.
    """
    import pandas as pd

    run, parts = record.results, []
    text_names = np.array(
        [record.row_name(row) for row in range(run.about.data["text"]["rows"])], object
    )
    for dataset in run.splits:
        stream = record.first(record.judge, dataset)
        seen, threshold = text_names[stream.pred], threshold_of(stream)
        columns = {
            "path": [*record.image_names(dataset, stream.n_ood), *record.image_names("id", stream.n_id)],
            "set": np.where(stream.label < 0, dataset, f"id (with {dataset})"),
            "label": np.where(stream.label < 0, "OOD", text_names[stream.label]),
            "verdict": "" if threshold is None else np.where(stream.conf >= threshold, seen, "OOD"),
            "seen as": seen,
            **{method: record.first(method, dataset).conf for method in run.methods},
        }
        if record.nearest:
            rows = np.concatenate([record.nearest[dataset], record.nearest["id"]])
            columns["nearest negatives"] = ["; ".join(names) for names in text_names[rows]]
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)
