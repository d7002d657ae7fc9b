"""Which images a report shows, and what it says of every image."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from page_text import page_text
from PIL import Image

from adaneg_openood.benchmark.definition import read_benchmark
from adaneg_openood.data import ImageSet, encode_to_file
from adaneg_openood.demo.model import load_demo_model
from adaneg_openood.demo.world import draw
from adaneg_openood.detectors import MCM, AdaNeg, AdaNegConfig, NegLabel
from adaneg_openood.evaluation import FeatureSet
from adaneg_openood.report import RunRecord, collect, pictures
from adaneg_openood.report.negatives import nearest_negatives, negative_scores
from adaneg_openood.report.record import MEMORY, Example
from adaneg_openood.report.sources import benchmark_record, remembered_images

FIRST = {"id": 0, "tools": 100, "textures": 150}  # the grey of a set's first image


def grey_of(example: Example) -> float:
    with Image.open(io.BytesIO(example.picture)) as image:
        assert image.format == "JPEG" and image.size == (96, 48)
        return float(np.asarray(image.convert("L")).mean())


def test_every_picture_is_that_of_its_image(record: RunRecord) -> None:
    for example in record.examples:
        stream = record.first(record.judge, example.dataset)
        at = int(example.file.partition(".")[0])
        grey = FIRST[example.dataset if example.is_ood else "id"] + at
        assert grey_of(example) == pytest.approx(grey, abs=2)
        assert example.conf == stream.conf[at if example.is_ood else stream.n_ood + at]
    lowest = [e.conf for e in record.examples if (e.dataset, e.place) == ("textures", "ood low")]
    assert lowest == sorted(record.first(record.judge, "textures").conf[:50])[:8]


def test_the_memory_is_shown_beside_the_labels_it_was_filed_under(
    small: FeatureSet, record: RunRecord
) -> None:
    """Against a bank that is filled by hand in the same stream."""
    assert record.judge == "AdaNeg (task)"
    for dataset, ood in (("tools", small.near["tools"]), ("textures", small.far["textures"])):
        every = torch.cat([ood, small.id_features])
        detector = AdaNeg(small.text_features, small.n_id, small.logit_scale)
        for rows in torch.from_numpy(record.results.stream_order(dataset, 0)).split(32):
            detector.score(every[rows])
        bank = detector.bank
        held = {}
        for row, feature in zip(bank.rows[: bank.n_cached].tolist(), bank.features):
            index = int((every @ feature).argmax())
            file = f"{index:03d}.png" if index < 50 else f"{index - 50:03d}.png"
            held.setdefault(row, set()).add((file, index < 50))
        shown: dict[int, set[tuple[str, bool]]] = {}
        for example in record.examples:
            if (example.dataset, example.place) == (dataset, MEMORY):
                shown.setdefault(example.row, set()).add((example.file, example.is_ood))
        assert shown and all(held[row] == files for row, files in shown.items())
        counts = bank.counts[small.n_id :]
        negatives = [row for row in shown if row >= small.n_id]
        fullest = sorted(counts[counts > 0].tolist(), reverse=True)[:4]
        assert [int(bank.counts[row]) for row in negatives] == fullest
        impure = sorted(sum(ood for _, ood in held[row]) for row in held if row < small.n_id)[-4:]
        assert [sum(ood for _, ood in shown[row]) for row in shown if row < small.n_id] == impure[::-1]


def test_pictures_are_bounded_in_number_and_size(
    small: FeatureSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "_MOST", 16)
    noise = np.random.default_rng(0).integers(0, 256, (50, 400, 300, 3), dtype=np.uint8)
    names = [str(index) for index in range(50)]
    images = ImageSet("made", names, [-1] * 50, lambda index: Image.fromarray(noise[index]))
    given = {"tools": images, "textures": images}
    found = collect(small, seeds=(0,), batch_size=32, images=given).examples
    ends = [example for example in found if example.place != MEMORY]
    assert len(ends) == 2 * 2 * 2 and len(found) - len(ends) <= 2 * 2 * 9
    assert max(len(example.picture) for example in found) < 12_000


def test_images_that_are_gone_are_left_out(
    small: FeatureSet, record: RunRecord, caplog: pytest.LogCaptureFixture
) -> None:
    def opener(index: int) -> Image.Image:
        if index % 2:
            raise OSError("no such file")
        return Image.new("RGB", (9, 9))

    images = ImageSet("made", [str(index) for index in range(50)], [-1] * 50, opener)
    found = collect(small, seeds=(0,), batch_size=32, images={"textures": images})
    assert found.examples and all(int(example.file) % 2 == 0 for example in found.examples)
    assert "is not shown: no such file" in caplog.text
    text = page_text(replace(record, examples=()))
    assert "The images are not at hand" in text and "<img" not in text


def test_images_must_fit_the_features(small: FeatureSet) -> None:
    seven = ImageSet("made", list("abcdefg"), [-1] * 7, lambda index: Image.new("RGB", (9, 9)))
    with pytest.raises(ValueError, match="7 images given for 'tools', which has 50"):
        collect(small, seeds=(0,), images={"tools": seven})
    with pytest.raises(ValueError, match="parts are id, tools, textures"):
        collect(small, seeds=(0,), images={"birds": seven})


def test_a_negative_label_is_scored_by_the_other_labels(small: FeatureSet, record: RunRecord) -> None:
    """Against detectors that were built without it."""
    text, n_id, scale = small.text_features, small.n_id, small.logit_scale
    config = AdaNegConfig(groups=1, lam=0.3)
    detectors = {
        "MCM": MCM(text, n_id),
        "NegLabel": NegLabel(text, n_id, 1, logit_scale=scale),
        "AdaNeg": AdaNeg(text, n_id, scale, config),
    }
    found = negative_scores(detectors)
    assert list(found) == ["NegLabel", "AdaNeg"] and len(found["AdaNeg"]) == len(text) - n_id
    for row in (n_id, n_id + 7, len(text) - 1):
        others = torch.cat([text[:row], text[row + 1 :]])
        alone = NegLabel(others, n_id, 1, logit_scale=scale).score(text[row : row + 1]).conf
        assert found["NegLabel"][row - n_id] == pytest.approx(float(alone), abs=1e-5)
        # one place per row is that of the text, so nothing is cached
        empty = AdaNeg(others, n_id, scale, replace(config, memory_length=1))
        alone = empty.score(text[row : row + 1]).conf
        assert found["AdaNeg"][row - n_id] == pytest.approx(float(alone), abs=1e-5)
    page = page_text(replace(record, negative_scores=found))
    assert small.names is not None
    highest = small.names[n_id + int(found["NegLabel"].argmax())]
    assert f"by NegLabel: {highest} ({found['NegLabel'].max():.2f}), " in page
    grouped = NegLabel(text, n_id, 3, logit_scale=scale)
    scores = negative_scores({"grouped": grouped})["grouped"]
    # the own group judges without the label, the others as they do
    logits = scale * text[n_id] @ grouped.text_features.T
    logits[n_id + int((grouped.negative_order == 0).nonzero())] = -torch.inf
    of_groups = logits[n_id : n_id + 3 * (grouped.n_negatives // 3)].view(3, -1).logsumexp(dim=1)
    expected = torch.sigmoid(logits[:n_id].logsumexp(dim=0) - of_groups).mean()
    assert scores[0] == pytest.approx(float(expected), abs=1e-5)


def test_nearest_negatives_are_those_of_the_largest_cosine(small: FeatureSet, record: RunRecord) -> None:
    negatives = small.text_features[small.n_id :].numpy()
    for part, features in {"id": small.id_features, **small.near, **small.far}.items():
        expected = np.argsort(-features.numpy() @ negatives.T, axis=1)[:, :3] + small.n_id
        np.testing.assert_array_equal(record.nearest[part], expected)
    alone = replace(small, text_features=small.text_features[: small.n_id], names=None)
    assert nearest_negatives(alone) == {}


def test_the_table_of_images_names_the_nearest_negatives(
    small: FeatureSet, record: RunRecord, page: Path
) -> None:
    frame = pd.read_csv(page.with_suffix("") / "images.csv")
    kept = ["path", "set", "label", "verdict", "seen as", *record.results.methods, "nearest negatives"]
    assert list(frame.columns) == kept
    assert small.names is not None
    row = frame[(frame["set"] == "id (with textures)") & (frame["path"] == "004.png")].iloc[0]
    names = [small.names[row] for row in record.nearest["id"][4]]
    assert row["nearest negatives"] == "; ".join(names)
    assert row["label"] == small.names[int(small.id_labels[4])]


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


BROKEN = """\
name: mine
classes: [house, chair, cup]
model: demo
negatives: negatives.txt
skip_broken: true
id: {folder: id}
far:
  lamps: {folder: lamps}
methods:
  AdaNeg: {detector: adaneg, groups: 2, memory_length: 4}
seeds: [0]
batch_size: 8
"""


def test_broken_images_that_were_skipped_shift_nothing(tmp_path: Path) -> None:
    """The pictures and rows of the images behind a broken one are their own."""
    rng = np.random.default_rng(0)
    for name in ("house", "chair", "cup", "lamp"):
        folder = "lamps" if name == "lamp" else f"id/{name}"
        (tmp_path / folder).mkdir(parents=True)
        for index in range(8):
            draw(name, rng).image.save(tmp_path / folder / f"{index}.png")
    (tmp_path / "negatives.txt").write_text("red\nblue\nsea\nforest\n", "utf-8")
    (tmp_path / "mine.yml").write_text(BROKEN, "utf-8")
    mine = read_benchmark(tmp_path / "mine.yml").changed(cache=tmp_path / "cache")
    whole = benchmark_record(mine)
    more = "csid:\n  again: {folder: id}\nfull_spectrum: true\n"
    (tmp_path / "all.yml").write_text(BROKEN + more, "utf-8")
    both = benchmark_record(read_benchmark(tmp_path / "all.yml").changed(cache=tmp_path / "cache"))
    assert set(both.names) == {"lamps"}
    assert int((both.first("AdaNeg", "lamps").label >= 0).sum()) == 48
    for broken in ("id/chair/2.png", "lamps/0.png"):
        (tmp_path / broken).write_bytes(b"no image")
    found = benchmark_record(mine)
    assert len(found.names["lamps"]) == 7 and len(found.names["id"]) == 23
    assert found.names["lamps"][0] == "1.png" and "chair/2.png" not in found.names["id"]
    known = dict(zip(whole.names["lamps"], whole.nearest["lamps"].tolist()))
    known.update(zip(whole.names["id"], whole.nearest["id"].tolist()))
    for part in ("lamps", "id"):
        for name, rows in zip(found.names[part], found.nearest[part].tolist()):
            assert rows == known[name]
    for example in found.examples:
        with Image.open(tmp_path / ("lamps" if example.is_ood else "id") / example.file) as image:
            assert example.picture == pictures._jpeg(image), example.file
