"""Faults of workers, numbers, clocks and locales."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings

import pytest
import torch
from fault_tools import TinyModel, detection, labels, snapshot, write_images
from safetensors.torch import load_file

from adaneg_openood import AdaNeg, AdaNegConfig
from adaneg_openood.data import ImageSet, decoded_batches, encode_to_file
from adaneg_openood.evaluation import FeatureSet, Protocol, replay, save_features
from adaneg_openood.predictor import Predictor
from adaneg_openood.text import NegativeLabels
from adaneg_openood.text.words import fold, keys


class DyingTransform:
    """Ends its process at one image, as a decoder that crashes does."""

    def __init__(self, at=5):
        self.at = at
        self.main = os.getpid()
        self.seen = 0

    def __call__(self, image):
        self.seen += 1
        if self.seen > self.at and os.getpid() != self.main:
            os._exit(3)
        return TinyModel().preprocess(image)


def test_dying_worker_is_named_and_the_work_goes_on(tmp_path):
    source = ImageSet.of(write_images(tmp_path / "images", 24))
    model, out = TinyModel(), tmp_path / "out" / "a.safetensors"
    model.transform = DyingTransform(at=6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(OSError, match="a decoding process died.*--workers 0"):
            encode_to_file(source, out, model=model, batch_size=2, part_size=12, workers=1)
        with pytest.raises(ChildProcessError):
            list(decoded_batches(model, source, 4, 1))
    assert not out.exists() and not list(out.parent.rglob(".*"))
    encode_to_file(source, out, model=TinyModel(), batch_size=2, part_size=12, workers=1)
    assert len(load_file(out)["features"]) == 24


def test_worker_dying_under_the_predictor(tmp_path):
    source = ImageSet.of(write_images(tmp_path / "images", 24))
    model = TinyModel()
    predictor = Predictor(model, labels(), "adaneg", {"groups": 2})
    predictor.calibrate(source)
    before = predictor.detector.bank.counts.sum()
    model.transform = DyingTransform(at=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(OSError, match="a decoding process died"):
            list(predictor.predict(source, batch_size=4, workers=1))
    assert predictor.detector.bank.counts.sum() == before  # nothing was scored


class Overflowing(TinyModel):
    """An encoder whose half precision overflows on images of one kind."""

    effective_precision = "fp16"

    def encode_image(self, pixels):
        features = super().encode_image(pixels)
        hot = torch.tensor([any(torch.equal(p, b) for b in self.poison) for p in pixels])
        values = torch.where(hot[:, None], features.half() * 65504 * 4, features.half())
        return torch.nn.functional.normalize(values.float(), dim=-1)  # inf / inf is NaN


def overflowing(source, *bad):
    model = Overflowing()
    model.poison = [model.preprocess(source.open(index)) for index in bad]
    return model


@pytest.mark.parametrize("skip_broken", [False, True])
def test_overflow_is_named_and_the_file_unharmed(tmp_path, skip_broken):
    source = ImageSet.of(write_images(tmp_path / "images"))
    out = tmp_path / "out" / "a.safetensors"
    settings = {"batch_size": 3, "part_size": 3, "workers": 0, "skip_broken": skip_broken}
    with pytest.raises(ValueError, match=r"1\s+image\(s\) of a batch, in precision fp16: 07\.png.*bf16"):
        encode_to_file(source, out, model=overflowing(source, 7), **settings)
    assert not out.exists()
    for part in out.parent.glob("*.parts/*"):
        assert torch.isfinite(load_file(part)["features"]).all()
    assert torch.get_num_threads() > 0
    encode_to_file(source, out, model=TinyModel(), **settings)
    whole = snapshot(out.parent)
    with pytest.raises(ValueError, match="NaN"):
        encode_to_file(source, out, model=overflowing(source, 2), overwrite=True, **settings)
    assert snapshot(out.parent)["a.safetensors"] == whole["a.safetensors"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_bad_features_do_not_harm_a_bank(value):
    text, good = labels().features, labels(1).features
    detectors = [AdaNeg(text, 8, 50.0, AdaNegConfig(groups=2)) for _ in range(2)]
    bad = good.clone()
    bad[5] = value
    for detector in detectors:
        detector.score(good)
    with pytest.raises(ValueError, match=r"in 1 row\(s\): 5"):
        detectors[0].score(bad)
    first, second = (detector.score(labels(2).features).conf for detector in detectors)
    assert torch.equal(first, second)
    for name, saved in detectors[0].state_dict().items():
        assert torch.equal(saved, detectors[1].state_dict()[name]), name


def test_wrong_shapes_of_a_model_are_told(tmp_path):
    wrong = TinyModel()
    wrong.dim = 31  # its features have 32
    source = ImageSet.of(write_images(tmp_path / "images", 2))
    with pytest.raises(ValueError, match=r"must be \(2, 31\)"):
        encode_to_file(source, tmp_path / "a.safetensors", model=wrong, workers=0)


def test_labels_out_of_range_never_reach_a_table():
    _, data = detection()
    wrong = data.id_labels.clone()
    wrong[4] = 6
    with pytest.raises(ValueError, match=r"labels outside \[0, 6\).*row\(s\): 4"):
        FeatureSet(data.text_features, 6, data.id_features, wrong, data.near)


# -- clocks and locales -------------------------------------------------------------------------------


def everything(folder):
    """Files of every kind that is written."""
    write_images(folder / "images", 5)
    detectors, data = detection()
    encode_to_file(ImageSet.of(folder / "images"), folder / "out" / "x.safetensors", model=TinyModel(),
                  batch_size=2, part_size=2, workers=0)  # fmt: skip
    save_features(folder / "out" / "all.npz", data)
    results = replay(data, detectors, Protocol(seeds=(0,), batch_size=64), progress=False)
    results.to_json(folder / "out" / "results.json")
    results.to_csv(folder / "out" / "results.csv")
    Predictor(TinyModel(), labels(), "adaneg", {"groups": 2}).save(folder / "out" / "run")
    words = NegativeLabels(("İstanbul", "naïve", "ışık"), ("noun",) * 3)
    words.save(folder / "out" / "words.txt")
    assert NegativeLabels.load(folder / "out" / "words.txt").words == words.words
    return {name: content for name, content in snapshot(folder / "out").items() if name != "all.npz"}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return everything(tmp_path_factory.mktemp("expected"))


def test_a_clock_that_runs_backwards(tmp_path, monkeypatch, expected):
    now = [2_000_000_000.0]

    def earlier():
        now[0] -= 86_400
        return now[0]

    monkeypatch.setattr(time, "time", earlier)
    # names of folders are in the files' headers as the source
    made = everything(tmp_path)
    assert sorted(made) == sorted(expected)
    assert made["results.json"] == expected["results.json"]
    assert made["words.txt"] == expected["words.txt"]
    assert made["run/predictor.json"] == expected["run/predictor.json"]


LOCALES = (
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "TZ": "Asia/Kathmandu"},
    {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8", "TZ": "Pacific/Apia"},
)


def main(folder):
    from pathlib import Path

    made = everything(Path(folder))
    texts = {name: made[name].decode() for name in ("results.json", "words.txt", "run/predictor.json")}
    sys.stdout.write(json.dumps(texts))  # ASCII


@pytest.mark.parametrize("environment", LOCALES, ids=["C", "Turkish"])
def test_locales_and_time_zones_change_no_byte(tmp_path, expected, environment):
    code = (
        "import sys; sys.path[:0] = [sys.argv[1]]; import test_faults_running as t; t.main(sys.argv[2])"
    )
    made = subprocess.run(
        [sys.executable, "-c", code, os.path.dirname(__file__), str(tmp_path)],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    for name, text in json.loads(made.stdout).items():
        assert text == expected[name].decode(), name


def test_casing_is_not_turkish():
    assert fold("INSIDE") == "inside" and keys("FIRE", "caseless") == keys("fire", "caseless")
    assert fold("ı") != fold("i")
