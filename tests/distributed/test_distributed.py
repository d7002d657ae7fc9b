"""Several processes: the same bytes, errors that reach all, and nothing lost to a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import ranks
import torch
import typer
from launch import GUARD, outcomes, start
from PIL import Image
from safetensors.torch import load_file

from adaneg_openood.cli.common import readable_errors
from adaneg_openood.data import ImageSet, encode_to_file, read_feature_header
from adaneg_openood.evaluation import Protocol, Run, replay
from adaneg_openood.io.processes import ALONE, Group, local_device, process_group

N_IMAGES = 47  # 8 parts of 2 batches of 3, the last of 5 images


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    for name in ("images", "broken"):
        (root / name).mkdir()
        for number in range(N_IMAGES):
            pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:02d}.png")
    (root / "broken" / "31.png").write_bytes(b"no image")
    return root / "images"


@pytest.fixture(scope="module")
def alone(images):
    """What one process without torchrun writes."""
    out = images.parent / "alone.safetensors"
    source = ImageSet.of(images)
    encode_to_file(source, out, model=ranks.TinyModel(), batch_size=3, part_size=6, workers=0)
    return out


@pytest.fixture(scope="module")
def told(images):
    out = images.parent / "world4"
    names = ("whole", "broken", "other_model", "no_folder", "share", "share_fails", "evaluated")
    return outcomes(start(4, images, out, *names), out), out


def test_any_number_of_processes_writes_the_same_bytes(told, alone, images):
    by_rank, out = told
    assert {part["whole"]["value"] for part in by_rank} == {str(out / "whole.safetensors")}
    assert (out / "whole.safetensors").read_bytes() == alone.read_bytes()
    assert read_feature_header(alone)["names"] == [f"{number:02d}.png" for number in range(N_IMAGES)]
    model = ranks.TinyModel()
    pixels = torch.stack(
        [model.preprocess(Image.open(images / f"{n:02d}.png")) for n in range(N_IMAGES)]
    )
    torch.testing.assert_close(load_file(alone)["features"], model.encode_image(pixels))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing(images, alone, tmp_path, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out = tmp_path / "a.safetensors"
        source = ImageSet.of(images)
        encode_to_file(source, out, model=ranks.TinyModel(), batch_size=3, part_size=6, workers=0)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert out.read_bytes() == alone.read_bytes()


def test_an_error_on_one_rank_is_raised_on_all(told):
    by_rank, out = told
    for name, kind, text in (
        ("broken", "ValueError", "31.png"),
        ("other_model", "ValueError", f"rank {len(by_rank) - 1} has weights 'seed 1'"),
        ("share_fails", None, "job 1 has no file"),
        ("no_folder", None, "nosuch: no such folder"),
    ):
        assert all(text in part[name]["text"] for part in by_rank), by_rank
        kinds = {part[name]["error"] for part in by_rank}
        assert kinds == {kind} if kind else kinds == {"FileNotFoundError", "OSError"}
    assert not (out / "broken.safetensors").exists() and not (out / "other.safetensors").exists()
    # what was encoded before the error is kept, and no lock is left
    assert len(list((out / "broken.safetensors.parts").glob("*.safetensors"))) >= 1
    assert not list(out.glob(".*"))


def test_the_others_stop_soon_after_one_fails(told):
    by_rank, out = told
    started = [json.loads((out / f"started{rank}.json").read_text()) for rank in range(len(by_rank))]
    assert sum(map(len, started)) < 200


def test_shared_jobs_are_done_once_and_answered_in_order(told):
    by_rank, _ = told
    answers, none, numbers = by_rank[0]["share"]["value"]
    assert [answer["job"] for answer in answers] == list(range(13))
    assert none == [] and numbers == list(range(len(by_rank)))
    assert len({answer["by"] for answer in answers}) > 1
    assert all(part["share"] == by_rank[0]["share"] for part in by_rank)


def test_a_shared_replay_is_that_of_one_process_bit_for_bit(told):
    by_rank, out = told
    detectors, data = ranks.detection()
    protocol = Protocol(seeds=(0, 1, 5), batch_size=16)
    whole = replay(data, detectors, protocol, progress=False, watch_bank=True)
    expected = [whole.records.to_csv(index=False), list(whole.warnings), ranks.scores_digest(whole)]
    assert all(part["evaluated"]["value"] == expected for part in by_rank)
    # every rank wrote its own streams, and together they are a whole run
    saved = Run.load(out / "scores")
    assert ranks.scores_digest(saved) == expected[-1]


def wait_for_parts(folder, number):
    end = time.monotonic() + GUARD
    while len(list(folder.glob("*.safetensors"))) < number:
        assert time.monotonic() < end, "no part was written"
        time.sleep(0.01)


def test_killed_rank_ends_the_others_and_nothing_is_lost(images, alone, tmp_path):
    out = tmp_path / "slow.safetensors"
    parts = tmp_path / "slow.safetensors.parts"
    processes = start(2, images, tmp_path, "slow")
    wait_for_parts(parts, 2)
    processes[1].send_signal(signal.SIGKILL)
    # no hang: the first rank notices, and reports instead of writing an incomplete file
    _, stderr = processes[0].communicate(timeout=GUARD)
    processes[1].communicate()
    told = (
        json.loads((tmp_path / "rank0.json").read_text())["slow"] if not processes[0].returncode else {}
    )
    assert processes[0].returncode != 0 or "error" in told, stderr
    assert not out.exists()
    # then all of three ranks are killed
    processes = start(3, images, tmp_path, "slow")
    wait_for_parts(parts, 5)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.communicate()
    assert not out.exists()
    kept = sum(len(load_file(file)["kept"]) for file in parts.glob("*.safetensors"))
    # and one process without torchrun finishes their work, without doing any part twice
    seen = []

    class Counted(ranks.TinyModel):
        def encode_image(self, pixels):
            seen.append(len(pixels))
            return super().encode_image(pixels)

    source = ImageSet.of(images)
    encode_to_file(source, out, model=Counted(), batch_size=3, part_size=6, workers=0)
    assert out.read_bytes() == alone.read_bytes()
    assert sum(seen) == N_IMAGES - kept
    assert not parts.exists() and not list(tmp_path.glob(".*"))


def test_torchrun_and_the_command_line(images, tmp_path):
    """The command as documented, with the embedded demo model and the threads torchrun gives."""
    many, one = tmp_path / "many" / "x.safetensors", tmp_path / "one" / "x.safetensors"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    command += ["-m", "adaneg_openood", "encode", str(images), "--out", str(many), "--model", "demo"]
    command += ["--ood", "--workers", "0", "--batch-size", "4", "--part-size", "8"]
    env = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    made = subprocess.run(
        command, env={**env, "GLOO_SOCKET_IFNAME": "lo"}, capture_output=True, text=True, timeout=GUARD
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout.count("written") == 1
    encode_to_file(images, one, model="demo", labelled=False, batch_size=4, workers=0, progress=False)
    assert many.read_bytes() == one.read_bytes()


@pytest.mark.parametrize(("rank", "said"), [("0", 1), ("1", 0)])
def test_a_mistake_is_told_once_by_the_first_rank(monkeypatch, capsys, rank, said):
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(typer.Exit), readable_errors():
        raise ValueError("no such thing")
    assert capsys.readouterr().err.count("error: no such thing") == said


def test_a_lone_process_is_a_group_of_one(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with process_group() as group:
        assert group is ALONE and group.is_first
        assert group.share([1, 2], lambda job: job * 2) == [2, 4]
    with pytest.raises(KeyError):
        Group().first(lambda: {}["x"])


def test_each_local_rank_takes_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert local_device("cuda") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "6")
    assert [local_device(name) for name in ("cuda", "cuda:1", "cpu")] == ["cuda:2", "cuda:1", "cpu"]


def test_without_partners_the_group_fails_with_words(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(OSError, match="start them with torchrun"), process_group():
        pass
