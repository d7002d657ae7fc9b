"""kill -9 and Ctrl-C: results are complete or absent, and work goes on where it stopped."""

from __future__ import annotations

import json
import os
import signal
import time

import fault_children
import numpy as np
import pytest
from fault_children import encode, killed_after, start
from fault_tools import TinyModel, write_images
from safetensors.torch import load_file

from adaneg_openood.evaluation import load_features, save_features
from adaneg_openood.predictor import Predictor

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork to start processes cheaply")

DELAYS = np.random.default_rng(0).uniform(0.0, 0.05, 20)  # seconds until the kill
GUARD = 120


def wait_for(path):
    end = time.monotonic() + GUARD
    while not path.exists():
        assert time.monotonic() < end, f"{path} does not appear"
        time.sleep(0.005)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_encode_killed_again_and_again(tmp_path):
    write_images(tmp_path / "images")
    whole = encode(tmp_path, "whole.safetensors")
    out = tmp_path / "out" / "a.safetensors"
    codes = []
    for delay in (0.02, 0.0, 0.05, 0.03, 0.01):
        codes.append(killed_after(delay, signal.SIGKILL, encode, tmp_path, "out/a.safetensors", 0.02))
        assert not out.exists() or out.read_bytes() == whole.read_bytes()
        for part in out.parent.glob("a.safetensors.parts/[!.]*.safetensors"):
            load_file(part)  # a part that is there is whole
    assert -signal.SIGKILL in codes
    encode(tmp_path)
    assert out.read_bytes() == whole.read_bytes()
    assert names_in(out.parent) == ["a.safetensors"]  # no parts, no lock, no leftovers


def test_predictor_save_killed_leaves_the_last_complete_save(tmp_path):
    made = {f"run {seed} name 0": fault_children.saved_predictor(seed) for seed in (0, 1)}
    made["run 0 name 0"].save(tmp_path)
    for delay in DELAYS:
        code = killed_after(0.02 + delay, signal.SIGKILL, fault_children.save_in_turn, tmp_path)
        assert code == -signal.SIGKILL
        found = Predictor.load(tmp_path, TinyModel())
        # names, text features and memory of one save, never of two
        expected = made[found.labels.names[0]].detector.state_dict()
        for name, value in found.detector.state_dict().items():
            assert np.array_equal(value.numpy(), expected[name].numpy()), name
    made["run 1 name 0"].save(tmp_path)  # and leftovers go with the next save
    assert len(list(tmp_path.glob("state-*.safetensors"))) == 1
    assert len(names_in(tmp_path)) == 2


def test_results_killed_are_old_or_new(tmp_path):
    made = fault_children.two_results()
    known = [json.loads(json.dumps(result.to_dict())) for result, _ in made]
    made[0][0].to_json(tmp_path / "results.json")
    save_features(tmp_path / "features.npz", made[0][1])
    seen = set()
    for delay in DELAYS[:6]:
        code = killed_after(0.6 + delay, signal.SIGKILL, fault_children.write_in_turn, tmp_path)
        assert code == -signal.SIGKILL
        seen.add(known.index(json.loads((tmp_path / "results.json").read_text())))
        assert set(load_features(tmp_path / "features.npz").far) in ({"c"}, set())
    assert seen <= {0, 1}


def test_ctrl_c_leaves_no_partial_file(tmp_path):
    write_images(tmp_path / "images")
    out = tmp_path / "out" / "a.safetensors"
    code = killed_after(0.15, signal.SIGINT, encode, tmp_path, "out/a.safetensors", 0.1)
    assert code == 130 and not out.exists()
    # no temporary file and no lock; finished parts are kept, for the next run
    assert not list(out.parent.rglob(".*"))
    kept = {path.name for path in out.parent.rglob("*") if path.is_file()}
    assert all(len(name) == len("0" * 32 + ".safetensors") for name in kept)
    encode(tmp_path)
    assert names_in(out.parent) == ["a.safetensors"]


def test_two_processes_on_one_output(tmp_path):
    write_images(tmp_path / "images")
    child = start(encode, tmp_path, "out/a.safetensors", 0.3)
    wait_for(tmp_path / "out" / "a.safetensors.parts")
    with pytest.raises(BlockingIOError, match=rf"process {child.pid} on .* is writing it; wait for it"):
        encode(tmp_path)
    child.join(GUARD)
    assert child.exitcode == 0
    whole = (tmp_path / "out" / "a.safetensors").read_bytes()
    encode(tmp_path)  # is there already
    assert (tmp_path / "out" / "a.safetensors").read_bytes() == whole
    assert names_in(tmp_path / "out") == ["a.safetensors"]


def test_two_processes_saving_one_run(tmp_path):
    predictor = fault_children.saved_predictor(0)
    child = start(fault_children.hold, tmp_path)
    wait_for(tmp_path / ".predictor.json.lock")
    time.sleep(0.05)
    with pytest.raises(BlockingIOError, match=f"process {child.pid}"):
        predictor.save(tmp_path)
    os.kill(child.pid, signal.SIGKILL)  # a killed holder holds nothing
    child.join(GUARD)
    predictor.save(tmp_path)
    assert Predictor.load(tmp_path, TinyModel()).labels.names == predictor.labels.names
    assert len(names_in(tmp_path)) == 2
