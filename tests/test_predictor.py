"""A detector in use: predictions on images and folders, saved and resumed predictors."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import threading

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from adaneg_openood import NegLabel
from adaneg_openood.benchmark.labels import make_labels
from adaneg_openood.benchmark.methods import MethodSpec
from adaneg_openood.benchmark.settings import LabelSettings
from adaneg_openood.cli import app
from adaneg_openood.data import ImageSet, decoded_batches
from adaneg_openood.demo import benchmark, world
from adaneg_openood.demo.model import load_demo_model
from adaneg_openood.detectors import DETECTORS
from adaneg_openood.detectors.threshold import find_threshold
from adaneg_openood.evaluation import FeatureSet
from adaneg_openood.io.files import atomic_path
from adaneg_openood.predictor import ID, OOD, PREDICTOR_FILE, Predictor


@pytest.fixture(scope="module")
def model():
    return load_demo_model()


@pytest.fixture(scope="module")
def labels(model, tmp_path_factory):
    settings = LabelSettings(corpus="demo", n_negatives=60)
    cache = tmp_path_factory.mktemp("cache")
    return make_labels(model, benchmark.class_names(), settings, cache=cache)


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


@pytest.fixture
def saved(predictor, tmp_path):
    predictor.save(tmp_path / "run")
    return tmp_path / "run"


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


def test_a_threshold_that_keeps_next_to_nothing_keeps_one_image():
    conf = torch.linspace(0, 1, 20)
    assert find_threshold(conf, 1e-12).value == find_threshold(conf, 0.05).value == 1.0


def test_negatives_are_the_nearest_of_the_list(predictor, model, labels, folders):
    images = ImageSet.of(folders / "ood")
    features = [model.encode_image(pixels) for _, pixels, _ in decoded_batches(model, images, 60, 0)]
    cosines = torch.cat(features) @ labels.features[20:].T
    for found, expected in zip(predictor.predict(images), cosines.argsort(dim=1, descending=True)):
        assert found.negatives == tuple(labels.names[20 + row] for row in expected[:3])


def test_the_published_number_of_groups_is_that_of_eval(model, labels):
    told = dataclasses.replace(labels, provenance={"negatives": {"groups": 20}})
    data = FeatureSet(
        told.features, 20, told.features[:20], torch.arange(20), {}, {"far": told.features}
    )
    images = torch.nn.functional.normalize(told.features[:40] + told.features[40:], dim=1)
    for settings, groups in (({}, 20), ({"groups": 3}, 3)):
        by_eval = MethodSpec("neglabel", settings).build(data, told)
        own = Predictor(model, told, "neglabel", settings).detector
        assert own.groups == by_eval.groups == groups
        by_eval.logit_scale = own.logit_scale
        assert torch.equal(own.score(images).conf, by_eval.score(images).conf)


@pytest.mark.parametrize("detector", list(DETECTORS))
def test_predictions_separate_id_from_ood(detector, model, labels, folders):
    predictor = Predictor(model, labels, detector)
    predictor.calibrate(ImageSet.of(folders / "id"), 0.9)
    of_id = list(predictor.predict(ImageSet.of(folders / "id")))
    of_ood = list(predictor.predict(ImageSet.of(folders / "ood")))
    assert [p.image for p in of_id] == [f"{i:03d}.png" for i in range(60)]
    assert sum(p.verdict == ID for p in of_id) >= 45
    assert sum(p.verdict == OOD for p in of_ood) >= (15 if detector == "mcm" else 30)
    right = [p.label == world.ID_NAMES[i % 20] for i, p in enumerate(of_id)]
    assert np.mean(right) > 0.5
    for made in (*of_id, *of_ood):
        assert (made.confidence >= made.threshold) == (made.verdict == ID)
        low, high = (-1.0, 1.0) if detector == "oodd" else (0.0, 1.1)
        assert low <= made.confidence <= high and low <= made.threshold <= high
        assert len(made.negatives) == 3 and not set(made.negatives) & set(world.ID_NAMES)


def test_a_broken_file_is_named_and_the_rest_predicted(predictor, folders, tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes((folders / "id" / f"00{i}.png").read_bytes())
    (tmp_path / "1.png").write_bytes(b"\x89PNG broken")
    made = list(predictor.predict(ImageSet.of(tmp_path), batch_size=2))
    assert [p.image for p in made] == ["0.png", "1.png", "2.png"]
    assert made[1].verdict == made[1].label == "" and made[1].error
    assert made[0].label and made[2].label and made[0].error == made[2].error == ""


def test_broken_validation_images_are_left_out_with_one_warning(
    model, labels, folders, tmp_path, caplog
):
    for file in (folders / "id").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for name in ("000.png", "007.png"):
        (tmp_path / name).write_bytes(b"\x89PNG broken")
    threshold = Predictor(model, labels).calibrate(ImageSet.of(tmp_path))
    assert threshold.n == 58
    (told,) = caplog.messages
    assert "2 broken image(s): 000.png (" in told and "; 007.png (" in told


def test_ten_thousand_images_in_bounded_memory(model, labels):
    """The bank holds at most memory_length - 1 images per row, however long the stream."""
    images = [world.draw(name, np.random.default_rng(5)).image for name in world.ID_NAMES]
    names, ood = [str(i) for i in range(10_000)], [-1] * 10_000
    source = ImageSet("many", names, ood, lambda i: images[i % 20])
    predictor = Predictor(model, labels, "adaneg", {"memory_length": 4})
    predictor.detector.calibrate(torch.linspace(0, 1, 100))
    assert sum(1 for _ in predictor.predict(source, batch_size=250)) == 10_000
    assert predictor.detector.bank.counts.max() <= 3


@pytest.mark.parametrize("detector", list(DETECTORS))
def test_a_saved_run_goes_on_as_if_never_stopped(detector, model, labels, folders, tmp_path):
    predictor = Predictor(model, labels, detector)
    predictor.calibrate(ImageSet.of(folders / "id"), 0.9)
    source = ImageSet.of(folders / "ood")
    predictor.save(tmp_path / "run")
    resumed = Predictor.load(tmp_path / "run", model)
    assert resumed.threshold == predictor.threshold
    assert list(resumed.predict(source)) == list(predictor.predict(source))
    assert (tmp_path / "run" / PREDICTOR_FILE).is_file()


def test_saving_removes_its_own_old_files_and_no_others(predictor, saved, folders):
    (old,) = saved.glob("state-*.safetensors")
    killed = [f".{old.name}.12-0a1b2c3d.tmp", f".{PREDICTOR_FILE}.7-00000000.tmp"]
    others = ["state-of-the-art.safetensors", ".notes.tmp", f"{old.name}.bak"]
    for name in killed + others:
        (saved / name).write_text("x")
    list(predictor.predict(ImageSet.of(folders / "ood")))
    with atomic_path(saved / "out.csv") as temporary:
        temporary.write_text("being written")
        predictor.save(saved)
    (new,) = saved.glob("state-????????????????.safetensors")
    assert new != old
    assert {file.name for file in saved.iterdir()} == {*others, "out.csv", PREDICTOR_FILE, new.name}


def test_a_prediction_without_a_threshold_is_refused_at_once(model, labels, folders):
    with pytest.raises(RuntimeError, match="no threshold yet: calibrate"):
        Predictor(model, labels).predict(ImageSet.of(folders / "id"))


def test_the_saved_model_is_loaded_by_name(saved, model):
    assert Predictor.load(saved).model.name == model.name


def test_too_few_images_are_refused_before_the_first(model, labels, folders, tmp_path):
    (tmp_path / "a.png").write_bytes((folders / "id" / "000.png").read_bytes())
    with pytest.raises(ValueError, match=r"holds 1 image\(s\); a threshold needs at least 20"):
        Predictor(model, labels).calibrate(ImageSet.of(tmp_path))


def rewritten(folder, **changes):
    """The about file with changes and a checksum that fits: what a hostile sender would hand over."""
    file = folder / PREDICTOR_FILE
    about = {**json.loads(file.read_text()), **changes}
    body = {key: value for key, value in about.items() if key not in ("format", "checksum")}
    checksum = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    file.write_text(json.dumps({**about, "checksum": checksum}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 2, and this version reads 3; make the predictor again"),
        ({"threshold": {"value": "high", "tpr": 0.9, "n": 60, "source": "id"}}, "threshold"),
        ({"threshold": {"value": float("nan"), "tpr": 0.9, "n": 60, "source": "id"}}, "checksum"),
        ({"model": ["demo"]}, "model must be a mapping"),
        ({"n_id": "many"}, "n_id must be a whole number"),
        ({"n_id": 10**9}, "n_id"),
        ({"names": "abc"}, "names"),
        ({"names": ["a"]}, "one name per row"),
        ({"detector": "adanegg"}, "adanegg"),
        ({"settings": {"gama": 1}}, "gama"),
        ({"logit_scale": -1}, "logit_scale"),
        ({"logit_scale": True}, "logit_scale"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"state": {"file": "../../etc/passwd", "sha256": "0"}}, "is missing"),
    ],
)
def test_what_a_stranger_hands_over_is_checked(saved, model, changes, message):
    rewritten(saved, **changes)
    with pytest.raises(ValueError, match=message):
        Predictor.load(saved, model)


@pytest.mark.parametrize("known", [{}, {"model": 3}])
def test_a_predictor_that_names_no_model_says_so(saved, known):
    rewritten(saved, model=known)
    with pytest.raises(ValueError, match=r"predictor\.json: damaged, model does not tell its name"):
        Predictor.load(saved)


def test_a_state_that_does_not_fit_is_refused(saved, model):
    from safetensors.torch import load, save

    about = json.loads((saved / PREDICTOR_FILE).read_text())
    state = load((saved / about["state"]["file"]).read_bytes())
    for change in (
        {"labels": state["labels"] * torch.nan},
        {"labels": state["labels"] * 0},
        {"labels": state["labels"][:, :32].contiguous()},
        {"labels": state["labels"][:-1]},
        {"detector.more": torch.ones(3)},
    ):
        content = save({**state, **change})
        (saved / "other.safetensors").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        rewritten(saved, state={"file": "other.safetensors", "sha256": digest})
        with pytest.raises(ValueError, match="damaged"):
            Predictor.load(saved, model)


def test_every_flipped_bit_is_noticed(saved, model):
    file = saved / PREDICTOR_FILE
    whole = file.read_bytes()
    expected = json.loads(whole)
    rng = np.random.default_rng(3)
    for place in rng.integers(0, 8 * len(whole), 120).tolist():
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        file.write_bytes(damaged)
        try:
            if json.loads(damaged) == expected:
                continue  # white space
        except ValueError:
            pass
        with pytest.raises(ValueError, match=PREDICTOR_FILE):
            Predictor.load(saved, model)


def test_damaged_and_foreign_predictors_are_refused(saved, model, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no predictor"):
        Predictor.load(tmp_path)
    about = json.loads((saved / PREDICTOR_FILE).read_text())
    rewritten(saved, model={**about["model"], "dim": 3})
    with pytest.raises(ValueError, match="dim"):
        Predictor.load(saved, model)
    rewritten(saved, model=about["model"])
    (state,) = saved.glob("state-*.safetensors")
    state.write_bytes(state.read_bytes()[: state.stat().st_size // 2])
    with pytest.raises(ValueError, match="damaged"):
        Predictor.load(saved, model)


def test_loading_while_another_saves_never_says_damaged(predictor, saved, model):
    stop = threading.Event()

    def save_on() -> None:
        while not stop.is_set():
            predictor.detector.threshold = predictor.detector.calibrate(torch.rand(50))
            predictor.save(saved)

    thread = threading.Thread(target=save_on)
    thread.start()
    try:
        for _ in range(60):
            Predictor.load(saved, model)
    finally:
        stop.set()
        thread.join()


def _learn(folder, images, started, release):
    with Predictor.keeping(folder) as predictor:
        started.set()
        release.wait(60)
        list(predictor.predict(ImageSet.of(images)))


def test_two_that_keep_what_they_learn_lose_nothing(model, labels, folders, tmp_path):
    predictor = Predictor(model, labels, "adaneg")
    predictor.calibrate(ImageSet.of(folders / "id"), 0.9)
    predictor.save(tmp_path)
    for kind in ("ood", "id"):
        list(predictor.predict(ImageSet.of(folders / kind)))
    context = multiprocessing.get_context("spawn")
    started, release, begun, at_once = (context.Event() for _ in range(4))
    at_once.set()
    first = context.Process(target=_learn, args=(tmp_path, folders / "ood", started, release))
    first.start()
    assert started.wait(120)
    second = context.Process(target=_learn, args=(tmp_path, folders / "id", begun, at_once))
    second.start()
    release.set()
    first.join(120)
    second.join(120)
    assert first.exitcode == second.exitcode == 0
    both = Predictor.load(tmp_path, model).detector.state_dict()
    for name, value in predictor.detector.state_dict().items():
        torch.testing.assert_close(both[name], value, msg=name)


def invoke(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_commands_build_and_predict(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("ADANEG_CACHE", str(tmp_path / "cache"))
    words, names = tmp_path / "words.txt", tmp_path / "names.txt"
    names.write_text("\n".join(world.ID_NAMES))
    words.write_text("\n".join(name for name in world.NOUNS if name not in world.ID_NAMES))
    run = tmp_path / "run"
    built = invoke(
        *("build", "--classes", names, "--negatives", words, "--model", "demo", "--workers", 0),
        *("--validation", folders / "id", "--out", run, "--set", "window=500"),
    )
    assert "20 ID names, 62 negatives, method smoothed_neglabel" in built
    assert "keeps 95 % of 60 ID" in built
    assert json.loads((run / PREDICTOR_FILE).read_text())["settings"]["window"] == 500
    one = invoke("predict", run, folders / "ood" / "000.png")
    assert "000.png: OOD (nearest ID name:" in one and "negatives: " in one
    assert one.splitlines()[-1] == "1 image(s): 1 OOD"
    table, rows = tmp_path / "out.csv", tmp_path / "out.json"
    many = invoke(
        *("predict", run, folders / "id", folders / "ood", "--csv", table, "--json", rows),
        *("--workers", 2, "--keep"),
    )
    frame, listed = pd.read_csv(table), json.loads(rows.read_text())
    counts = frame["verdict"].value_counts()
    assert many.splitlines()[-1] == f"120 image(s): {counts['ID']} ID, {counts['OOD']} OOD"
    assert list(frame.columns) == [
        *("path", "image", "verdict", "label", "confidence", "threshold", "negatives", "error")
    ]
    assert frame["confidence"].is_monotonic_increasing and frame["confidence"].between(0, 1).all()
    assert set(frame["path"]) == {row["path"] for row in listed}
    assert listed[0]["path"] == str(folders / "id" / "000.png") and len(listed[0]["negatives"]) == 3
    assert "holds no predictor" in invoke("predict", tmp_path / "nothing", folders / "id", code=2)


def test_predict_tells_broken_images_by_its_exit_status(saved, folders, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a\x1b[2J.png").write_bytes(b"broken")
    text = invoke("predict", saved, tmp_path / "images", code=2)
    assert "no image could be read" in text and "\x1b" not in text
    (tmp_path / "images" / "=b.png").write_bytes((folders / "id" / "000.png").read_bytes())
    table = tmp_path / "out.csv"
    text = invoke("predict", saved, tmp_path / "images", "--csv", table, code=1)
    assert text.splitlines()[-1].endswith("1 unreadable")
    assert set(pd.read_csv(table)["image"]) == {"'=b.png", "a\\x1b[2J.png"}
    assert "/dev/null" in invoke("predict", saved, folders / "id", "--csv", "/dev/null/x", code=2)


def test_predict_heeds_exif_unless_told_not_to(saved, folders, tmp_path):
    from PIL import Image

    upright = Image.open(folders / "id" / "003.png")
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to look at it
    upright.save(tmp_path / "upright.png")
    turned.save(tmp_path / "turned.png", exif=exif)

    def confidences(*options):
        rows = tmp_path / "rows.json"
        invoke("predict", saved, tmp_path, "--json", rows, "--batch-size", 1, *options)
        return {row["image"]: row["confidence"] for row in json.loads(rows.read_text())}

    heeded, raw = confidences(), confidences("--no-exif")
    assert heeded["turned.png"] == pytest.approx(heeded["upright.png"], abs=0.02)
    assert raw["turned.png"] != pytest.approx(raw["upright.png"], abs=0.02)


def test_build_tells_of_validation_folders_that_are_no_class(folders, tmp_path, caplog):
    for index, file in enumerate(sorted((folders / "id").iterdir())[:24]):
        target = tmp_path / "val" / ("odd things" if index % 4 == 0 else world.ID_NAMES[0]) / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    given = ("build", "--classes", "demo", "--corpus", "demo", "--model", "demo", "--workers", 0)
    given += ("--validation", tmp_path / "val", "--out", tmp_path / "run")
    invoke(*given, "--stream")
    assert "are no class" not in caplog.text
    invoke(*given)
    assert "val: odd things are no class, and their images are taken for ID" in caplog.text


def test_build_says_how_many_images_it_needs_before_the_model(folders, tmp_path):
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "a.png").write_bytes((folders / "id" / "000.png").read_bytes())
    text = invoke(
        *("build", "--classes", "demo", "--corpus", "demo", "--model", "hf:/nowhere"),
        *("--validation", tmp_path / "few", "--out", tmp_path / "run"),
        code=2,
    )
    assert "nowhere" in text
    text = invoke(
        *("build", "--classes", "demo", "--corpus", "demo", "--model", "demo"),
        *("--validation", tmp_path / "few", "--out", tmp_path / "run"),
        code=2,
    )
    assert "holds 1 image(s); a threshold needs at least 20" in text
