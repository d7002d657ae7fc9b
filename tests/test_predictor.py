"""A detector in use: thresholds, predictions on images and folders, saved and resumed runs."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from adaneg_openood import AdaNeg, AdaNegConfig, NegLabel
from adaneg_openood.cli import app
from adaneg_openood.data import ImageSet
from adaneg_openood.demo import world
from adaneg_openood.demo.model import load_demo_model
from adaneg_openood.demo.run import demo_labels
from adaneg_openood.detectors.threshold import find_threshold
from adaneg_openood.predictor import OOD, Predictor


@pytest.fixture(scope="module")
def model():
    return load_demo_model()


@pytest.fixture(scope="module")
def labels(model):
    return demo_labels(model)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(77)
    for kind, names in (("id", world.ID_NAMES), ("ood", tuple(world.TEXTURES) + tuple(world.SCENES))):
        (root / kind).mkdir()
        for i in range(60):
            world.draw(names[i % len(names)], rng).image.save(root / kind / f"{i:03d}.png")
    return root


@pytest.fixture
def predictor(model, labels, folders):
    made = Predictor(model, labels)
    made.calibrate(ImageSet.of(folders / "id"), 0.9)
    return made


def test_threshold_keeps_the_share_it_says():
    conf = torch.arange(100.0)
    for tpr, value in ((1.0, 0.0), (0.95, 5.0), (0.9, 10.0)):
        threshold = find_threshold(conf, tpr)
        assert threshold.value == value
        assert (conf >= threshold.value).float().mean().item() == pytest.approx(tpr)
    assert "95 % of 100 ID validation images" in str(find_threshold(conf))


def test_a_streams_threshold_is_conservative():
    """OOD images score lower, so with them the threshold lies lower, and more ID images are kept."""
    of_id, of_ood = torch.linspace(0.4, 1.0, 200), torch.linspace(0.0, 0.8, 200)
    mixed = find_threshold(torch.cat([of_id, of_ood]), 0.95, "stream")
    assert mixed.value < find_threshold(of_id, 0.95).value
    assert (of_id >= mixed.value).float().mean() >= 0.95
    assert mixed.source == "stream" and "ID or not" in str(mixed)


@pytest.mark.parametrize(
    ("conf", "tpr", "source", "says"),
    [
        (torch.ones(5), 0.95, "id", "at least 20"),
        (torch.ones(30), 0.0, "id", "tpr"),
        (torch.ones(30), 0.9, "ood", "source"),
        (torch.full((30,), torch.nan), 0.9, "id", "NaN"),
    ],
)
def test_bad_calibration_says_what_is_wrong(conf, tpr, source, says):
    with pytest.raises(ValueError, match=says):
        find_threshold(conf, tpr, source)


def test_detectors_predict_after_calibration(labels):
    detector = NegLabel(labels.features, 20)
    with pytest.raises(RuntimeError, match="calibrate"):
        detector.predict(labels.features[:3])
    detector.calibrate(torch.linspace(0, 1, 101), 0.95)
    scores = detector.score(labels.features[:30])
    assert torch.equal(
        detector.predict(labels.features[:30]), torch.where(scores.conf >= 0.05, scores.pred, -1)
    )
    assert detector.predict(labels.features[:20]).tolist() == list(range(20))
    assert (detector.predict(labels.features[20:]) == -1).any()


def test_nearest_negatives_are_in_the_callers_order(labels):
    detector = AdaNeg(labels.features, 20, config=AdaNegConfig(groups=7))
    rows, cosines = detector.nearest_negatives(labels.features[[33, 79, 20]], k=2)
    assert rows[:, 0].tolist() == [33, 79, 20]
    torch.testing.assert_close(cosines[:, 0], torch.ones(3))
    assert (cosines[:, 1] < 1).all()


def test_predictions_separate_id_from_ood(predictor, folders):
    of_id = list(predictor.predict(ImageSet.of(folders / "id")))
    of_ood = list(predictor.predict(ImageSet.of(folders / "ood")))
    assert [p.image for p in of_id] == [f"{i:03d}.png" for i in range(60)]
    assert sum(p.label != OOD for p in of_id) >= 50
    assert sum(p.label == OOD for p in of_ood) >= 45
    right = [p.label == world.ID_NAMES[i % 20] for i, p in enumerate(of_id) if p.label != OOD]
    assert np.mean(right) > 0.5
    assert all(len(p.negatives) == 3 and not set(p.negatives) & set(world.ID_NAMES) for p in of_ood)


def test_a_broken_file_is_named_and_the_rest_predicted(predictor, folders, tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes((folders / "id" / f"00{i}.png").read_bytes())
    (tmp_path / "1.png").write_bytes(b"\x89PNG broken")
    made = list(predictor.predict(ImageSet.of(tmp_path), batch_size=2))
    assert [p.image for p in made] == ["0.png", "1.png", "2.png"]
    assert made[1].label == "" and made[1].error
    assert made[0].label and made[2].label and made[0].error is made[2].error is None


def test_ten_thousand_images_in_bounded_memory(model, labels, folders):
    """The bank holds at most memory_length - 1 images a row, however long the stream."""
    images = [world.draw(name, np.random.default_rng(5)).image for name in world.ID_NAMES]
    source = ImageSet("many", [str(i) for i in range(10_000)], [-1] * 10_000, lambda i: images[i % 20])
    predictor = Predictor(model, labels, AdaNegConfig(memory_length=4))
    predictor.detector.calibrate(torch.linspace(0, 1, 100))
    made = sum(1 for _ in predictor.predict(source, batch_size=250))
    assert made == 10_000
    assert predictor.detector.bank.counts.max() <= 3
    assert len(predictor.detector.bank.features) <= 3 * 80 * 1.2 + 64


def test_a_saved_run_goes_on_as_if_never_stopped(predictor, model, folders, tmp_path):
    source = ImageSet.of(folders / "ood")
    predictor.save(tmp_path / "run")
    resumed = Predictor.load(tmp_path / "run", model)
    assert resumed.threshold == predictor.threshold
    expected, got = list(predictor.predict(source)), list(resumed.predict(source))
    assert got == expected
    assert Predictor.load(tmp_path / "run").model.name == model.name


def test_damaged_and_foreign_runs_are_refused(predictor, model, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        Predictor.load(tmp_path)
    predictor.save(tmp_path)
    about = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**about, "model": {**about["model"], "dim": 3}}))
    with pytest.raises(ValueError, match="dim"):
        Predictor.load(tmp_path, model)
    (tmp_path / "run.json").write_text(json.dumps(about))
    (state,) = tmp_path.glob("state-*.safetensors")
    state.write_bytes(state.read_bytes()[: state.stat().st_size // 2])
    with pytest.raises(ValueError, match="damaged"):
        Predictor.load(tmp_path, model)


def test_commands_build_and_predict(folders, tmp_path):
    words, names = tmp_path / "words.txt", tmp_path / "names.txt"
    names.write_text("\n".join(world.ID_NAMES))
    words.write_text("\n".join(name for name in world.NOUNS if name not in world.ID_NAMES))
    run = tmp_path / "run"
    invoke = CliRunner().invoke
    arguments = ["--id", str(names), "--negatives", str(words), "--model", "demo", "--workers", "0"]
    built = invoke(app, ["build", *arguments, "--validation", str(folders / "id"), "--out", str(run)])
    assert built.exit_code == 0, built.output
    assert "20 ID names, 62 negatives" in built.output and "keeps 95 % of 60 ID" in built.output
    one = invoke(app, ["predict", "--model", str(run), str(folders / "ood" / "000.png")])
    assert one.exit_code == 0, one.output
    assert "000.png: OOD (nearest ID name:" in one.output and "negatives: " in one.output
    table = tmp_path / "out.csv"
    many = invoke(
        app, ["predict", "--model", str(run), str(folders / "id"), "--csv", str(table), "--workers", "2"]
    )
    assert many.exit_code == 0, many.output
    frame = pd.read_csv(table)
    assert len(frame) == 60 and (frame["label"] != OOD).mean() > 0.8
    missing = invoke(app, ["predict", "--model", str(tmp_path / "nothing"), str(folders / "id")])
    assert missing.exit_code == 2 and "holds no run" in missing.output
