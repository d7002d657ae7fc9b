"""Published figures beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from adaneg_openood.reproduce.published import load_published, set_name
from adaneg_openood.reproduce.trials import FPR_ID, FPR_OOD, Trial

if TYPE_CHECKING:
    import pandas as pd

# ours -> the column of published.csv; the unstated convention has no counterpart
PAIRS = {FPR_OOD: "fpr95_ood_positive", FPR_ID: "fpr95_id_positive", "AUROC": "auroc", "ACC": "id_acc"}
SHORT = {FPR_OOD: "FPR95 OOD+", FPR_ID: "FPR95 ID+", "AUROC": "AUROC", "ACC": "ACC"}
COLUMNS = (
    *("features", "method", "setting", "dataset"),
    *(f"{short} {which}" for short in SHORT.values() for which in ("ours", "published", "difference")),
    *("FPR95 unstated published", "n_id", "n_ood", "source", "difference_taken"),
)


def beside_published(
    table: pd.DataFrame,
    trials: dict[str, Sequence[Trial]],
    protocols: dict[str, str],
    comparable: dict[str, bool],
    backbone: str,
) -> pd.DataFrame:
    """One row a published figure with a counterpart in ``table``; columns :data:`COLUMNS`.

    Args:
        table: of :func:`~adaneg_openood.reproduce.result.summarised`.
        trials: features' label -> its rows.
        protocols: features' label -> protocol of published.csv.
        comparable: features' label -> whether data and settings are those of the protocol. Where not,
            the figures are listed for orientation, without numbers of ours and without a difference.
        backbone: of the features; figures of other backbones are left out. A features' label that is
            itself a published backbone goes first.
    """
    import pandas as pd

    published = load_published()
    rows: list[dict[str, Any]] = []
    for label, of_label in trials.items():
        name = label if label in set(published["backbone"]) else backbone
        figures = published[
            (published["protocol"] == protocols[label]) & (published["backbone"] == name)
        ]
        for trial in of_label:
            for method, source in trial.published:
                chosen = figures[
                    (figures["method"] == method)
                    & figures["source"].str.contains(source, regex=False)
                    & (figures["setting"] == trial.published_setting)
                ]
                for _, figure in chosen.iterrows():
                    ours = (
                        _counterpart(table, label, trial, figure["dataset"])
                        if comparable[label]
                        else None
                    )
                    rows.append(_row(label, trial, figure, ours))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _counterpart(table: pd.DataFrame, label: str, trial: Trial, dataset: str) -> pd.Series | None:
    """Our row of a dataset or group."""
    ours = (label, trial.method, trial.setting)
    for place, key in enumerate(table.index):
        if tuple(key[:3]) == ours and set_name(key[3]) == set_name(dataset):
            return table.iloc[place]
    return None


def _row(label: str, trial: Trial, figure: pd.Series, ours: pd.Series | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "features": label,
        "method": trial.method,
        "setting": trial.setting,
        "dataset": figure["dataset"],
        "FPR95 unstated published": figure["fpr95_unstated"],
        "n_id": None if ours is None else int(ours["n_id"]),
        "n_ood": None if ours is None else int(ours["n_ood"]),
        "source": f"{figure['method']}: {figure['source']}",
        "difference_taken": ours is not None,
    }
    for metric, column in PAIRS.items():
        mine = float("nan") if ours is None else float(ours[metric])
        theirs = float(figure[column])
        short = SHORT[metric]
        row[f"{short} ours"], row[f"{short} published"] = mine, theirs
        row[f"{short} difference"] = mine - theirs
    return row
