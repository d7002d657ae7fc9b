"""Benchmark definitions: what they may say, what is refused, and that they run."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from benchmark_fakes import CLASSES, YAML, make_sweep_data, write_small_benchmark
from PIL import Image

from adaneg_openood import AdaNegConfig
from adaneg_openood.benchmark.check import check, missing, refuse_missing, to_text
from adaneg_openood.benchmark.definition import (
    Mining,
    load_benchmark,
    open_benchmark,
    shipped_benchmarks,
)
from adaneg_openood.benchmark.methods import STANDARD, standard_detectors
from adaneg_openood.benchmark.run import Settings, encode_benchmark, run_benchmark
from adaneg_openood.data import feature_files
from adaneg_openood.demo.run import run_demo
from adaneg_openood.evaluation import Protocol, replay, save_features
from adaneg_openood.openood import compat

SHIPPED = ("bimcv", "cifar10", "cifar100", "demo", "imagenet", "imagenet-four-ood", "imagenet200")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_benchmark(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    root = tmp_path_factory.mktemp("cache")
    return Settings(workers=0, cache=root / "features", text_cache=root / "text")


def written(folder: Path, text: str) -> Path:
    file = folder / "b.yml"
    file.write_text(text)
    return file


def test_a_benchmark_of_files(small: Path, settings: Settings) -> None:
    benchmark = load_benchmark(small)
    assert not missing(check(benchmark, settings.cache)), to_text(check(benchmark, settings.cache))
    results, made = run_benchmark(benchmark, settings)
    assert made.encoded == ("id", "near/creatures", "far/scenes")
    assert results.methods == ["NegLabel", "AdaNeg"] and results.seeds == (3, 5)
    assert results.batch_size == 8
    table = results.table("AdaNeg")
    assert list(table.index) == ["creatures", "nearood", "scenes", "farood"]
    assert list(table["n_ood"]) == [10, 10, 12, 12] and table["n_id"].iloc[0] == 24
    assert made.data.names[:3] == CLASSES and made.names["near/creatures"][3] == "creatures/3/0.png"
    assert made.roots["id"] == small.parent / "images" / "id"
    # the folders chair, cup and house, by their names
    assert made.data.id_labels.tolist() == [label for label in (1, 2, 0) for _ in range(8)]
    again, same = run_benchmark(benchmark, settings, seeds=(3,), batch_size=4)
    assert same.encoded == () and again.batch_size == 4
    assert torch.equal(same.data.id_features, made.data.id_features)


def test_folders_name_the_classes(small: Path, settings: Settings) -> None:
    file = small.with_name("unnamed.yml")
    file.write_text(YAML.replace("classes: [house, chair, cup]\n", ""))
    data = encode_benchmark(load_benchmark(file), settings).data
    assert data.names[:3] == ("chair", "cup", "house")


def test_covariate_shifted_images_count_as_id_if_asked(small: Path, settings: Settings) -> None:
    file = small.with_name("csid.yml")
    file.write_text(YAML + "csid:\n  again: {folder: id, limit: 10}\n")
    plain, full = load_benchmark(file), load_benchmark(file, full_spectrum=True)
    assert len(encode_benchmark(plain, settings).data.id_features) == 24
    assert [item.what for item in check(plain, settings.cache) if item.ok is None] == ["csid"]
    data = encode_benchmark(full, settings).data
    assert len(data.id_features) == len(data.id_labels) == 34
    torch.testing.assert_close(data.id_features[24:], data.id_features[:10])


def test_the_demo_as_a_definition_gives_the_demos_numbers(settings: Settings) -> None:
    benchmark = load_benchmark("demo")
    assert not missing(check(benchmark, settings.cache))
    results, _ = run_benchmark(benchmark, settings, seeds=(0,))
    expected = run_demo(seeds=(0,), progress=False)
    for method in expected.methods:
        np.testing.assert_allclose(results.table(method), expected.table(method), atol=0.35)


def test_the_template_explains_every_key_and_runs(settings: Settings) -> None:
    path = shipped_benchmarks()["template"]
    results, _ = run_benchmark(load_benchmark("template"), settings, seeds=(0,))
    assert results.methods == ["MCM", "NegLabel", "AdaNeg"]
    text = path.read_text("utf-8")
    for key in ("prompts", "text_features", "logit_scale", "csid", "features", "torchvision"):
        assert f"# {key}:" in text or f"#   {key}:" in text, key
    for name in (*(f.name for f in dataclasses.fields(AdaNegConfig)), "huggingface", "full_spectrum"):
        assert f"{name}:" in text, name


def test_shipped_definitions() -> None:
    assert set(shipped_benchmarks()) == {*SHIPPED, "template"}
    for name in SHIPPED:
        benchmark = load_benchmark(name, data="/data")
        assert benchmark.name == name and benchmark.description
        files = [item for item in benchmark.sets if item.kind in ("imglist", "folder")]
        assert all(item.location.startswith("/data/") and item.source for item in files)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagenet200", "imagenet"])
def test_lists_and_order_are_openoods(name: str) -> None:
    if not compat.installed():
        pytest.skip("OpenOOD is not installed: see the README")
    from openood.evaluation_api.datasets import DATA_INFO

    info = DATA_INFO[name]
    benchmark = load_benchmark(name, data="D")
    entries = {"id": info["id"]["test"]}
    entries.update({f"csid/{key}": info["csid"][key] for key in info["csid"]["datasets"]})
    for split in ("near", "far"):
        part = info["ood"][split]
        entries.update({f"{split}/{key}": part[key] for key in part["datasets"]})
    assert [item.title for item in benchmark.sets] == list(entries)
    for item in benchmark.sets:
        assert Path(item.location) == Path("D") / entries[item.title]["imglist_path"]
        assert item.root == Path("D") / entries[item.title]["data_dir"]


def test_check_lists_everything_that_is_missing(tmp_path: Path, small: Path) -> None:
    items = check(load_benchmark("imagenet", data=tmp_path), tmp_path)
    gone = {item.what: item for item in missing(items)}
    assert {"id", "near/ssb_hard", "far/openimage_o"} <= set(gone)
    assert "49000 images" in gone["near/ssb_hard"].mend and "download.sh" in gone["id"].mend

    file = small.with_name("gone.yml")
    file.write_text(YAML.replace("creatures.txt", "lost.txt").replace("negatives.txt", "none.txt"))
    with pytest.raises(FileNotFoundError) as caught:
        refuse_missing(load_benchmark(file), tmp_path)
    assert "near/creatures" in str(caught.value) and "none.txt" in str(caught.value)


def test_check_finds_absent_images_wrong_labels_and_other_counts(tmp_path: Path) -> None:
    file = write_small_benchmark(tmp_path)
    (tmp_path / "images" / "creatures" / "4" / "0.png").unlink()
    file.write_text(
        YAML.replace("[house, chair, cup]", "[house, chair]").replace("images: 12", "images: 9")
    )
    found = {item.what: item for item in check(load_benchmark(file), tmp_path / "cache")}
    assert "1 of 10 image files missing" in found["near/creatures"].found
    assert "cup are no class. The 2 classes of" in found["id"].found
    warned = [item for item in check(load_benchmark(file), tmp_path) if item.ok is None]
    assert "says 9 images, there are 12" in warned[0].found and "nowhere" in warned[0].mend


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("backbone: demo", "bakbone: demo", "unknown key 'bakbone'; did you mean 'backbone'"),
        ("{folder: id}", "{foldr: id}", "b.yml: id: give exactly one of imglist, folder"),
        ("{folder: id}", "{folder: id, imglist: x}", "imglist and folder are there"),
        ("limit: 12", "limt: 12", "far.scenes: unknown key 'limt'; did you mean 'limit'"),
        ("limit: 12", "limit: 0", "far.scenes.limit must be at least 1"),
        ("limit: 12", "limit: many", "limit must be a whole number, got 'many'"),
        ("memory_length: 4", "memory_lenght: 4", "did you mean 'memory_length'"),
        ("memory_length: 4", "memory_length: 0", "methods.AdaNeg: memory_length must be at least 1"),
        ("memory_length: 4", "gamma: 1e-1", "gamma must be a number, got '1e-1'"),
        ("detector: neglabel", "detector: neglable", "did you mean 'neglabel'"),
        ("groups: 2}\n  Ada", "taus: 2}\n  Ada", "methods.NegLabel: unknown key 'taus'"),
        ("seeds: [3, 5]", "seeds: [3, 3]", "seeds must be a list of distinct"),
        ("batch_size: 8", "batch_size: true", "batch_size must be a whole number"),
        ("batch_size: 8", "order: mixt", "order must be one of 'mixed', 'id_first'"),
        ("cup]", "no]", "put names such as no, on and 7 in quotes"),
        ("negatives: negatives.txt\n", "", "no negative labels"),
        ("negatives.txt", "{mine: {corpus: demo, n_negative: 3}}", "did you mean 'n_negatives'"),
        ("negatives.txt", "{mine: {percentile: 2}}", "percentile must be in"),
        ("  scenes:", "  creatures:", "'creatures' is in near, too"),
        ("  scenes:", "  farood:", "set name 'farood'"),
        ("name: small", "features: x.npz", "holds a whole benchmark, so id"),
        ("seeds: [3, 5]", "name: other", "key 'name' is there twice"),
        ("id: {folder: id}", "id: [folder", "not YAML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in YAML
    with pytest.raises(ValueError) as caught:
        load_benchmark(written(tmp_path, YAML.replace(old, new)))
    assert message in str(caught.value) and "b.yml" in str(caught.value)


def test_unknown_benchmark() -> None:
    with pytest.raises(FileNotFoundError, match="did you mean 'imagenet200'"):
        load_benchmark("imagenet20")


def test_no_sets(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no ID set"):
        load_benchmark(written(tmp_path, "far: {x: {folder: y}}"))
    with pytest.raises(ValueError, match="no OOD set"):
        load_benchmark(written(tmp_path, "id: {folder: y}"))
    with pytest.raises(ValueError, match="must be a mapping"):
        load_benchmark(written(tmp_path, "- a"))


def test_paths_are_relative_to_the_file_and_data_overrides(tmp_path: Path, small: Path) -> None:
    benchmark = load_benchmark(small)
    assert Path(benchmark.sets[0].location) == small.parent / "images" / "id"
    assert benchmark.negatives == small.parent / "negatives.txt"
    moved = load_benchmark(small, data=tmp_path)
    assert Path(moved.sets[0].location) == tmp_path / "id"
    assert moved.negatives == small.parent / "negatives.txt"


def test_mining_options(tmp_path: Path) -> None:
    new = "{mine: {corpus: demo, n_negatives: all, match: plural}}"
    benchmark = load_benchmark(written(tmp_path, YAML.replace("negatives.txt", new)))
    assert isinstance(benchmark.negatives, Mining)
    assert benchmark.negatives.config.n_negatives == "all"
    assert benchmark.negatives.config.match == "plural"


def test_a_feature_file_is_a_benchmark(tmp_path: Path) -> None:
    data = make_sweep_data()
    save_features(tmp_path / "bench.npz", data)
    benchmark = open_benchmark(tmp_path / "bench.npz")
    assert benchmark.methods == STANDARD
    assert "60 ID images" in check(benchmark)[0].found
    results, _ = run_benchmark(benchmark, seeds=(0,), batch_size=16)
    expected = replay(
        data, standard_detectors(data), Protocol(seeds=(0,), batch_size=16), progress=False
    )
    assert results.methods == expected.methods
    for method in expected.methods:
        assert results.table(method).equals(expected.table(method))
    file = written(tmp_path, "features: bench.npz\nlogit_scale: 50\nmethods: {M: {detector: mcm}}\n")
    made = encode_benchmark(load_benchmark(file))
    assert made.data.logit_scale == 50 and torch.equal(made.data.id_features, data.id_features)


def test_sets_of_features_need_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_sweep_data()
    np.savez(tmp_path / "text.npz", text_features=data.text_features, n_id=4, logit_scale=20.0)
    np.savez(tmp_path / "id.npz", features=data.id_features, labels=data.id_labels)
    np.save(tmp_path / "near.npy", data.near["alike"].numpy())
    np.savez(tmp_path / "far.npz", features=data.far["other"])
    file = written(
        tmp_path,
        "text_features: text.npz\nid: {features: id.npz}\nnear: {alike: {features: near.npy}}\n"
        "far: {other: {features: far.npz}}\nbatch_size: 16\n",
    )

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("adaneg_openood.benchmark.run.load_model", refuse)
    benchmark = load_benchmark(file)
    assert not missing(check(benchmark, tmp_path))
    results, made = run_benchmark(benchmark)
    assert made.data.logit_scale == 20
    expected = replay(data, standard_detectors(data), Protocol(batch_size=16), progress=False)
    for method in expected.methods:
        np.testing.assert_allclose(results.table(method), expected.table(method), atol=1e-9)
    np.savez(tmp_path / "id.npz", features=data.id_features)
    with pytest.raises(ValueError, match="needs the key labels"):
        encode_benchmark(benchmark)
    np.save(tmp_path / "near.npy", np.ones((3, 5), dtype=np.float32))
    wrong = [item for item in missing(check(benchmark, tmp_path)) if item.what == "widths"]
    assert "near/alike 5" in wrong[0].found and "text_features 16" in wrong[0].found
    (tmp_path / "near.npy").unlink()
    assert [item.what for item in missing(check(benchmark, tmp_path))] == ["near/alike", "labels of id"]


def test_features_of_another_model_are_refused(small: Path, settings: Settings, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    file = small.with_name("mixed.yml")
    file.write_text(
        YAML.replace("{folder: scenes, limit: 12", "{features: other.safetensors, limit: 12")
    )
    place = small.parent / "images" / "other.safetensors"
    save_file({"features": torch.ones(12, 64)}, place, {"adaneg": '{"weights": "0000"}'})
    with pytest.raises(ValueError, match="was made with weights '0000'"):
        encode_benchmark(load_benchmark(file), settings)


def test_torchvision_datasets(tmp_path: Path, small: Path, settings: Settings) -> None:
    file = small.with_name("fake.yml")
    far = "{torchvision: FakeData, args: {size: 5, image_size: [3, 32, 32]}}"
    file.write_text(YAML.replace("{folder: scenes, limit: 12, images: 12, source: nowhere}", far))
    data = encode_benchmark(load_benchmark(file), settings).data
    assert len(data.far["scenes"]) == 5
    file.write_text(file.read_text().replace("FakeData", "FakeDta"))
    with pytest.raises(ValueError, match="did you mean 'FakeData'"):
        encode_benchmark(load_benchmark(file), settings)
    file.write_text(YAML.replace("{folder: id}", "{torchvision: CIFAR10, args: {train: false}}"))
    (gone,) = [item for item in missing(check(load_benchmark(file), tmp_path)) if item.what == "id"]
    assert "CIFAR10" in gone.found
    file.write_text(file.read_text().replace("train: false", "train: false, download: true"))
    (first, *_) = check(load_benchmark(file), tmp_path)
    assert first.ok is None and "torchvision fetches CIFAR10" in first.found
    file.write_text(file.read_text().replace("train: false, download: true", "trian: false"))
    (gone,) = [item for item in missing(check(load_benchmark(file), tmp_path)) if item.what == "id"]
    assert "takes no trian" in gone.found


class FakeHubDataset(list):
    """The part of a Hugging Face dataset that is used."""

    _fingerprint = "f00d"
    features = None

    def __getitem__(self, key):  # type: ignore[no-untyped-def]
        if isinstance(key, str):
            return [item[key] for item in self]
        return super().__getitem__(key)

    def rename_column(self, old: str, new: str) -> FakeHubDataset:
        return FakeHubDataset(
            {new if key == old else key: v for key, v in item.items()} for item in self
        )


def test_hugging_face_datasets(
    small: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    items = [{"pic": Image.new("RGB", (40, 30), (i * 9, 0, 0)), "fine": i % 3} for i in range(9)]
    calls = []

    def load_dataset(name: str, **arguments: object) -> FakeHubDataset:
        calls.append((name, arguments))
        return FakeHubDataset(items)

    fake = ModuleType("datasets")
    fake.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    file = small.with_name("hub.yml")
    new = "{huggingface: someone/things, args: {split: test, image: pic, label: fine}}"
    file.write_text(YAML.replace("{folder: id}", new))
    found = check(load_benchmark(file), tmp_path)
    assert not missing(found) and not calls  # a check fetches nothing
    assert "from the Hugging Face hub" in found[0].found
    data = encode_benchmark(load_benchmark(file), settings).data
    assert calls[0] == ("someone/things", {"split": "test"})
    assert data.id_labels.tolist() == [i % 3 for i in range(9)]

    foreign = small.with_name("code.yml")
    foreign.write_text(
        YAML.replace("{folder: id}", new.replace("split:", "trust_remote_code: true, split:"))
    )
    with pytest.raises(ValueError, match="trust_remote_code would run code"):
        encode_benchmark(load_benchmark(foreign), settings)
    assert len(calls) == 1

    monkeypatch.setitem(sys.modules, "datasets", None)
    (gone,) = missing(check(load_benchmark(file), tmp_path))
    assert gone.what == "id" and "pip install datasets" in gone.found


def test_feature_files_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "bad.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="never pickled"):
        feature_files._read(tmp_path / "bad.npy")
