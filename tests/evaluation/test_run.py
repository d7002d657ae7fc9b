"""Running detectors, and the results that come out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from evaluation_fakes import N_ID, Drifting, StatelessCosine, make_data

from adaneg_openood.detectors import MCM
from adaneg_openood.evaluation import (
    FeatureSet,
    Protocol,
    Run,
    ood_metrics,
    replay,
    run_stream,
    stream_order,
)
from adaneg_openood.evaluation.metrics import METRICS
from adaneg_openood.evaluation.tables import RECORD_COLUMNS, TABLE_METRICS

DATA = make_data()


def run(data: FeatureSet = DATA, **settings: object) -> Run:
    detectors = {"drift": Drifting(data), "cosine": StatelessCosine(data)}
    return replay(data, detectors, Protocol(**{"batch_size": 8, **settings}), progress=False)


def test_records() -> None:
    records = run().records
    assert list(records.columns) == list(RECORD_COLUMNS)
    assert len(records) == 2 * 3 * 3
    assert run().methods == ["drift", "cosine"]
    row = records.iloc[1]
    assert list(row[["method", "split", "dataset", "seed"]]) == ["drift", "near", "ssb", 1]
    assert list(row[["n_id", "n_ood", "id_rows_filled", "n_id_rows"]]) == [20, 10, 1, N_ID]
    assert records[records["method"] == "cosine"]["n_id_rows"].isna().all()

    order = stream_order(10, 20, 1)
    features = torch.cat([DATA.near["ssb"], DATA.id_features])
    scores = run_stream(Drifting(DATA), features, order, 8)
    label = np.concatenate([np.full(10, -1), DATA.id_labels.numpy()])
    assert dict(row[list(METRICS)]) == ood_metrics(scores.conf, label, scores.pred)


def test_table_and_spread() -> None:
    results = run()
    table, spread = results.table("drift"), results.spread("drift")
    names = ["ssb", "ninco", "nearood", "textures", "farood"]
    assert list(table.index) == list(spread.index) == names
    assert list(table.columns) == [*TABLE_METRICS, "n_id", "n_ood"]
    assert list(table.columns)[:6] == [
        *("FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT", "ACC", "FPR@95 (ID positive)")
    ]
    assert list(spread.columns) == list(TABLE_METRICS)
    assert list(table["n_ood"]) == [10, 6, 16, 8, 8] and list(table["n_id"]) == [20] * 5

    auroc = results.records.query("method == 'drift'").pivot(
        index="seed", columns="dataset", values="AUROC"
    )
    assert table.loc["ssb", "AUROC"] == pytest.approx(auroc["ssb"].mean())
    group = auroc[["ssb", "ninco"]].mean(axis=1)
    assert table.loc["nearood", "AUROC"] == pytest.approx(group.mean())
    assert spread.loc["ssb", "AUROC"] == pytest.approx(auroc["ssb"].std(ddof=1)) != 0
    assert spread.loc["nearood", "AUROC"] == pytest.approx(group.std(ddof=1))
    assert (results.spread("cosine") == 0).all(axis=None)
    assert (run(seeds=(4,)).spread("drift") == 0).all(axis=None)
    with pytest.raises(KeyError, match="no method 'x'; there are 'drift', 'cosine'"):
        results.table("x")


def test_splits_without_sets_have_no_rows() -> None:
    far_only = run(make_data(near={}))
    assert list(far_only.table("drift").index) == ["textures", "farood"]
    assert not any(column.startswith("near") for column in far_only.summary().columns)
    assert list(run(make_data(far={})).table("drift").index) == ["ssb", "ninco", "nearood"]


def test_summary() -> None:
    results = run()
    summary = results.summary()
    assert list(summary.index) == ["drift", "cosine"]
    table = results.table("drift")
    assert summary.loc["drift", "near FPR@95"] == table.loc["nearood", "FPR@95"]
    assert summary.loc["drift", "far AUROC"] == table.loc["farood", "AUROC"]
    accuracy = table.loc[["ssb", "ninco", "textures"], "ACC"].mean()
    assert summary.loc["drift", "ACC"] == pytest.approx(accuracy)


def test_format_table() -> None:
    text = run().format_table("drift")
    assert "±" in text and "nearood" in text and "FPR@95 (ID positive)" in text
    assert "order mixed, batch size 8, seeds 0, 1, 2" in text
    assert "±" not in run(seeds=(0,)).format_table("drift")


def test_csv_and_json(tmp_path: Path) -> None:
    results = run()
    results.to_csv(tmp_path / "r.csv")
    results.to_json(tmp_path / "deep" / "r.json")
    read = pd.read_csv(tmp_path / "r.csv")
    assert list(read.columns) == list(RECORD_COLUMNS) and len(read) == 18
    assert np.allclose(read["AUROC"], results.records["AUROC"])
    content = json.loads((tmp_path / "deep" / "r.json").read_text(encoding="utf-8"))
    assert content["protocol"]["order"] == "mixed"
    assert content["protocol"]["seeds"] == [0, 1, 2] and content["protocol"]["batch_size"] == 8
    assert "OOD is the positive class" in content["conventions"]["FPR@95"]
    assert "ID is the positive class" in content["conventions"]["FPR@95 (ID positive)"]
    assert content["tables"]["drift"]["nearood"]["n_ood"] == 16
    assert content["spread"]["cosine"]["farood"]["AUROC"] == 0.0
    assert content["records"][-1]["id_rows_filled"] is None
    assert content["records"][0]["id_rows_filled"] == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["deep", "r.csv"]


def test_names_of_strangers_do_nothing_where_they_are_printed(tmp_path: Path) -> None:
    data = make_data(near={"=1+1": DATA.near["ssb"]}, far={"red\x1b[2J\nset": DATA.far["textures"]})
    found = replay(data, {"x\x1b]0;": StatelessCosine(data)}, Protocol((0,)), progress=False)
    printed = found.format_table("x\x1b]0;") + found.bootstrap(5).format() + found.format_warnings()
    assert "\x1b" not in printed and "\\x1b" in printed
    found.to_csv(tmp_path / "r.csv")
    assert list(pd.read_csv(tmp_path / "r.csv")["dataset"]) == ["'=1+1", "red\\x1b[2J\\x0aset"]


def test_ties_and_labels_in_another_order_are_told(demo: FeatureSet) -> None:
    def warned(data: FeatureSet, most: float = 1.0) -> list[str]:
        detector = MCM(data.text_features, data.n_id)
        whole = detector.score
        detector.score = lambda x: dataclasses.replace(whole(x), conf=whole(x).conf.clamp_max(most))
        return list(replay(data, {"m": detector}, Protocol((0,), 64), progress=False).warnings)

    assert warned(demo) == []
    turned = dataclasses.replace(demo, id_labels=(demo.id_labels + 1) % demo.n_id)
    assert [line.partition(" (")[0] for line in warned(turned)] == ["m, accuracy below chance"]
    assert [line.partition(" (")[0] for line in warned(demo, most=0.07)] == ["m, ties"]


def test_a_number_that_says_less_than_it_seems_says_so() -> None:
    class Blind(StatelessCosine):
        def score(self, features: torch.Tensor) -> SimpleNamespace:
            scores = super().score(features)
            scores.conf = torch.ones(len(features))
            return scores

    detectors = {"drift": Drifting(DATA), "blind": Blind(DATA), "cosine": StatelessCosine(DATA)}
    one = replay(DATA, detectors, Protocol(batch_size=28), progress=False)
    few, *others = one.warnings
    assert few.startswith(
        "few images of ID or of OOD (ssb: 10, ninco: 6, textures: 8): of fewer than 20"
    )
    by_method = {line.partition(",")[0]: line for line in others}
    assert set(by_method) == {"drift", "blind"} and len(others) == 2
    # sets of 30, 26 and 28 images: the last two are one batch each, under three orders
    assert "one batch (ninco, textures; 6 streams)" in by_method["drift"]
    assert "all scores equal (ssb, ninco, textures; 3 streams)" in by_method["blind"]
    assert one.to_dict()["warnings"] == list(one.warnings)
    assert replay(DATA, {"drift": Drifting(DATA)}, Protocol((0,), 256), progress=False).warnings == (
        few,
    )
