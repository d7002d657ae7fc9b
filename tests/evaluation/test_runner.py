"""Running detectors, and the results that come out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from evaluation_fakes import N_ID, Cosine, Drifting, StatelessCosine, make_data

from adaneg_openood.evaluation import (
    FeatureSet,
    Results,
    evaluate,
    ood_metrics,
    run_stream,
    stream_order,
)
from adaneg_openood.evaluation.metrics import METRICS
from adaneg_openood.evaluation.results import RECORD_COLUMNS, TABLE_METRICS

DATA = make_data()


def run(data: FeatureSet = DATA, **settings: object) -> Results:
    detectors = {"drift": Drifting(data), "cosine": StatelessCosine(data)}
    return evaluate(detectors, data, **{"progress": False, "batch_size": 8, **settings})


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


def test_stateless_detectors_run_once_and_others_for_every_seed() -> None:
    detectors = {"a": StatelessCosine(DATA), "b": Cosine(DATA)}
    results = evaluate(detectors, DATA, seeds=(0, 5), progress=False)
    assert detectors["a"].resets == 3 and detectors["b"].resets == 6
    assert list(results.records["seed"]) == [0, 5] * 6
    evaluate(detectors, DATA, seeds=(0, 5), order="id_first", progress=False)
    assert detectors["b"].resets == 9


def test_a_set_does_not_depend_on_the_sets_before_it() -> None:
    turned = make_data(near=dict(reversed(DATA.near.items())), far={})
    alone = make_data(near={"ninco": DATA.near["ninco"]}, far={})
    rows = [
        run(data).records.query("method == 'drift' and dataset == 'ninco'").reset_index(drop=True)
        for data in (DATA, turned, alone)
    ]
    pd.testing.assert_frame_equal(rows[0], rows[1])
    pd.testing.assert_frame_equal(rows[0], rows[2])


def test_global_generators_are_untouched() -> None:
    state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    first = run()
    assert np.array_equal(state, np.random.get_state()[1])
    assert torch.equal(torch_state, torch.get_rng_state())
    np.random.seed(9)
    pd.testing.assert_frame_equal(first.records, run().records)


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    run(progress=True, device="cpu")
    written = capsys.readouterr()
    assert written.out == "" and "textures" in written.err
    run()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": ()}, "seeds is empty"),
        ({"seeds": (1, 1)}, "seeds must be distinct"),
        ({"seeds": (-1,)}, "distinct and >= 0"),
        ({"seeds": (0.5,)}, "seeds must be integers"),
        ({"batch_size": 0}, "batch_size must be >= 1"),
        ({"order": "other"}, "order must be one of"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(**settings)


def test_bad_detectors() -> None:
    with pytest.raises(ValueError, match="detectors is empty"):
        evaluate({}, DATA)
    other = Cosine(DATA)
    other.n_id = 2
    with pytest.raises(ValueError, match="detector 'x' has n_id 2, the features have 3"):
        evaluate({"x": other}, DATA)


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


def test_results_need_records() -> None:
    with pytest.raises(ValueError, match="lack the column"):
        Results(pd.DataFrame({"method": []}), "mixed", (0,), 1)
    with pytest.raises(ValueError, match="records are empty"):
        Results(pd.DataFrame(columns=list(RECORD_COLUMNS)), "mixed", (0,), 1)
