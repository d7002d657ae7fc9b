"""Opening benchmarks, checking them, and running them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from benchmark_fakes import CLASSES, YAML, make_sweep_data, write_small_benchmark
from PIL import Image

from adaneg_openood.benchmark.definition import Benchmark, read_benchmark
from adaneg_openood.benchmark.methods import STANDARD, standard_detectors
from adaneg_openood.benchmark.opening import OpenBenchmark, open_benchmark, to_text
from adaneg_openood.benchmark.run import EncodeOptions, Encoding, encode_benchmark, run_benchmark
from adaneg_openood.data.feature_files import write_feature_file
from adaneg_openood.evaluation import Protocol, replay, save_features

OPTIONS = EncodeOptions(workers=0)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_benchmark(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADANEG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def written(small: Path, *changes: tuple[str, str], more: str = "") -> Benchmark:
    """The small benchmark with some of its text replaced."""
    text = YAML
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file = small.with_name("changed.yml")
    file.write_text(text + more)
    return read_benchmark(file)


def looked_at(benchmark: Benchmark) -> OpenBenchmark:
    return open_benchmark(benchmark, fetch=False)


def problems(benchmark: Benchmark) -> dict[str, str]:
    return {item.what: item.found for item in looked_at(benchmark).missing()}


def encoded(benchmark: Benchmark) -> Encoding:
    return encode_benchmark(open_benchmark(benchmark), OPTIONS)


def test_a_benchmark_of_files(small: Path) -> None:
    opened = open_benchmark(read_benchmark(small))
    assert not opened.missing(), to_text(opened.items)
    run, made = run_benchmark(opened, OPTIONS)
    assert made.encoded == ("id", "near/creatures", "far/scenes")
    assert run.methods == ["NegLabel", "AdaNeg"] and run.seeds == (3, 5) and run.batch_size == 8
    table = run.table("AdaNeg")
    assert list(table.index) == ["creatures", "nearood", "scenes", "farood"]
    assert list(table["n_ood"]) == [10, 10, 12, 12] and table["n_id"].iloc[0] == 24
    assert made.data.names is not None and made.data.names[:3] == CLASSES
    assert made.images["near/creatures"].names[3] == "creatures/3/0.png"
    assert made.data.id_labels.tolist() == [1] * 8 + [2] * 8 + [0] * 8  # folders by name
    again, same = run_benchmark(open_benchmark(read_benchmark(small).changed(batch_size=4)), OPTIONS)
    assert same.encoded == () and again.batch_size == 4
    assert torch.equal(same.data.id_features, made.data.id_features)


def test_folders_name_the_classes(small: Path) -> None:
    made = encoded(written(small, ("classes: [house, chair, cup]\n", "")))
    assert made.data.names is not None and made.data.names[:3] == ("chair", "cup", "house")


def test_covariate_shifted_images_count_as_id_if_asked(small: Path) -> None:
    plain = written(small, more="csid:\n  again: {folder: id, limit: 10}\n")
    assert len(encoded(plain).data.id_features) == 24
    assert [item.what for item in looked_at(plain).items if item.ok is None] == ["csid"]
    data = encoded(plain.changed(full_spectrum=True)).data
    assert len(data.id_features) == len(data.id_labels) == 34
    torch.testing.assert_close(data.id_features[24:], data.id_features[:10])


def test_a_method_that_takes_a_corpus_gets_every_word(small: Path, caplog) -> None:
    tanl = ("AdaNeg: {detector: adaneg, groups: 2, memory_length: 4}", "TANL: {detector: tanl}")
    mined = "negatives: negatives.txt"
    benchmark = written(small, tanl, (mined, "corpus: demo\nn_negatives: 40"))
    made = encoded(benchmark)
    assert made.labels.n_negatives == 40
    rows = made.detectors(benchmark.methods)["TANL"].text_features
    whole = encoded(written(small, tanl, (mined, "corpus: demo\nn_negatives: all")))
    assert whole.labels.n_negatives > 80 and torch.equal(rows, whole.data.text_features)
    assert made.provenance["corpus"] == whole.provenance["labels"] and not caplog.records
    encoded(written(small, tanl))
    assert "TANL: chooses its negatives among the listed ones, not in a whole corpus" in caplog.text


def test_the_template_runs() -> None:
    opened = open_benchmark(read_benchmark("template").changed(seeds=(0,)))
    run, made = run_benchmark(opened, OPTIONS)
    assert run.methods == ["MCM", "NegLabel", "AdaNeg"] and len(made.data.text_features) == 80


def test_check_lists_everything_that_is_missing(tmp_path: Path, small: Path) -> None:
    gone = {item.what: item for item in looked_at(read_benchmark("imagenet", data=tmp_path)).missing()}
    assert {"id", "near/ssb_hard", "far/openimage_o"} <= set(gone)
    assert "49000 images" in gone["near/ssb_hard"].mend and "download.sh" in gone["id"].mend
    broken = written(small, ("creatures.txt", "lost.txt"), ("negatives.txt", "none.txt"))
    with pytest.raises(FileNotFoundError) as caught:
        open_benchmark(broken).refuse_missing()
    assert "near/creatures" in str(caught.value) and "none.txt" in str(caught.value)
    with pytest.raises(FileNotFoundError, match="not complete"):
        run_benchmark(open_benchmark(broken))


def test_check_finds_absent_images_and_other_counts(tmp_path: Path) -> None:
    file = write_small_benchmark(tmp_path)
    (tmp_path / "images" / "creatures" / "4" / "0.png").unlink()
    changed = written(file, ("images: 12", "images: 9"))
    assert "1 of 10 image files missing" in problems(changed)["near/creatures"]
    warned = [item for item in looked_at(changed).items if item.ok is None]
    assert "says 9 images, there are 12" in warned[0].found and "nowhere" in warned[0].mend
    lenient = changed.changed(skip_broken=True)
    assert not problems(lenient)
    assert len(encoded(lenient).data.near["creatures"]) == 9


@pytest.mark.parametrize(
    ("changes", "what", "message"),
    [
        ([("model: demo", "model: open_clip:ViT-B-61/openai")], "model", "unknown architecture"),
        ([("model: demo", "model: open_clip:ViT-B-32/opnai")], "model", "neither a file nor a tag"),
        ([("model: demo", "model: resnet:50")], "model", "unknown kind of model 'resnet'"),
        ([("{folder: scenes, limit: 12", "{folder: id, limit: 12")], "far/scenes", "are in id, too"),
        (
            [("{folder: scenes, limit: 12", "{folder: creatures, limit: 12")],
            "far/scenes",
            "10 of its 10 images are in near/creatures, too",
        ),
        ([("[house, chair, cup]", "[house, chair]")], "id", "cup"),
        ([("groups: 2, memory", "groups: 9, memory")], "methods.AdaNeg", "cannot form 9 groups"),
        ([("negatives: negatives.txt", "corpus: nowhere")], "negatives", "nowhere"),
    ],
)
def test_check_sees_what_will_fail(
    small: Path, changes: list[tuple[str, str]], what: str, message: str
) -> None:
    found = problems(written(small, *changes))
    assert what in found and message in found[what], found


def test_a_class_named_twice_is_said(small: Path) -> None:
    opened = looked_at(written(small, ("[house, chair, cup]", "[house, chair, cup, cup]")))
    told = [item.found for item in opened.items if item.what == "classes"]
    assert "'cup': the name of several classes" in " ".join(told) or opened.missing()


def test_no_model_is_loaded_for_a_benchmark_that_is_not_complete(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("adaneg_openood.benchmark.run.load_model", refuse)
    with pytest.raises(FileNotFoundError, match="lost.txt"):
        encoded(written(small, ("creatures.txt", "lost.txt")))


def test_a_feature_file_is_a_benchmark(tmp_path: Path) -> None:
    data = make_sweep_data()
    save_features(tmp_path / "bench.npz", data)
    benchmark = read_benchmark(tmp_path / "bench.npz").changed(seeds=(0,), batch_size=16)
    assert benchmark.methods == STANDARD
    assert "60 ID images" in looked_at(benchmark).items[0].found
    run, _ = run_benchmark(open_benchmark(benchmark))
    expected = replay(data, standard_detectors(data), Protocol((0,), 16), progress=False)
    assert run.methods == expected.methods
    for method in expected.methods:
        assert run.table(method).equals(expected.table(method))
    file = tmp_path / "b.yml"
    file.write_text("features: bench.npz\nlogit_scale: 50\nmethods: {M: {detector: mcm}}\n")
    made = encoded(read_benchmark(file))
    assert made.data.logit_scale == 50 and torch.equal(made.data.id_features, data.id_features)


def test_sets_of_features_need_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_sweep_data()
    np.savez(tmp_path / "text.npz", text_features=data.text_features, n_id=4, logit_scale=20.0)
    np.savez(tmp_path / "id.npz", features=data.id_features, labels=data.id_labels)
    np.save(tmp_path / "near.npy", data.near["alike"].numpy())
    np.savez(tmp_path / "far.npz", features=data.far["other"])
    file = tmp_path / "b.yml"
    file.write_text(
        "text_features: text.npz\nid: {features: id.npz}\nnear: {alike: {features: near.npy}}\n"
        "far: {other: {features: far.npz}}\nbatch_size: 16\n"
    )

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("adaneg_openood.benchmark.run.load_model", refuse)
    benchmark = read_benchmark(file)
    assert not problems(benchmark)
    run, made = run_benchmark(open_benchmark(benchmark))
    assert made.data.logit_scale == 20
    expected = replay(data, standard_detectors(data), Protocol(batch_size=16), progress=False)
    for method in expected.methods:
        np.testing.assert_allclose(run.table(method), expected.table(method), atol=1e-9)
    np.savez(tmp_path / "id.npz", features=data.id_features, labels=data.id_labels + 1)
    assert "outside [0, 4)" in problems(benchmark)["id"]
    for labels, wrong in (
        (data.id_labels + 0.5, "labels must be integers"),
        (data.id_labels[1:], "one per image"),
    ):
        np.savez(tmp_path / "id.npz", features=data.id_features, labels=labels)
        assert wrong in problems(benchmark)["id"]
    np.savez(tmp_path / "id.npz", features=data.id_features)
    assert "needs the key labels" in problems(benchmark)["id"]
    np.save(tmp_path / "near.npy", np.ones((3, 5), dtype=np.float32))
    widths = problems(benchmark)["widths"]
    assert "near/alike 5" in widths and "text_features 16" in widths


@pytest.mark.parametrize(
    "header", [{"classes": ["owl", "fox"]}, {"names": ["a/owl/0.png", "a/fox/0.png"]}]
)
def test_classes_of_features_and_of_text_rows_must_be_those_of_the_yaml(
    tmp_path: Path, header: dict[str, object]
) -> None:
    rows = torch.eye(4)
    write_feature_file(tmp_path / "id.safetensors", rows[:2], torch.tensor([0, 1]), header)
    np.save(tmp_path / "far.npy", rows.numpy())
    names = np.asarray(["Owl", "fox, Vulpes", "sea", "moon"])
    np.savez(tmp_path / "text.npz", text_features=rows.numpy(), n_id=2, names=names)
    np.savez(tmp_path / "bare.npz", text_features=rows.numpy(), n_id=2)
    file = tmp_path / "b.yml"

    def wrong(classes: str, text: str = "text.npz") -> dict[str, str]:
        file.write_text(
            f"text_features: {text}\nclasses: {classes}\nid: {{features: id.safetensors}}\n"
            "far: {f: {features: far.npy}}\nmethods: {MCM: {detector: mcm}}\n"
        )
        return problems(read_benchmark(file))

    assert not wrong("[OWL, fox]") and not wrong("[owl, fox]", "bare.npz")
    found = wrong("[fox, owl]")
    assert "label 0 is 'owl' there, but 'fox'" in found["id"]
    assert (
        "its ID row 0 is 'Owl', but the class names that were given have 'fox'" in found["text_features"]
    )
    assert set(wrong("[fox, owl]", "bare.npz")) == {"id"}


def test_features_of_another_model_are_refused(small: Path) -> None:
    from safetensors.torch import save_file

    place = small.parent / "images" / "other.safetensors"
    save_file({"features": torch.ones(12, 64)}, place, {"adaneg": '{"weights": "0000"}'})
    mixed = written(small, ("{folder: scenes, limit: 12", "{features: other.safetensors, limit: 12"))
    with pytest.raises(ValueError, match="was made with weights '0000'"):
        encoded(mixed)


@pytest.mark.parametrize("whole", [False, True])
def test_features_of_two_models_are_refused(tmp_path: Path, whole: bool) -> None:
    rows = torch.eye(4)
    (tmp_path / "far").mkdir()
    np.savez(tmp_path / "text.npz", text_features=rows.numpy(), n_id=2)
    write_feature_file(tmp_path / "id.safetensors", rows[:2], torch.tensor([0, 1]), {"model": "a"})
    for name, weights in (("x", "aaaa"), ("y", "bbbb")):
        about = {"model": "a", "weights": weights}
        write_feature_file(tmp_path / "far" / f"{name}.safetensors", rows, None, about)
    file = tmp_path / "b.yml"
    text = "text_features: text.npz\nid: {features: id.safetensors}\nfar:\n"
    sets = "".join(f"  {name}: {{features: far/{name}.safetensors}}\n" for name in "xy")
    methods = "methods: {MCM: {detector: mcm}}\n"
    file.write_text((f"features: {tmp_path}\n" if whole else text + sets) + methods)
    found = problems(read_benchmark(file))["features" if whole else "models"]
    assert "was made with weights 'aaaa', but" in found and "y.safetensors" in found
    write_feature_file(tmp_path / "far" / "y.safetensors", rows, None, {"weights": "aaaa"})
    assert not problems(read_benchmark(file))
    if whole:
        (tmp_path / "text.json").write_text('{"weights": "cccc"}')
        assert "text.json with 'cccc'" in problems(read_benchmark(file))["features"]


def test_torchvision_datasets(small: Path) -> None:
    far = "{folder: scenes, limit: 12, images: 12, source: nowhere}"
    fake = "{torchvision: FakeData, args: {size: 5, image_size: [3, 32, 32]}}"
    assert len(encoded(written(small, (far, fake))).data.far["scenes"]) == 5
    wrong = written(small, (far, fake.replace("FakeData", "FakeDta")))
    assert "did you mean 'FakeData'" in problems(wrong)["far/scenes"]
    cifar = "{torchvision: CIFAR10, args: {train: false}}"
    assert "CIFAR10" in problems(written(small, ("{folder: id}", cifar)))["id"]
    later = cifar.replace("false", "false, download: true")
    first = looked_at(written(small, ("{folder: id}", later))).items[1]
    assert first.ok is None and "torchvision fetches CIFAR10" in first.found
    odd = written(small, ("{folder: id}", cifar.replace("train:", "trian:")))
    assert "takes no trian" in problems(odd)["id"]


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


def test_hugging_face_datasets(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [{"pic": Image.new("RGB", (40, 30), (i * 9, 0, 0)), "fine": i % 3} for i in range(9)]
    calls = []

    def load_dataset(name: str, **arguments: object) -> FakeHubDataset:
        calls.append((name, arguments))
        return FakeHubDataset(items)

    fake = ModuleType("datasets")
    fake.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    new = "{huggingface: someone/things, args: {split: test, image: pic, label: fine}}"
    hub = written(small, ("{folder: id}", new))
    found = looked_at(hub)
    assert not found.missing() and not calls  # a check fetches nothing
    assert any("from the Hugging Face hub" in item.found for item in found.items)
    assert encoded(hub).data.id_labels.tolist() == [i % 3 for i in range(9)]
    assert calls[0] == ("someone/things", {"split": "test"})
    foreign = written(small, ("{folder: id}", new.replace("split:", "trust_remote_code: true, split:")))
    with pytest.raises(FileNotFoundError, match="trust_remote_code would run code"):
        encoded(foreign)
    assert len(calls) == 1
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install datasets" in problems(hub)["id"]
