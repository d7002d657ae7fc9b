"""The report: record, tables, curves, pictures and the page, on the demo world."""

from __future__ import annotations

import builtins
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from adaneg_openood.benchmark.methods import standard_detectors
from adaneg_openood.cli import app
from adaneg_openood.data import ImageSet, encode_to_file
from adaneg_openood.demo.model import load_demo_model
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
from adaneg_openood.report.certainty import surely_best
from adaneg_openood.report.curves import fpr_over_stream, histogram, roc, threshold_fpr95
from adaneg_openood.report.sources import benchmark_record, remembered_images
from adaneg_openood.report.tables import filled_negatives, ranks, run_tables, to_latex, to_markdown


@pytest.fixture(scope="module")
def small(demo: FeatureSet) -> FeatureSet:
    """Part of the demo world, for what runs often."""
    return replace(
        demo,
        id_features=demo.id_features[::3],
        id_labels=demo.id_labels[::3],
        near={"tools": demo.near["tools"][::3]},
        far={"textures": demo.far["textures"][::3]},
    )


def plain_images(n: int, colour: int) -> ImageSet:
    """n grey images that need no disk."""
    names = [f"{index:03d}.png" for index in range(n)]
    return ImageSet("made", names, [-1] * n, lambda index: Image.new("RGB", (8, 8), (colour,) * 3))


@pytest.fixture(scope="module")
def record(small: FeatureSet) -> RunRecord:
    images = {
        "id": plain_images(100, 40),
        "tools": plain_images(50, 90),
        "textures": plain_images(50, 200),
    }
    return collect(small, seeds=(0, 1), batch_size=32, images=images)


@pytest.fixture(scope="module")
def page(record: RunRecord, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "report.html"
    write_report(record, out, title="A <run> & more")
    return out


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
    assert again.methods == record.methods and dict(again.sets) == dict(record.sets)
    assert again.examples == record.examples and len(again.examples) == 2 * 4 * 8
    pd.testing.assert_frame_equal(again.results.records, record.results.records)


def test_a_damaged_record_is_refused(record: RunRecord, tmp_path: Path) -> None:
    path = save_record(record, tmp_path)
    text = path.read_text("utf-8")
    path.write_text(text.replace('"side": "id"', '"side": "ood"', 1), "utf-8")
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
    stream = record.stream_of("AdaNeg", "textures")
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


def test_images_must_fit_the_features(small: FeatureSet) -> None:
    with pytest.raises(ValueError, match="7 images given for 'tools', which has 50"):
        collect(small, seeds=(0,), images={"tools": plain_images(7, 0)})
    with pytest.raises(ValueError, match="parts are id, tools, textures"):
        collect(small, seeds=(0,), images={"birds": plain_images(7, 0)})


# curves


def test_the_last_point_of_a_course_is_fpr95(record: RunRecord) -> None:
    for method in record.methods:
        for dataset in record.sets:
            is_ood = record.labels(dataset) == -1
            conf = record.conf(method, dataset)
            course = fpr_over_stream(conf, is_ood, record.stream(dataset), record.batch_size)
            assert course.seen[-1] == len(conf)
            assert course.fpr95[-1] == threshold_fpr95(conf, is_ood)[1]
            metrics = ood_metrics(conf, record.labels(dataset), np.zeros(len(conf), int))
            assert course.fpr95[-1] == metrics["FPR@95"]
            curve = roc(conf, is_ood)
            area = np.trapezoid(curve.tpr, curve.fpr) if hasattr(np, "trapezoid") else None
            if area is not None:
                assert area / 100 == pytest.approx(metrics["AUROC"], abs=0.2)


def test_a_stream_that_begins_with_one_kind_is_skipped_until_both_are_there() -> None:
    conf = np.array([0.9, 0.8, 0.1, 0.2])
    is_ood = np.array([False, False, True, True])
    course = fpr_over_stream(conf, is_ood, np.arange(4), batch_size=1)
    assert course.seen.tolist() == [3, 4] and course.fpr95.tolist() == [0.0, 0.0]
    assert histogram(conf, np.array([0.0, 0.5, 1.0])).tolist() == [50.0, 50.0]


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
    assert f"**{table.cell(best, 'far (mean)')}**" in markdown
    assert rf"\textbf{{{table.cell(best, 'far (mean)')}}}".replace("±", r"$\pm$") in latex
    assert latex.count(r"\\") == 1 + len(record.methods) and r"FPR95 (OOD positive), \%" in latex


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
        assert address.startswith(("#", "data:image/png;base64,")), address[:60]
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
                assert f">{table.cell(str(method), str(column))}</td>" in text
    assert "A &lt;run&gt; &amp; more" in text and "<run>" not in text
    assert 'class="best' in text and 'class="second"' in text
    assert text.count('scope="col"') > 20 and text.count('scope="row"') > 20
    assert "prefers-color-scheme: dark" in text and "currentColor" in text
    assert text.count("<svg") == 3 * len(record.sets)
    assert text.count("data:image/png;base64,") == len(record.examples)
    for name in filled_negatives(record, "AdaNeg (task)", "textures")["name"].head(3):
        assert f">{name}</th>" in text
    for said in ("OOD images taken most surely for ID", "content sha256", "memory_length = 10", "numpy"):
        assert said in text
    assert str(record.provenance["features"]["content sha256"]) in text


def test_intervals_and_tests_equal_those_of_evaluate(
    small: FeatureSet, record: RunRecord, tmp_path: Path
) -> None:
    write_report(record, tmp_path / "report.html", resamples=20)
    expected = record.results.bootstrap(20)
    frame = pd.read_csv(tmp_path / "report" / "certainty.csv").set_index(["metric", "column", "method"])
    row = frame.loc[("AUROC", "far (mean)", "AdaNeg (task)")]
    interval = expected.intervals("AdaNeg (task)", "farood")["AUROC"]
    assert tuple(row[["value", "low", "high"]]) == pytest.approx(tuple(interval))
    test = expected.differences("AdaNeg (task)", "NegLabel", "farood")["AUROC"]
    assert (row["difference"], row["p_value"]) == pytest.approx((test.value, test.p_value))
    text = (tmp_path / "report.html").read_text("utf-8")
    assert f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]" in text


def test_only_a_paired_test_shades(record: RunRecord) -> None:
    bootstrap = record.results.bootstrap(60)
    table = next(table for table in run_tables(record.results) if table.metric == "AUROC")
    for column, row in (("far (mean)", "farood"), ("tools", "tools")):
        ordered = table.mean[column].sort_values(ascending=False)
        p = bootstrap.differences(str(ordered.index[0]), str(ordered.index[1]), row)["AUROC"].p_value
        assert surely_best(table, column, bootstrap) == (ordered.index[0] if p < 0.05 else None)
    assert surely_best(table, "tools", None) is None
    accuracy = next(table for table in run_tables(record.results) if table.metric == "ID accuracy")
    assert surely_best(accuracy, "tools", bootstrap) is None


def test_warnings_stand_above_the_tables(small: FeatureSet, tmp_path: Path) -> None:
    """One batch per stream: a spread over orders that says nothing."""
    record = collect(small, seeds=(0, 1), batch_size=256)
    assert any("one batch" in warning for warning in record.results.warnings)
    write_report(record, tmp_path / "report.html", resamples=None)
    text = (tmp_path / "report.html").read_text("utf-8")
    assert 0 < text.index("are one batch of at most 256") < text.index('id="tables"')


def test_every_image_is_in_a_table_with_its_verdict(record: RunRecord, page: Path) -> None:
    frame = pd.read_csv(page.with_suffix("") / "images.csv")
    assert len(frame) == sum(len(record.labels(dataset)) for dataset in record.sets)
    method = record.example_method
    part = frame[frame["set"].isin(["tools", "id (with tools)"])]
    np.testing.assert_allclose(part[method], record.conf(method, "tools"), rtol=1e-6)
    ids = part[part["label"] != "OOD"]
    cut = np.sort(ids[method])[5]  # of 100 ID images 95 are kept
    assert ((part[method] >= cut) == (part["verdict"] != "OOD")).all()
    assert (part["verdict"] == part["seen as"])[part["verdict"] != "OOD"].all()
    assert part["image"].iloc[0] == "000.png" and "images.csv" in page.read_text("utf-8")


def test_every_table_and_picture_is_a_file_too(page: Path, record: RunRecord) -> None:
    folder = page.with_suffix("")
    pictures = sorted(folder.glob("*.png"))
    assert len(pictures) == 3 * len(record.sets)
    for path in pictures:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            assert image.width > 1000
            pixels = np.asarray(image.convert("L"))
            assert pixels[0, 0] == 255 and (pixels < 128).mean() > 0.005, f"{path.name} is blank"
    long = pd.read_csv(folder / "tables.csv")
    assert set(long["metric"]) >= {"FPR95 (OOD positive)", "FPR95 (ID positive)", "AUROC"}
    assert len(pd.read_csv(folder / "runs.csv")) == len(record.methods) * len(record.sets) * 2
    negatives = pd.read_csv(folder / "negatives.csv")
    # the bank does not depend on the proxies
    assert set(negatives["methods"]) == {"AdaNeg (task), AdaNeg (sample)"}
    assert (folder / "tables.md").is_file() and (folder / "tables.tex").is_file()


def test_the_same_record_gives_the_same_page(record: RunRecord, page: Path, tmp_path: Path) -> None:
    write_report(record, tmp_path / "again.html", title="A <run> & more")
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()


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
    assert text.count("<svg") == 2 and "ID images first" in text and "near" not in record.sets.values()


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
    assert "bench.npz" in text and text.count("data:image/png") == 16
    about = json.loads((kept / "report.json").read_text("utf-8"))
    assert len(about["provenance"]["features"]["files"]["bench.npz"]) == 64
    assert json.loads((tmp_path / "r.json").read_text("utf-8"))["protocol"]["batch_size"] == 256

    again = runner.invoke(
        app, ["report", str(kept), "--out", str(tmp_path / "again.html"), "--title", "T"]
    )
    assert again.exit_code == 0, again.output
    assert "T: out-of-distribution detection" in (tmp_path / "again.html").read_text("utf-8")
    wrong = runner.invoke(app, ["report", str(tmp_path / "nope"), "--out", str(out)])
    assert wrong.exit_code == 2 and "nope" in wrong.output


def test_the_demo_world_brings_its_images() -> None:
    record = benchmark_record("demo", seeds=(0,))
    assert record.example_method == "AdaNeg (task)"
    assert {example.dataset for example in record.examples} == set(record.sets)
    with Image.open(io.BytesIO(record.examples[0].picture)) as image:
        assert image.size == (64, 64)


def test_images_of_encoded_folders_are_found_again(tmp_path: Path) -> None:
    """A folder of pictures, encoded: the report shows them without being told where they are."""
    pictures, bench = tmp_path / "pictures" / "a", tmp_path / "bench"
    pictures.mkdir(parents=True)
    for index in range(20):
        Image.new("RGB", (9, 9), (index * 9, 80, 0)).save(pictures / f"{index:02d}.png")
    encode_to_file(
        pictures.parent, bench / "id.safetensors", model=load_demo_model(), labelled=True, workers=0
    )
    encode_to_file(
        pictures, bench / "far" / "same.safetensors", model=load_demo_model(), labelled=False, workers=0
    )
    found = remembered_images(bench)
    assert set(found) == {"id", "same"} and len(found["id"].names) == 20
    assert found["same"].open(3).size == (9, 9)
    shutil.rmtree(pictures.parent)
    assert remembered_images(bench) == {}
    assert remembered_images(tmp_path / "no-folder.npz") == {}


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
    assert text.count("data:image/png;base64,") == 4 * 8
    (tmp_path / "lamps" / "0.png").unlink()
    (tmp_path / "negatives.txt").unlink()
    done = CliRunner().invoke(app, ["reproduce", "gap", "--features", str(tmp_path / "mine.yml")])
    assert done.exit_code == 2 and "negatives.txt" in done.output
