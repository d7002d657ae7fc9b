"""The cache of encoded images: same bytes in, same entry; anything else, another one."""

from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path

import pytest
import torch
from benchmark_fakes import write_small_benchmark

from adaneg_openood.data import ImageSet
from adaneg_openood.data import feature_store as cache_module
from adaneg_openood.data.feature_store import FeatureCache
from adaneg_openood.demo.model import load_demo_model
from adaneg_openood.io.locks import exclusive


@pytest.fixture(scope="module")
def model():  # type: ignore[no-untyped-def]
    return load_demo_model()


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    write_small_benchmark(tmp_path)
    return opened(tmp_path)


def opened(root: Path) -> ImageSet:
    return ImageSet.of(root / "images" / "id", labelled=True)


def get(folder: Path, model, images: ImageSet):  # type: ignore[no-untyped-def]
    return FeatureCache(folder).get(model, images, workers=0)


def test_encoded_once(tmp_path: Path, model, images: ImageSet) -> None:  # type: ignore[no-untyped-def]
    first = get(tmp_path / "c", model, images)
    second = get(tmp_path / "c", model, opened(tmp_path))
    assert first.fresh and not second.fresh
    assert torch.equal(first.features, second.features)
    assert first.features.shape == (24, 64) and first.labels.tolist() == sorted([0, 1, 2] * 8)
    assert second.names[0] == "chair/0.png"
    (entry,) = FeatureCache(tmp_path / "c").entries()
    assert entry.problem == "" and entry.about["model"] == "demo" and entry.about["images"] == 24


def test_any_change_makes_another_entry(tmp_path: Path, model, images: ImageSet) -> None:  # type: ignore[no-untyped-def]
    get(tmp_path / "c", model, images)
    file = images.base / images.names[0]
    before = file.stat()
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert get(tmp_path / "c", model, opened(tmp_path)).fresh  # the time of change
    file.write_bytes(file.read_bytes() + b"\0")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    images = opened(tmp_path)
    assert get(tmp_path / "c", model, images).fresh  # the size
    other = load_demo_model()
    other.preprocessing = "another"
    assert get(tmp_path / "c", other, images).fresh
    other = load_demo_model()
    other.precision = "bf16"
    assert get(tmp_path / "c", other, images).fresh
    other = load_demo_model()
    with torch.no_grad():
        next(other.model.parameters()).view(-1)[0] += 1e-3
    assert get(tmp_path / "c", other, images).fresh
    assert len(FeatureCache(tmp_path / "c").entries()) == 6


def test_a_flipped_bit_is_found_and_mended(  # type: ignore[no-untyped-def]
    tmp_path: Path, model, images: ImageSet, caplog: pytest.LogCaptureFixture
) -> None:
    first = get(tmp_path / "c", model, images).features.clone()
    (entry,) = FeatureCache(tmp_path / "c").entries()
    file = entry.folder / "features.safetensors"
    whole = file.read_bytes()
    for place in (len(whole) - 5, len(whole) // 2, 9, 0):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        file.write_bytes(damaged)
        (found,) = FeatureCache(tmp_path / "c").verify()
        assert "checksum" in found.problem
        with caplog.at_level(logging.WARNING):
            again = get(tmp_path / "c", model, images)
        assert again.fresh and torch.equal(again.features, first)
        assert "encoded again" in caplog.text
        assert file.read_bytes() == whole
    (found,) = FeatureCache(tmp_path / "c").verify()
    assert found.problem == ""


def test_cut_gone_and_foreign_entries(tmp_path: Path, model, images: ImageSet) -> None:  # type: ignore[no-untyped-def]
    cache = FeatureCache(tmp_path / "c")
    first = get(tmp_path / "c", model, images).features.clone()
    (entry,) = cache.entries()
    file, about = entry.folder / "features.safetensors", entry.folder / "entry.json"
    noted = json.loads(about.read_text())

    def damage_then_mend(message: str) -> None:
        (found,) = cache.verify()
        assert message in found.problem
        again = get(tmp_path / "c", model, images)
        assert again.fresh and torch.equal(again.features, first)

    file.write_bytes(file.read_bytes()[:-1])
    damage_then_mend("bytes instead of")
    file.unlink()
    damage_then_mend("gone")
    about.unlink()
    damage_then_mend("unfinished")
    about.write_text("{")
    damage_then_mend("cannot be read")
    noted["about"]["model"] = "another"
    about.write_text(json.dumps(noted))
    damage_then_mend("foreign")


def test_encoding_is_taken_up_where_it_stopped(  # type: ignore[no-untyped-def]
    tmp_path: Path, model, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = get(tmp_path / "a", model, images)
    encode = cache_module.encode_images

    def small_parts(*args: object, **kwargs: object) -> Path:
        return encode(*args, **{**kwargs, "part_size": 4, "batch_size": 4})  # type: ignore[arg-type]

    monkeypatch.setattr(cache_module, "encode_images", small_parts)
    calls = 0
    original = type(model).encode_image

    def dies(self, pixels):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return original(self, pixels)

    monkeypatch.setattr(type(model), "encode_image", dies)
    with pytest.raises(KeyboardInterrupt):
        get(tmp_path / "b", model, images)
    (entry,) = FeatureCache(tmp_path / "b").entries()
    assert entry.problem == "unfinished"
    again = get(tmp_path / "b", model, images)
    assert calls == 4 + 3  # of six parts, three had been done
    torch.testing.assert_close(again.features, whole.features)


def test_images_that_change_meanwhile_are_refused(  # type: ignore[no-untyped-def]
    tmp_path: Path, model, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = cache_module.encode_images

    def touched(*args: object, **kwargs: object) -> Path:
        file = encode(*args, **kwargs)  # type: ignore[arg-type]
        os.utime(images.base / images.names[3], ns=(0, 0))
        return file

    monkeypatch.setattr(cache_module, "encode_images", touched)
    with pytest.raises(ValueError, match="changed while they were encoded"):
        get(tmp_path / "c", model, images)
    assert [entry.problem for entry in FeatureCache(tmp_path / "c").entries()] == ["unfinished"]


def test_a_model_without_weights_hash_trusts_nothing(tmp_path: Path, images: ImageSet) -> None:
    class Plain:
        name, dim, logit_scale, device = "plain", 4, 100.0, torch.device("cpu")

        def preprocess(self, image):  # type: ignore[no-untyped-def]
            return torch.zeros(3, 2, 2)

        def encode_image(self, pixels):  # type: ignore[no-untyped-def]
            return torch.ones(len(pixels), 4) / 2

    assert get(tmp_path / "c", Plain(), images).fresh
    assert get(tmp_path / "c", Plain(), images).fresh


def test_prune(tmp_path: Path, model, images: ImageSet) -> None:  # type: ignore[no-untyped-def]
    cache = FeatureCache(tmp_path / "c")
    keys = []
    for number in range(3):
        os.utime(images.base / images.names[0], ns=(0, number))
        get(tmp_path / "c", model, opened(tmp_path))
        entry = next(e for e in cache.entries() if e.key not in keys)
        keys.append(entry.key)
        os.utime(entry.folder / "entry.json", (0, 1e9 + number * 86_400))
    assert [entry.key for entry in cache.entries()] == keys[::-1]
    assert [entry.key for entry in cache.prune(older_than_days=1, dry_run=True)] == keys[::-1]
    size = cache.entries()[0].size
    assert [entry.key for entry in cache.prune(max_bytes=2 * size)] == [keys[0]]
    (cache.folder / keys[1] / "features.safetensors").write_bytes(b"no")
    assert [entry.key for entry in cache.prune(damaged=True)] == [keys[1]]
    assert [entry.key for entry in cache.prune(everything=True)] == [keys[2]]
    assert cache.entries() == []


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ADANEG_CACHE", str(tmp_path))
    assert FeatureCache().folder == tmp_path / "features"
    assert FeatureCache().entries() == []


def test_prune_leaves_what_is_being_made(tmp_path: Path, model, images: ImageSet) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("fcntl")
    cache = FeatureCache(tmp_path / "c")
    get(cache.folder, model, images)
    (entry,) = cache.entries()
    pruned = []
    with exclusive(entry.folder / "entry.json"):
        other = threading.Thread(target=lambda: pruned.extend(cache.prune(everything=True)))
        other.start()
        other.join()
    assert pruned == []
    assert len(cache.prune(everything=True)) == 1
