"""kill -9 and Ctrl-C: results are complete or absent, and work goes on where it stopped."""

from __future__ import annotations

import json
import os
import signal
import time

import numpy as np
import pytest
from fault_tools import TinyModel, detection, ended, forked, labels, write_images
from safetensors.torch import load_file

from adaneg_openood import AdaNegConfig
from adaneg_openood.encoding import encode_images, image_source
from adaneg_openood.evaluation import FeatureSet, evaluate, load_features, save_features
from adaneg_openood.predictor import Predictor

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork to start processes cheaply")

DELAYS = np.random.default_rng(0).uniform(0.0, 0.03, 12)  # seconds until the kill


def encode(source, out, pause=0.0, **options):
    options = {"batch_size": 2, "part_size": 2, "workers": 0, **options}
    return encode_images(TinyModel(pause=pause), source, out, **options)


def killed_after(work, delay, sent=signal.SIGKILL):
    child = forked(work)
    time.sleep(delay)
    os.kill(child, sent)
    return ended(child)


def test_encode_killed_again_and_again(tmp_path):
    source = image_source(write_images(tmp_path / "images"))
    whole, out = tmp_path / "whole.safetensors", tmp_path / "out" / "a.safetensors"
    encode(source, whole)
    kills = 0
    for delay in (0.02, 0.08, 0.05, 0.03, 0.06, 0.04):
        kills += killed_after(lambda: encode(source, out, pause=0.01), delay) == -signal.SIGKILL
        assert not out.exists() or out.read_bytes() == whole.read_bytes()
        for part in out.parent.glob("a.safetensors.parts/0*.safetensors"):
            load_file(part)  # a part that is there is whole
    assert kills >= 2
    encode(source, out)
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(p.name for p in out.parent.iterdir()) == ["a.safetensors"]


def test_predictor_save_killed_leaves_the_last_complete_save(tmp_path):
    makers = []
    for seed in (0, 1):
        predictor = Predictor(TinyModel(), labels(seed), AdaNegConfig(groups=2))
        predictor.detector.score(labels(seed + 5).features)
        makers.append((f"run {seed} name 0", predictor))
    makers[0][1].save(tmp_path)
    kills = 0
    for delay in DELAYS:

        def save_in_turn():
            while True:
                for _, predictor in makers:
                    predictor.save(tmp_path)

        kills += killed_after(save_in_turn, delay) == -signal.SIGKILL
        found = Predictor.load(tmp_path, TinyModel())
        # names, text features and memory of one save, never of two
        expected = dict(makers)[found.labels.names[0]].detector.state_dict()
        for name, value in found.detector.state_dict().items():
            assert np.array_equal(value.numpy(), expected[name].numpy()), name
    assert kills == len(DELAYS)
    makers[1][1].save(tmp_path)  # and leftovers go with the next save
    assert len(list(tmp_path.glob("state-*.safetensors"))) == 1 and not list(tmp_path.glob(".*.tmp"))


def test_results_killed_are_old_or_new(tmp_path):
    detectors, data = detection()
    results = [evaluate(detectors, data, seeds=(s,), batch_size=64, progress=False) for s in (0, 1)]
    table, features = tmp_path / "results.json", tmp_path / "features.npz"
    results[0].to_json(table)
    save_features(features, data)
    other = FeatureSet(data.text_features, 6, data.id_features, data.id_labels, dict(data.near), {})
    for delay in DELAYS:

        def write():
            while True:
                for result, part in zip(results, (other, data)):
                    result.to_json(table)
                    save_features(features, part)

        killed_after(write, delay)
        assert json.loads(table.read_text()) in [json.loads(json.dumps(r.to_dict())) for r in results]
        assert set(load_features(features).far) in ({"c"}, set())


def test_ctrl_c_leaves_no_partial_file(tmp_path):
    source = image_source(write_images(tmp_path / "images"))
    out = tmp_path / "out" / "a.safetensors"
    assert killed_after(lambda: encode(source, out, pause=0.05), 0.1, signal.SIGINT) == 130
    assert not out.exists()
    # no temporary file and no lock; finished parts are kept, for the next run
    assert not list(out.parent.rglob(".*"))
    names = {path.name for path in out.parent.rglob("*") if path.is_file()}
    assert "plan.json" in names and all(n == "plan.json" or n.startswith("0000") for n in names)
    encode(source, out)
    assert sorted(p.name for p in out.parent.iterdir()) == ["a.safetensors"]


def test_two_processes_on_one_output(tmp_path):
    source = image_source(write_images(tmp_path / "images"))
    out = tmp_path / "a.safetensors"
    child = forked(lambda: encode(source, out, pause=0.1))
    while not (tmp_path / "a.safetensors.parts").exists():
        time.sleep(0.005)
    with pytest.raises(BlockingIOError, match=rf"process {child} on .* is writing it; wait for it"):
        encode(source, out)
    assert ended(child) == 0
    whole = out.read_bytes()
    encode(source, out)  # is there already
    assert out.read_bytes() == whole and not list(tmp_path.glob(".*"))


def test_two_processes_saving_one_run(tmp_path):
    from adaneg_openood.encoding.lock import exclusive

    predictor = Predictor(TinyModel(), labels(), AdaNegConfig(groups=2))

    def hold():
        with exclusive(tmp_path / "run.json"):
            time.sleep(60)

    child = forked(hold)
    while not (tmp_path / ".run.json.lock").exists():
        time.sleep(0.005)
    time.sleep(0.05)
    with pytest.raises(BlockingIOError, match=f"process {child}"):
        predictor.save(tmp_path)
    os.kill(child, signal.SIGKILL)  # a killed holder holds nothing
    ended(child)
    predictor.save(tmp_path)
    assert Predictor.load(tmp_path, TinyModel()).labels.names == predictor.labels.names
    assert not list(tmp_path.glob(".*"))
