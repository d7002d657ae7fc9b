"""Full disks and read-only folders: an OSError with the file's name, and what was there is as it was."""

from __future__ import annotations

import os
import subprocess

import pytest
from fault_tools import TinyModel, detection, file_limit, full_disk, labels, snapshot, write_images

from adaneg_openood.data import ImageSet, encode_to_file
from adaneg_openood.demo.benchmark import image_set
from adaneg_openood.evaluation import Protocol, replay, save_features
from adaneg_openood.predictor import Predictor
from adaneg_openood.text import NegativeLabels, TextCache

IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return ImageSet.of(write_images(tmp_path_factory.mktemp("disk") / "images", 40))


@pytest.fixture(scope="module")
def writers(source):
    """Everything that is written, by name: (folder, whether it is the second version) -> None."""
    detectors, data = detection()
    results = replay(data, detectors, Protocol(seeds=(0, 1, 2, 3), batch_size=64), progress=False)
    predictor = Predictor(TinyModel(), labels(), "adaneg", {"groups": 2})
    words = NegativeLabels(tuple(f"word {n}" for n in range(900)), ("noun",) * 900)
    cache_names = [f"name {n}" for n in range(40)]

    def encode(folder, **options):
        options = {"batch_size": 8, "workers": 0, "overwrite": True, **options}
        encode_to_file(source, folder / "x.safetensors", model=TinyModel(), **options)

    return {
        "encode": encode,
        "encode in parts": lambda folder: encode(folder, part_size=16),
        "predictor": lambda folder: predictor.save(folder),
        "results json": lambda folder: results.to_json(folder / "results.json"),
        "results csv": lambda folder: results.to_csv(folder / "results.csv"),
        "features": lambda folder: save_features(folder / "all.npz", data),
        "negatives": lambda folder: words.save(folder / "negatives.txt"),
        "labels": lambda folder: labels().save(folder),
        "text cache": lambda folder: TextCache(folder).put(
            TinyModel(), ["{}"], cache_names, labels().features
        ),
    }


NAMES = (
    "encode", "encode in parts", "predictor", "results json", "results csv", "features", "negatives",
    "labels", "text cache",
)  # fmt: skip


def without_parts(files):
    """Finished parts and their plan may stay: they are whole, and save work."""
    return {name: content for name, content in files.items() if ".parts/" not in name}


def refused(write, folder, files_before):
    with pytest.raises(OSError) as caught:
        write(folder)
    assert without_parts(snapshot(folder)) == files_before
    assert not [name for name in snapshot(folder) if name.endswith((".tmp", ".lock"))]
    return str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_system_refuses_the_bytes(writers, tmp_path, name):
    with file_limit(1000):
        message = refused(writers[name], tmp_path, {})
    assert message
    writers[name](tmp_path)  # room again
    before = snapshot(tmp_path)
    assert before
    if name != "predictor":  # a second save of the same state writes predictor.json alone
        with file_limit(1000):
            refused(writers[name], tmp_path, before)


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize("name", NAMES)
def test_disk_is_full_at_the_last_moment(writers, tmp_path, monkeypatch, name, call):
    writers[name](tmp_path)
    before = snapshot(tmp_path)
    with full_disk(monkeypatch, call):
        assert "No space left" in refused(writers[name], tmp_path, before)


def test_a_full_file_system(writers, tmp_path):
    """A real one, 24 kB small."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(disk)]
    if not IS_ROOT or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs needs to be root, in a container that allows it")
    try:
        (disk / "filler").write_bytes(b"x" * 20_000)
        for name in ("encode", "predictor", "results json", "features"):
            message = refused(writers[name], disk, {"filler": b"x" * 20_000})
            assert "space" in message.lower() or "28" in message, message
            for left in disk.glob("*.parts/*"):
                left.unlink()
        (disk / "filler").unlink()
        writers["results json"](disk)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(IS_ROOT, reason="root may write into read-only folders; run the tests as a user")
@pytest.mark.parametrize("name", NAMES)
def test_read_only_folder(writers, tmp_path, name):
    folder = tmp_path / "kept"
    folder.mkdir(mode=0o555)
    assert str(folder) in refused(writers[name], folder, {})


@pytest.mark.parametrize("name", NAMES)
def test_read_only_file_system(writers, tmp_path, name):
    """As root, too: the mount itself is read-only."""
    folder = tmp_path / "kept"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)]
    if not IS_ROOT or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs needs to be root, in a container that allows it")
    try:
        assert str(folder) in refused(writers[name], folder, {})
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_world_that_cannot_be_drawn(tmp_path):
    """Images are drawn into the cache when a command first asks for the demo."""
    with file_limit(100), pytest.raises(OSError, match=r"too large: '.*/demo/demo-world-\d+'"):
        image_set("digits", tmp_path)
    assert snapshot(tmp_path) == {}
    assert len(image_set("digits", tmp_path)) == 150
