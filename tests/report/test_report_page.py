"""The report: record, tables, curves, pictures and the page, on the demo world."""

from __future__ import annotations

import builtins
import copy
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from page_text import page_text
from PIL import Image
from typer.testing import CliRunner

from adaneg_openood.benchmark.definition import read_benchmark
from adaneg_openood.benchmark.methods import standard_detectors
from adaneg_openood.cli import app
from adaneg_openood.demo.world import draw
from adaneg_openood.detectors import AdaNeg, AdaNegConfig
from adaneg_openood.evaluation import (
    FeatureSet,
    Protocol,
    ood_metrics,
    replay,
    save_features,
)
from adaneg_openood.report import RunRecord, collect, load_record, save_record, write_report
from adaneg_openood.report.certainty import certainty_table, surely_best
from adaneg_openood.report.curves import fpr_over_stream, roc, threshold_fpr95
from adaneg_openood.report.figures import run_pictures, score_histograms
from adaneg_openood.report.sources import benchmark_record
from adaneg_openood.report.tables import filled_negatives, ranks, run_tables, to_latex, to_markdown

# the record


def test_a_record_has_the_metrics_of_evaluate(small: FeatureSet, record: RunRecord) -> None:
    expected = replay(
        small, standard_detectors(small), Protocol(seeds=(0, 1), batch_size=32), progress=False
    )
    ours, theirs = record.results.records, expected.records
    pd.testing.assert_frame_equal(ours, theirs[list(ours.columns)])


def test_a_record_survives_saving(record: RunRecord, tmp_path: Path) -> None:
    save_record(record, tmp_path / "run")
    again = load_record(tmp_path / "run")
    assert again.results.methods == record.results.methods and again.judge == record.judge
    assert again.examples == record.examples and dict(again.names) == dict(record.names)
    for part in ("nearest", "negative_scores"):
        ours, theirs = getattr(again, part), getattr(record, part)
        assert list(ours) == list(theirs) and len(ours) == 3
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    pd.testing.assert_frame_equal(again.results.records, record.results.records)


def test_a_damaged_record_is_refused(record: RunRecord, tmp_path: Path) -> None:
    path = save_record(record, tmp_path)
    text = path.read_text("utf-8")
    path.write_text(text.replace('"place": "id low"', '"place": "ood low"', 1), "utf-8")
    with pytest.raises(ValueError, match="damaged"):
        load_record(tmp_path)
    path.write_text("{", "utf-8")
    with pytest.raises(ValueError, match="not JSON"):
        load_record(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"report\.json"):
        load_record(tmp_path / "nothing")


def test_which_cached_images_are_ood_is_known(small: FeatureSet) -> None:
    """Against a bank that is filled by hand, with features that are not unit length."""
    scaled = replace(small, far={"textures": small.far["textures"] * 3})
    detector = AdaNeg(scaled.text_features, scaled.n_id, scaled.logit_scale, AdaNegConfig(gap=0.0))
    record = collect(scaled, {"AdaNeg": detector}, seeds=(0,), batch_size=16)
    stream = record.first("AdaNeg", "textures")
    assert stream.counts is not None and stream.ood_counts is not None
    unit = torch.nn.functional.normalize(torch.cat([scaled.far["textures"], scaled.id_features]), dim=1)
    bank = detector.bank
    nearest = (bank.features[: bank.n_cached] @ unit.T).argmax(dim=1)
    expected = torch.bincount(bank.rows[: bank.n_cached][nearest < 50], minlength=len(stream.counts))
    np.testing.assert_array_equal(stream.ood_counts, expected.numpy())
    assert 0 < stream.ood_counts.sum() < stream.counts.sum()


def test_collecting_touches_no_global_random_state(small: FeatureSet) -> None:
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    collect(small, seeds=(0,))
    assert torch.equal(state[0], torch.get_rng_state())
    np.testing.assert_array_equal(state[1], np.random.get_state()[1])


# curves


def test_the_last_point_of_a_course_is_fpr95(record: RunRecord) -> None:
    run = record.results
    for method in run.methods:
        for dataset in run.splits:
            stream = record.first(method, dataset)
            conf, is_ood = stream.conf, stream.label == -1
            order = run.stream_order(dataset, run.seeds[0])
            seen, fpr95 = list(fpr_over_stream(conf, is_ood, order, run.batch_size).items())[-1]
            assert seen == len(conf) and fpr95 == threshold_fpr95(conf, is_ood)[1]
            metrics = ood_metrics(conf, stream.label, np.zeros(len(conf), int))
            assert fpr95 == metrics["FPR@95"]
            fpr, tpr = roc(conf, is_ood)
            area = np.sum(np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2)
            assert area / 100 == pytest.approx(metrics["AUROC"], abs=0.2)


def test_a_stream_that_begins_with_one_kind_is_skipped_until_both_are_there() -> None:
    conf = np.array([0.9, 0.8, 0.1, 0.2])
    is_ood = np.array([False, False, True, True])
    assert fpr_over_stream(conf, is_ood, np.arange(4), batch_size=1) == {3: 0.0, 4: 0.0}


# tables


def test_best_and_second_best_are_marked_by_what_is_printed() -> None:
    values = pd.DataFrame({"a": [1.001, 1.002, 3.0, 2.0], "b": [5.0, 5.0, 5.0, 5.0]}, index=list("wxyz"))
    assert ranks(values, higher_is_better=False)["a"].tolist() == [1, 1, 0, 2]
    assert ranks(values, higher_is_better=True)["a"].tolist() == [0, 0, 1, 2]
    assert ranks(values, higher_is_better=True)["b"].tolist() == [0, 0, 0, 0]


def test_tables_keep_the_conventions_apart_and_mark_in_every_format(record: RunRecord) -> None:
    tables = {table.metric: table for table in run_tables(record.results)}
    assert list(tables)[:2] == ["FPR95 (OOD positive)", "FPR95 (ID positive)"]
    table = tables["FPR95 (OOD positive)"]
    assert list(table.mean.columns) == ["tools", "near (mean)", "textures", "far (mean)"]
    expected = record.results.table("NegLabel").loc["textures", "FPR@95"]
    assert table.mean.loc["NegLabel", "textures"] == expected
    best = table.mean["far (mean)"].idxmin()
    markdown, latex = to_markdown([table]), to_latex([table])
    printed = table.text.loc[best, "far (mean)"]
    assert f"**{printed}**" in markdown
    assert rf"\textbf{{{printed}}}".replace("±", r"$\pm$") in latex
    assert latex.count(r"\\") == 1 + len(table.mean) and r"FPR95 (OOD positive), \%" in latex


def test_filled_negatives_have_names_and_counts(record: RunRecord, small: FeatureSet) -> None:
    frame = filled_negatives(record, "AdaNeg (task)", "textures")
    assert len(frame) and small.names is not None
    assert [small.names[row] for row in frame["row"]] == list(frame["name"])
    assert (frame["of_ood"] <= frame["images"]).all() and frame["images"].is_monotonic_decreasing
    assert filled_negatives(record, "MCM", "textures").empty


# the page


class _Page(HTMLParser):
    """Collects addresses, ids and the references between them; complains about open tags."""

    VOID = frozenset(("meta", "img", "br", "path", "use", "rect"))

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src", "srcset", "action", "data", "xlink:href") and value:
                self.addresses.append(value)
            if name == "id" and value:
                self.ids.append(value)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_points_nowhere_outside(page: Path) -> None:
    text = page.read_text("utf-8")
    parsed = _Page()
    parsed.feed(text)
    assert not parsed.open
    assert len(parsed.ids) == len(set(parsed.ids)), "an id twice"
    for address in parsed.addresses:
        assert address.startswith(("#", "data:image/jpeg;base64,")), address[:60]
        if address.startswith("#"):
            assert address[1:] in parsed.ids, address
    for reference in re.findall(r"url\(([^)]*)\)", text):
        assert reference.startswith("#") and reference[1:] in parsed.ids
    assert "://" not in text.replace("&amp;", "&") and "@import" not in text
    assert text.count("<script>") == 1 and "fetch(" not in text and "XMLHttp" not in text


def test_the_page_holds_the_numbers_the_names_and_the_provenance(page: Path, record: RunRecord) -> None:
    text = page.read_text("utf-8")
    for table in run_tables(record.results):
        for method in table.mean.index:
            for column in table.mean.columns:
                assert f">{table.text.loc[method, column]}</td>" in text.replace("\u00a0", " ")
    assert "A &lt;run&gt; &amp; more" in text and "<run>" not in text
    assert 'class="best' in text and 'class="second"' in text
    assert text.count('scope="col"') > 20 and text.count('scope="row"') > 20
    assert "prefers-color-scheme: dark" in text and "currentColor" in text
    assert text.count("<svg") == 3 * len(record.results.splits)
    assert text.count("data:image/jpeg;base64,") == len(record.examples) > 2 * 4 * 8
    for name in filled_negatives(record, "AdaNeg (task)", "textures")["name"].head(3):
        assert f">{name}</th>" in text
    for said in ("OOD images taken most surely for ID", "memory_length = 10", "numpy"):
        assert said in text
    assert record.results.about.data["far/textures"]["sha256"] in text


def test_intervals_and_tests_equal_those_of_evaluate(record: RunRecord) -> None:
    expected = record.results.bootstrap(20)
    frame = certainty_table(expected).set_index(["metric", "column", "method"])
    row = frame.loc[("AUROC", "far (mean)", "AdaNeg (task)")]
    interval = expected.intervals("AdaNeg (task)", "farood")["AUROC"]
    assert tuple(row[["value", "low", "high"]]) == pytest.approx(tuple(interval))
    test = expected.differences("AdaNeg (task)", "NegLabel", "farood")["AUROC"]
    assert (row["difference"], row["p_value"]) == pytest.approx((test.value, test.p_value))
    text = page_text(record, resamples=20)
    assert f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]" in text
    table = {name: record.results.table(name).loc["farood", "AUROC"] for name in record.results.methods}
    best = max(table, key=lambda name: table[name])
    interval = expected.intervals(best, "farood")["AUROC"]
    test = expected.differences(best, "NegLabel", "farood")["AUROC"]
    said = f"Of MCM, NegLabel, AdaNeg (task) and AdaNeg (sample), {best} has the highest AUROC"
    said += f" on the far OOD set (textures), {interval.value:.2f} %"
    said += f" (95 % interval {interval.low:.2f} to {interval.high:.2f}); its difference to NegLabel is"
    said += f" {test.value:+.2f} points (95 % interval {test.low:+.2f} to {test.high:+.2f})"
    assert said in text


def test_the_summary_names_every_method_that_is_highest(small: FeatureSet) -> None:
    found = standard_detectors(small)
    record = collect(small, {"A": found["MCM"], "B": copy.deepcopy(found["MCM"])}, seeds=(0,))
    assert "Of A and B, A and B have the highest AUROC on the near OOD set (tools), " in page_text(
        record
    )


def test_only_a_paired_test_shades(small: FeatureSet) -> None:
    chosen = {name: standard_detectors(small)[name] for name in ("MCM", "NegLabel")}
    record = collect(small, chosen, seeds=(0,))
    bootstrap = record.results.bootstrap(60)
    table = next(table for table in run_tables(record.results) if table.metric == "AUROC")
    for column, row in (("far (mean)", "farood"), ("tools", "tools")):
        ordered = table.mean[column].sort_values(ascending=False)
        p = bootstrap.differences(str(ordered.index[0]), str(ordered.index[1]), row)["AUROC"].p_value
        assert surely_best(table, column, bootstrap) == (ordered.index[0] if p < 0.05 else None)
    assert surely_best(table, "tools", None) is None
    accuracy = next(table for table in run_tables(record.results) if table.metric == "ID accuracy")
    assert surely_best(accuracy, "tools", bootstrap) is None
    sure = [
        surely_best(table, column, bootstrap) is not None
        for table in run_tables(record.results)
        for column in table.mean.columns
    ]
    text = page_text(record, resamples=60)
    assert text.count('class="best sure"') == sum(sure) > 0 and not all(sure)
    assert " sure" not in page_text(record).partition("</style>")[2]


def test_the_threshold_and_what_it_lets_through(record: RunRecord) -> None:
    text, names = page_text(record), record.results.about.names
    assert names is not None
    for dataset in record.results.splits:
        stream = record.first("NegLabel", dataset)
        cut = float(np.sort(stream.conf[50:])[5])  # 5 of 100 ID images lie below
        passed = stream.pred[:50][stream.conf[:50] >= cut].tolist()
        most = max(passed.count(label) for label in passed)
        row = re.search(
            f"NegLabel</th><td>{cut:.4f}</td><td>95.0 %</td><td>{len(passed)} "
            rf'\({2 * len(passed):.1f} %\)</td><td class="long">([^<]*)<',
            text,
        )
        assert row is not None
        first, n = re.match(r"(.*?) \((\d+)\)", row.group(1)).groups()  # type: ignore[union-attr]
        assert int(n) == most == passed.count(names.index(first))


def test_the_classes_most_confused(record: RunRecord) -> None:
    stream = record.first(record.judge, "tools")
    pairs = list(zip(stream.label[50:].tolist(), stream.pred[50:].tolist()))
    wrong = {pair: pairs.count(pair) for pair in pairs if pair[0] != pair[1]}
    names = record.results.about.names
    assert names is not None
    text = page_text(record).partition('id="confused"')[2]
    label, pred, n, of = re.search(
        r'"text">([^<]*)</th><td class="text">([^<]*)</td><td>(\d+)</td><td>(\d+)</td>', text
    ).groups()  # type: ignore[union-attr]
    pair = names.index(label), names.index(pred)
    assert wrong[pair] == int(n) == max(wrong.values())
    assert int(of) == (stream.label == pair[0]).sum()


def test_negative_labels_are_a_third_histogram(record: RunRecord) -> None:
    figure = score_histograms(record, "textures")
    drawn = {}
    for panel, method in zip(figure.axes, record.results.methods):
        handles, labels = panel.get_legend_handles_labels()
        drawn[method] = dict(zip(labels, handles))
    assert "negative labels" not in drawn["MCM"] and len(drawn["MCM"]) == 2
    for method in ("NegLabel", "AdaNeg (task)", "AdaNeg (sample)"):
        stairs = drawn[method]["negative labels"].get_data()
        expected = np.histogram(record.negative_scores[method], stairs.edges)[0]
        # 60 labels: bins are four times as wide as those of images, and drawn a fourth as high
        np.testing.assert_allclose(4 * stairs.values, 100 * expected / 60)
        assert len(drawn[method]["ID images"].get_data().values) == 4 * len(stairs.values)


def test_warnings_stand_above_the_tables(small: FeatureSet) -> None:
    """One batch per stream: a spread over orders that says nothing."""
    record = collect(small, seeds=(0, 1), batch_size=256)
    assert any("one batch" in warning for warning in record.results.warnings)
    text = page_text(record)
    assert 0 < text.index("are one batch of at most 256") < text.index('id="tables"')


def test_every_image_is_in_a_table_with_its_verdict(record: RunRecord, page: Path) -> None:
    frame = pd.read_csv(page.with_suffix("") / "images.csv")
    assert len(frame) == 2 * 150
    method = record.judge
    part = frame[frame["set"].isin(["tools", "id (with tools)"])]
    np.testing.assert_allclose(part[method], record.first(method, "tools").conf, rtol=1e-6)
    ids = part[part["label"] != "OOD"]
    cut = np.sort(ids[method])[5]  # of 100 ID images 95 are kept
    assert ((part[method] >= cut) == (part["verdict"] != "OOD")).all()
    assert (part["verdict"] == part["seen as"])[part["verdict"] != "OOD"].all()
    assert part["path"].iloc[0] == "000.png" and "images.csv" in page.read_text("utf-8")


def test_every_table_and_picture_is_a_file_too(page: Path, record: RunRecord) -> None:
    folder = page.with_suffix("")
    pictures = sorted(folder.glob("*.png"))
    assert len(pictures) == 3 * len(record.results.splits)
    for path in pictures:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            assert image.width > 1000
            pixels = np.asarray(image.convert("L"))
            assert pixels[0, 0] == 255 and (pixels < 128).mean() > 0.005, f"{path.name} is blank"
    long = pd.read_csv(folder / "tables.csv")
    assert set(long["metric"]) >= {"FPR95 (OOD positive)", "FPR95 (ID positive)", "AUROC"}
    assert len(pd.read_csv(folder / "runs.csv")) == len(record.results.methods) * 2 * 2
    negatives = pd.read_csv(folder / "negatives.csv")
    # the bank does not depend on the proxies
    assert set(negatives["methods"]) == {"AdaNeg (task), AdaNeg (sample)"}
    assert (folder / "tables.md").is_file() and (folder / "tables.tex").is_file()


def test_the_same_record_gives_the_same_page(record: RunRecord, page: Path) -> None:
    assert page_text(record, 200, run_pictures(record), "A <run> & more") == page.read_text("utf-8")


def test_without_matplotlib_the_command_is_named(
    record: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def absent(name: str, *args: object, **kwargs: object) -> object:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match=r"pip install 'adaneg_openood\[plots\]'"):
        write_report(record, tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_a_page_must_be_html(record: RunRecord, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.html"):
        write_report(record, tmp_path / "report.pdf")


def test_a_run_without_bank_images_or_names(small: FeatureSet, tmp_path: Path) -> None:
    nameless = replace(small, names=None, near={}, origins={})
    plain = {name: d for name, d in standard_detectors(nameless).items() if "AdaNeg" not in name}
    record = collect(nameless, plain, seeds=(3,), order="id_first")
    write_report(record, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text("utf-8")
    assert text.count("<svg") == 2 and "ID images first" in text and "near-OOD" not in text


# the command line


def test_the_command_reports_features_and_kept_runs(small: FeatureSet, tmp_path: Path) -> None:
    save_features(tmp_path / "bench.npz", replace(small, near={}))
    for index in range(50):
        folder = tmp_path / "pictures"
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (9, 9), (index, 80, 0)).save(folder / f"{index:02d}.png")
    runner = CliRunner()
    out, kept = tmp_path / "out.html", tmp_path / "run"
    options = ["--out", str(out), "--seeds", "1", "--json", str(tmp_path / "r.json")]
    images = ["--images", f"textures={tmp_path / 'pictures'}", "--save", str(kept)]
    done = runner.invoke(app, ["report", str(tmp_path / "bench.npz"), *options, *images])
    assert done.exit_code == 0, done.output
    text = out.read_text("utf-8")
    assert "bench.npz" in text and text.count("data:image/jpeg") >= 16
    about = json.loads((kept / "report.json").read_text("utf-8"))
    assert len(about["provenance"]["files"]["bench.npz"]) == 64
    assert json.loads((tmp_path / "r.json").read_text("utf-8"))["protocol"]["batch_size"] == 256

    again = runner.invoke(
        app, ["report", str(kept), "--out", str(tmp_path / "again.html"), "--title", "T"]
    )
    assert again.exit_code == 0, again.output
    assert "T: out-of-distribution detection" in (tmp_path / "again.html").read_text("utf-8")
    more = ["--seeds", "5", "--example-method", "MCM"]
    refused = runner.invoke(app, ["report", str(kept), "--out", str(out), *more])
    assert refused.exit_code == 2
    assert "--example-method, --seeds would have to make another one" in refused.output
    scores = tmp_path / "scores"
    load_record(kept).results.save(scores)
    refused = runner.invoke(app, ["report", str(scores), "--out", str(out)])
    assert refused.exit_code == 2 and "scores that eval --save keeps" in refused.output
    wrong = runner.invoke(app, ["report", str(tmp_path / "nope"), "--out", str(out)])
    assert wrong.exit_code == 2 and "nope" in wrong.output


def test_the_demo_world_brings_its_images() -> None:
    record = benchmark_record(read_benchmark("demo").changed(seeds=(0,)))
    assert record.judge == "AdaNeg (task)"
    assert {example.dataset for example in record.examples} == set(record.results.splits)
    with Image.open(io.BytesIO(record.examples[0].picture)) as image:
        assert image.size == (64, 64)


DEFINITION = """\
name: mine
classes: [house, chair, cup]
model: demo
negatives: negatives.txt
id: {folder: id}
near:
  lamps: {folder: lamps}
methods:
  NegLabel: {detector: neglabel, groups: 2}
  My AdaNeg: {detector: adaneg, groups: 2, memory_length: 4}
seeds: [3, 5]
batch_size: 8
"""


def test_a_benchmark_definition_is_reported_with_its_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder, name in (
        ("id/house", "house"),
        ("id/chair", "chair"),
        ("id/cup", "cup"),
        ("lamps", "lamp"),
    ):
        (tmp_path / folder).mkdir(parents=True)
        for index in range(8):
            draw(name, rng).image.save(tmp_path / folder / f"{index}.png")
    (tmp_path / "negatives.txt").write_text("red\nblue\nsea\nforest\n", "utf-8")
    (tmp_path / "mine.yml").write_text(DEFINITION, "utf-8")
    out, options = tmp_path / "report.html", ["--cache", str(tmp_path / "cache")]
    done = CliRunner().invoke(app, ["report", str(tmp_path / "mine.yml"), "--out", str(out), *options])
    assert done.exit_code == 0, done.output
    text = out.read_text("utf-8")
    assert "seeds 3, 5, batch size 8" in text and ">My AdaNeg</th>" in text and "mine.yml" in text
    assert text.count("data:image/jpeg;base64,") >= 4 * 8
    (tmp_path / "lamps" / "0.png").unlink()
    (tmp_path / "negatives.txt").unlink()
    done = CliRunner().invoke(app, ["reproduce", "gap", "--features", str(tmp_path / "mine.yml")])
    assert done.exit_code == 2 and "negatives.txt" in done.output
