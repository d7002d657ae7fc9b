"""The store of image features: same images and model, same features; anything else is encoded."""

from __future__ import annotations

import logging
import os
import shutil
import threading

import pytest
import torch
from PIL import Image
from tiny_models import picture

from adaneg_openood.data import FeatureStore, ImageSet
from adaneg_openood.data import parts as store
from adaneg_openood.io.files import cache_folder
from adaneg_openood.io.locks import exclusive

N = 24


class Tower:
    """The protocol, with a random projection for a tower; counts the images that it encodes."""

    name, dim, logit_scale, device = "tower", 16, 100.0, torch.device("cpu")

    def __init__(self, seed=0, stop_at=10**9, **about):
        self.projection = torch.randn(192, self.dim, generator=torch.Generator().manual_seed(seed))
        self.about = {"model": self.name, "weights": f"seed {seed}", "preprocessing": "8 x 8", **about}
        self.encoded, self.stop_at = 0, stop_at

    def preprocess(self, image):
        resized = image.resize((8, 8), Image.Resampling.BOX)
        return torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8).float().reshape(3, 8, 8)

    def encode_image(self, pixels):
        if self.encoded + len(pixels) > self.stop_at:
            raise KeyboardInterrupt
        self.encoded += len(pixels)
        return torch.nn.functional.normalize(pixels.flatten(1) @ self.projection, dim=-1)

    def describe(self):
        return self.about


@pytest.fixture
def root(tmp_path):
    for index in range(N):
        folder = tmp_path / "images" / ("cup", "tree")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture(size=(20, 16), seed=index).save(folder / f"{index:02d}.png")
    return tmp_path


def get(root, tower, **options):
    images = ImageSet.of(root / "images", labelled=True, limit=options.pop("limit", None))
    options = {"workers": 0, "batch_size": 4, "part_size": 4, **options}
    return FeatureStore(options.pop("folder", root / "store")).get(images, tower, **options)


def expected(root, tower):
    images = ImageSet.of(root / "images")
    pixels = [tower.preprocess(images.open(index)) for index in range(N)]
    return tower.encode_image(torch.stack(pixels))


def test_an_image_is_encoded_once(root):
    tower = Tower()
    first, second = get(root, tower), get(root, tower)
    assert first.fresh and not second.fresh and tower.encoded == N
    assert torch.equal(first.features, second.features)
    torch.testing.assert_close(first.features, expected(root, Tower()))
    assert first.labels.tolist() == [0] * 12 + [1] * 12 and first.names[:2] == (
        "cup/00.png",
        "cup/02.png",
    )
    assert second.about["weights"] == "seed 0" and second.skipped == {}
    # of another list of the same images only what is new is encoded, whatever the batches
    part = get(root, tower, limit=10, batch_size=3)
    assert torch.equal(part.features[:8], first.features[:8]) and tower.encoded == N + 2
    images = ImageSet.of(root / "images")
    unlabelled = FeatureStore(root / "store").get(images, tower, part_size=4)
    assert unlabelled.labels is None and not unlabelled.fresh


def test_any_change_is_noticed(root):
    get(root, Tower())
    file = root / "images" / "cup" / "04.png"
    before = file.stat()
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))  # the time of change
    tower = Tower()
    assert get(root, tower).fresh and tower.encoded == 4  # the part that it is in
    file.write_bytes(file.read_bytes() + b"\0")  # the size
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert get(root, tower).fresh and tower.encoded == 8
    for other in (Tower(1), Tower(preprocessing="another"), Tower(precision="bf16"), Tower(model="x")):
        assert get(root, other).fresh and other.encoded == N
    exif = ImageSet.of(root / "images", exif=True)
    assert FeatureStore(root / "store").get(exif, tower, part_size=4, workers=0).fresh
    back = Tower()
    assert not get(root, back).fresh and back.encoded == 0


def test_interrupted_work_goes_on_where_it_stopped(root):
    with pytest.raises(KeyboardInterrupt):
        get(root, Tower(stop_at=14))
    tower = Tower()
    made = get(root, tower)
    assert tower.encoded == N - 12  # three parts of four were done
    assert torch.equal(made.features, get(root, Tower(), folder=root / "other").features)


def test_the_advice_after_a_broken_image_leads_on(root):
    broken = root / "images" / "tree" / "13.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    tower = Tower()
    with pytest.raises(ValueError, match=r"tree/13\.png \(.*--skip-broken \(skip_broken=True\)"):
        get(root, tower)
    done = tower.encoded
    assert done >= 16
    made = get(root, tower, skip_broken=True)
    assert tower.encoded < done + N - 16 and len(made.features) == N - 1
    assert list(made.skipped) == ["tree/13.png"] and "tree/13.png" not in made.names
    assert made.labels.tolist() == [0] * 12 + [1] * 11
    # what was left out once is still an error without the option
    with pytest.raises(ValueError, match=r"1 broken image\(s\): tree/13\.png"):
        get(root, tower)
    before = tower.encoded
    broken.write_bytes(whole)
    assert len(get(root, tower).features) == N and tower.encoded == before + 4


def test_everything_broken(tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "a" / "0.png").write_bytes(b"")
    with pytest.raises(ValueError, match="every image is broken"):
        get(tmp_path, Tower(), skip_broken=True)


def test_a_missing_file_is_a_broken_image(root):
    images = ImageSet.from_entries("list", [("cup/00.png", 0), ("cup/none.png", 0)], root / "images")
    with pytest.raises(ValueError, match=r"cup/none\.png \(FileNotFoundError"):
        FeatureStore(root / "store").get(images, Tower(), workers=0)
    made = FeatureStore(root / "store").get(images, Tower(), workers=0, skip_broken=True)
    assert made.names == ("cup/00.png",)


def test_images_that_change_meanwhile_are_refused(root):
    images = ImageSet.of(root / "images")
    assert len(images.digest()) == 64  # it has looked at the files
    os.utime(root / "images" / "cup" / "06.png", ns=(0, 0))
    for skip_broken in (False, True):
        with pytest.raises(ValueError, match=r"cup/06\.png changed while images were encoded"):
            FeatureStore(root / "store").get(images, Tower(), workers=0, skip_broken=skip_broken)


def flipped(content, at):
    changed = bytearray(content)
    changed[at] ^= 1
    return bytes(changed)


def test_a_damaged_part_is_found_and_mended(root, caplog):
    first = get(root, Tower())
    files = sorted((root / "store").glob("*.safetensors"))
    whole = files[0].read_bytes()
    for content in (
        *(flipped(whole, at) for at in (0, 9, len(whole) // 2, -5)),
        whole[:-1],
        b"",
        files[1].read_bytes()[:-3],
    ):
        files[0].write_bytes(content)
        (found,) = [entry for entry in store.entries(root / "store", verify=True) if entry.problem]
        assert str(files[0]) in found.problem
        caplog.clear()
        tower = Tower()
        again = get(root, tower)
        assert tower.encoded == 4 and torch.equal(again.features, first.features)
        assert "it is encoded again" in caplog.text and files[0].read_bytes() == whole
    files[0].unlink()
    assert get(root, Tower()).fresh and files[0].read_bytes() == whole


def test_a_warm_read_only_store_serves(root, monkeypatch):
    first = get(root, Tower())
    files = {file.name: file.read_bytes() for file in (root / "store").iterdir()}

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(args[0]))

    # a folder of others, for root too
    for name in ("utime", "replace", "unlink", "mkdir"):
        monkeypatch.setattr(os, name, refuse)
    tower = Tower()
    assert torch.equal(get(root, tower).features, first.features) and tower.encoded == 0
    monkeypatch.undo()
    assert {file.name: file.read_bytes() for file in (root / "store").iterdir()} == files


def test_a_model_without_weights_leaves_nothing(root):
    tower = Tower()
    del tower.about["weights"]
    assert get(root, tower).fresh and get(root, tower).fresh
    assert tower.encoded == 2 * N and not (root / "store").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"part_size": 0}, "part_size"),
        ({"workers": -1}, "workers"),
        ({"decode": "tpu"}, "decode must be one of 'cpu', 'gpu', got 'tpu'"),
    ],
)
def test_bad_arguments(root, options, message):
    with pytest.raises(ValueError, match=message):
        get(root, Tower(), **options)


def test_decoding_on_a_gpu_needs_one(root):
    with pytest.raises(ValueError, match="decode='gpu' needs a model on CUDA, tower is on cpu"):
        get(root, Tower(), decode="gpu")


# -- entries ------------------------------------------------------------------------------------------


def test_entries_and_pruning(root):
    folder = root / "store"
    for number in range(3):
        get(root, Tower(number))
        for file in folder.glob("*.safetensors"):
            if os.stat(file).st_mtime > 2e9 or os.stat(file).st_mtime < 1e9:
                continue
            os.utime(file, (1e9 - 1 - number, 5e8 + number * 86_400))
    found = store.entries(folder)
    assert [entry.about["weights"] for entry in found] == ["seed 2", "seed 1", "seed 0"]
    assert {(len(entry.files), entry.about["images"], entry.problem) for entry in found} == {(6, N, "")}
    assert found[0].about["source"] == str(root / "images")
    assert store.prune(folder, older_than_days=1, dry_run=True) == found
    kept = 2 * found[0].size + 10
    assert [entry.about["weights"] for entry in store.prune(folder, max_bytes=kept)] == ["seed 0"]
    found[0].files[0].write_bytes(b"no")
    (damaged,) = store.prune(folder, damaged=True)
    assert damaged.files == found[0].files[:1] and "damaged" in damaged.problem
    assert [len(entry.files) for entry in store.prune(folder, everything=True)] == [5, 6]
    assert store.entries(folder) == [] and os.listdir(folder) == []


def test_pruning_leaves_what_is_being_made(root):
    get(root, Tower())
    (entry,) = store.entries(root / "store")
    pruned = []
    with exclusive(root / "store" / entry.key):
        work = lambda: pruned.extend(store.prune(root / "store", everything=True))  # noqa: E731
        other = threading.Thread(target=work)
        other.start()
        other.join()
    assert pruned == [] and store.entries(root / "store") == [entry]


def test_a_part_that_goes_while_it_is_read(root, monkeypatch):
    get(root, Tower())
    images = ImageSet.of(root / "images")
    kept = FeatureStore(root / "store")
    original = FeatureStore._missing

    def pruned(self, parts, held, warn=False):
        missing = original(self, parts, held)
        held.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
        return missing

    monkeypatch.setattr(FeatureStore, "_missing", pruned)
    with pytest.raises(FileNotFoundError, match="features were removed meanwhile; run it again"):
        kept.get(images, Tower(), part_size=4, workers=0)


def test_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("ADANEG_CACHE", str(tmp_path))
    assert cache_folder("features") == tmp_path / "features"
    assert cache_folder("features", tmp_path / "own") == tmp_path / "own" / "features"
    assert store.entries(cache_folder("features")) == []


def test_workers_say_nothing_and_change_nothing(root, capfd, recwarn):
    logging.getLogger().setLevel(logging.WARNING)
    alone = get(root, Tower(), folder=root / "alone")
    many = get(root, Tower(), folder=root / "many", workers=3, progress=True)
    assert torch.equal(alone.features, many.features)
    told = capfd.readouterr()
    assert told.out == "" and f"{N}/{N}" in told.err and "image" in told.err
    assert "Warning" not in told.err and not recwarn.list
