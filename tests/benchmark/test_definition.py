"""Benchmark definitions: what they may say, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmark_fakes import YAML, write_small_benchmark

from adaneg_openood.benchmark.definition import Benchmark, benchmark_schema, read_benchmark
from adaneg_openood.benchmark.labels import mining_of, named_classes
from adaneg_openood.benchmark.settings import LabelSettings, NameSettings
from adaneg_openood.detectors import DETECTORS, default_settings
from adaneg_openood.io.configuration import shipped
from adaneg_openood.openood import compat
from adaneg_openood.text.classnames import class_names
from adaneg_openood.text.recipes import RECIPES

SHIPPED = ("bimcv", "cifar10", "cifar100", "demo", "imagenet", "imagenet-four-ood", "imagenet200")


def read(folder: Path, text: str) -> Benchmark:
    file = folder / "b.yml"
    file.write_text(text)
    return read_benchmark(file)


def test_shipped_definitions() -> None:
    assert set(shipped("benchmarks")) == {*SHIPPED, "template"}
    for name in SHIPPED:
        benchmark = read_benchmark(name, data="/data")
        assert benchmark.name == name and benchmark.description
        for part in benchmark.sets:
            if part.definition.kind in ("imglist", "folder"):
                assert part.definition.location.startswith("/data/") and part.definition.source


def test_the_template_explains_every_key() -> None:
    text = shipped("benchmarks")["template"].read_text("utf-8")
    for key in Benchmark.model_fields:
        assert f"\n{key}:" in text or f"\n# {key}:" in text, key
    for key in default_settings("adaneg"):
        assert f"    {key}:" in text, key


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagenet200", "imagenet"])
def test_lists_and_order_are_openoods(name: str) -> None:
    if not compat.installed():
        pytest.skip("OpenOOD is not installed: see the README")
    from openood.evaluation_api.datasets import DATA_INFO

    info = DATA_INFO[name]
    benchmark = read_benchmark(name, data="D").changed(full_spectrum=True)
    entries = {"id": info["id"]["test"]}
    entries.update({f"csid/{key}": info["csid"][key] for key in info["csid"]["datasets"]})
    for split in ("near", "far"):
        part = info["ood"][split]
        entries.update({f"{split}/{key}": part[key] for key in part["datasets"]})
    assert [part.title for part in benchmark.sets] == list(entries)
    for part in benchmark.sets:
        assert part.definition.imglist == Path("D").absolute() / entries[part.title]["imglist_path"]
        assert part.definition.root == Path("D").absolute() / entries[part.title]["data_dir"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("model: demo", "modl: demo", "unknown key 'modl'; did you mean 'model'"),
        ("model: demo", "backbone: demo", "unknown key 'backbone'; it is now called model"),
        ("{folder: id}", "{foldr: id}", "b.yml: id: give exactly one of imglist, folder"),
        ("{folder: id}", "{folder: id, imglist: x}", "imglist and folder are there"),
        ("{folder: id}", "{folder: id, root: x}", "root belongs to imglist and torchvision"),
        ("{folder: id}", "3", "id must be a mapping, key: value, got 3"),
        ("limit: 12", "limt: 12", "far.scenes: unknown key 'limt'; did you mean 'limit'"),
        ("limit: 12", "limit: 0", "far.scenes.limit must be at least 1, got 0"),
        ("limit: 12", "limit: many", "far.scenes.limit must be a whole number, got 'many'"),
        ("memory_length: 4", "memory_lenght: 4", "did you mean 'memory_length'"),
        ("memory_length: 4", "memory_length: 0", "methods.AdaNeg: memory_length must be at least 1"),
        ("memory_length: 4", "gamma: much", "methods.AdaNeg: gamma must be a number, got 'much'"),
        ("memory_length: 4", "proxy: tsk", "methods.AdaNeg: proxy must be one of"),
        ("detector: neglabel", "detector: neglable", "did you mean 'neglabel'"),
        ("groups: 2}\n  Ada", "taus: 2}\n  Ada", "methods.NegLabel: unknown key 'taus'"),
        ("{detector: neglabel, groups: 2}", "{groups: 2}", "methods.NegLabel: detector is missing"),
        ("seeds: [3, 5]", "seeds: [3, 3]", "seeds must be a list of distinct"),
        ("batch_size: 8", "batch_size: true", "batch_size must be a number, got True"),
        ("batch_size: 8", "order: mixt", "order must be one of 'mixed', 'id_first', got 'mixt'"),
        ("cup]", "no]", "put names such as no, on and 7 in quotes"),
        ("negatives.txt", "{mine: {corpus: demo}}", "negatives must be a file; mining has keys"),
        ("negatives: negatives.txt", "percentile: 2", "percentile must be at most 1, got 2"),
        ("negatives: negatives.txt", "n_negatives: 0", "must be a whole number from 1, or all"),
        ("negatives: negatives.txt", "prompt: nothing", "prompt: 'nothing' is no prompt"),
        ("  scenes:", "  creatures:", "far: set 'creatures' is in near, too"),
        ("  scenes:", "  farood:", "far: set name 'farood'"),
        ("name: small", "features: x.npz", "holds a whole benchmark, so classes, far, id"),
        ("seeds: [3, 5]", "name: other", "key 'name' is there twice"),
        ("id: {folder: id}", "id: [folder", "not YAML"),
        ("data: images", "data: [images]", "data must be a path"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in YAML
    with pytest.raises(ValueError) as caught:
        read(tmp_path, YAML.replace(old, new))
    assert message in str(caught.value) and "b.yml" in str(caught.value)


def test_unknown_benchmark_and_no_sets(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="did you mean 'imagenet200'"):
        read_benchmark("imagenet20")
    for text, message in (
        ("far: {x: {folder: y}}", "no ID set"),
        ("id: {folder: y}", "no OOD set"),
        ("- a", "must be a mapping"),
        ("", "must be a mapping"),
    ):
        with pytest.raises(ValueError, match=message):
            read(tmp_path, text)


def test_free_keys_and_numbers_as_text(tmp_path: Path) -> None:
    new = "x-mine: &far {detector: mcm}\nseeds: 2\nlogit_scale: 1e2\n"
    made = read(tmp_path, YAML.replace("seeds: [3, 5]\n", new))
    assert made.seeds == (0, 1) and made.logit_scale == 100.0


def test_paths_are_relative_to_the_file_and_data_overrides(tmp_path: Path) -> None:
    small = write_small_benchmark(tmp_path / "small")
    benchmark = read_benchmark(small)
    assert benchmark.id is not None and benchmark.id.folder == small.parent / "images" / "id"
    assert benchmark.negatives == small.parent / "negatives.txt"
    moved = read_benchmark(small, data=tmp_path)
    assert moved.id is not None and moved.id.folder == tmp_path / "id"
    assert moved.negatives == benchmark.negatives


@pytest.mark.parametrize(
    ("written", "names"),
    [("CIFAR-10", "cifar10"), ("ImageNet-1k", "imagenet1k"), ("imagenet_200", "imagenet200")],
)
def test_benchmarks_names_are_those_that_class_names_takes(written: str, names: str) -> None:
    settings = NameSettings(classes=written)
    assert settings.classes == names
    assert named_classes(settings, "a test") == class_names(written)


def test_mining_follows_the_recipes(tmp_path: Path) -> None:
    assert LabelSettings.model_json_schema()["properties"]["mining"]["enum"] == list(RECIPES)
    new = "corpus: demo\nn_negatives: all\nmatch: plural\nmining: csp\npercentile: 0.9"
    mining = mining_of(read(tmp_path, YAML.replace("negatives: negatives.txt", new)))
    assert mining.config.n_negatives == "all" and mining.config.match == "plural"
    assert mining.config.recipe == "csp" and mining.config.percentile == 0.9
    assert mining.corpus.source == "demo"  # type: ignore[union-attr]


def test_released_settings_and_all_of_them(tmp_path: Path) -> None:
    made = read(tmp_path, YAML.replace("memory_length: 4", "released: true, gap: 0"))
    settings = made.methods["AdaNeg"].to_dict()
    assert settings["beta"] == 5 and settings["gap"] == 0.0 and settings["memory_length"] == 10
    assert made.method("neglabel").settings == {} and made.method("NegLabel").settings == {"groups": 2}
    with pytest.raises(ValueError, match="method must be one of 'NegLabel', 'AdaNeg', 'mcm'"):
        made.method("NegLable")


def test_the_json_schema_knows_every_key_and_detector() -> None:
    schema = json.loads(json.dumps(benchmark_schema()))
    assert set(schema["properties"]) == set(Benchmark.model_fields)
    assert schema["additionalProperties"] is False and "^x-" in schema["patternProperties"]
    alternatives = schema["properties"]["methods"]["additionalProperties"]["oneOf"]
    assert [one["properties"]["detector"]["const"] for one in alternatives] == list(DETECTORS)
    assert all("description" in own for own in schema["properties"].values())
