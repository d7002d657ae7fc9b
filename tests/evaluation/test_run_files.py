"""Runs on disk: the same after loading, and nothing that is damaged or cannot be is used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from benchmark_fakes import make_sweep_data

from adaneg_openood import MCM, AdaNeg, AdaNegConfig
from adaneg_openood.evaluation import Protocol, Run, replay
from adaneg_openood.evaluation.run_files import INDEX
from adaneg_openood.io.digests import digest_of, file_digest

DATA = make_sweep_data()


@pytest.fixture(scope="module")
def run() -> Run:
    config = AdaNegConfig(groups=2, memory_length=4)
    text, n_id, scale = DATA.text_features, DATA.n_id, DATA.logit_scale
    detectors = {"MCM": MCM(text, n_id), "AdaNeg / task": AdaNeg(text, n_id, scale, config)}
    protocol = Protocol((0, 3), 16, ratio=(1, 1))
    return replay(DATA, detectors, protocol, keep_parts=True, watch_bank=True, progress=False)


@pytest.fixture
def folder(run: Run, tmp_path: Path) -> Path:
    run.save(tmp_path)
    return tmp_path


def test_a_run_survives_saving(run: Run, folder: Path) -> None:
    again = Run.load(folder)
    assert again.protocol == run.protocol and again.methods == run.methods
    assert list(again.streams) == list(run.streams) and dict(again.splits) == dict(run.splits)
    for key, result in run.streams.items():
        for name, array in result.arrays().items():
            other = getattr(again.streams[key], name)
            np.testing.assert_array_equal(array, other, err_msg=name)
            assert array.dtype == other.dtype
        assert again.streams[key].diagnosis == result.diagnosis
    pd.testing.assert_frame_equal(again.records, run.records)
    assert again.to_dict() == run.to_dict()
    with pytest.raises(FileNotFoundError, match=r"holds no scores\.json"):
        Run.load(folder / "nothing")


def test_a_flipped_bit_is_noticed_wherever_it_is(folder: Path) -> None:
    rng = np.random.default_rng(1)
    for path in sorted(folder.rglob("*.*")):
        whole = path.read_bytes()
        for place in rng.integers(0, len(whole), 12):
            data = bytearray(whole)
            data[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(data)
            try:
                Run.load(folder)
            except ValueError as error:
                assert path.name in str(error)
            else:  # white space, or another spelling of the same value
                assert path.name == INDEX
                json.loads(path.read_text("utf-8"))
        path.write_bytes(whole)
    Run.load(folder)


def forged(folder: Path, **changed: object) -> None:
    """Write other values with checksums that fit, as a stranger could."""
    path = next(folder.glob("AdaNeg*/*/*/seed0.npz"))
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    for name, change in changed.items():
        arrays[name] = change(arrays[name])  # type: ignore[operator]
    with path.open("wb") as file:
        np.savez(file, **arrays)
    index = folder / INDEX
    content = json.loads(index.read_text("utf-8"))
    for one in content["streams"]:
        one["sha256"] = file_digest(folder / one["file"])
    content["checksum"] = digest_of({key: content[key] for key in ("about", "streams")}, 64)
    index.write_text(json.dumps(content), "utf-8")


def poisoned(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values[3] = np.nan
    return values


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("conf", poisoned, "conf must be finite"),
        ("s_adaptive", poisoned, "s_adaptive must be finite"),
        ("conf", lambda x: x[:-1], "conf must be .* of shape"),
        ("conf", lambda x: x > 0, "conf must be floating point"),
        ("pred", lambda x: x + 100, "pred must be classes"),
        ("pred", lambda x: x.astype(float), "pred must be integers"),
        ("label", lambda x: np.where(x == 0, 77, x), "then classes below"),
        ("label", lambda x: x[::-1].copy(), "label must be -1 for the first"),
        ("counts", lambda x: x - 1, "counts must be a number of images"),
        ("counts", lambda x: x[:3], "counts must be"),
        ("ood_counts", lambda x: x + 1, "ood_counts must be"),
        ("filled", lambda x: x[1:], "filled must be"),
        ("filled", lambda x: x + 1000, "filled must be rows"),
        ("about", lambda x: np.array(str(x).replace("warnings", "warning")), None),
        ("about", lambda x: np.array("[]"), "damaged"),
        ("about", lambda x: np.array(str(x).replace('"seed": 0', '"seed": 1')), "another stream"),
    ],
)
def test_values_that_cannot_be_are_refused(
    folder: Path, name: str, change: object, message: str
) -> None:
    forged(folder, **{name: change})
    if message is None:
        Run.load(folder)
        return
    with pytest.raises(ValueError, match=message) as caught:
        Run.load(folder)
    assert "seed0.npz" in str(caught.value) and "run the evaluation again" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["about"]["protocol"].update(batch_size=0),
            "protocol: batch_size must be at least 1",
        ),
        (lambda c: c["about"]["protocol"].update(extra=1), "protocol: .*extra"),
        (lambda c: c["about"].update(n_classes=10**9), "n_classes must be in"),
        (lambda c: c["about"].update(names=["a"]), "names must be"),
        (lambda c: c["about"].update(splits={}), "splits must be"),
        (lambda c: c["about"].update(settings=[]), "settings must be"),
        (lambda c: c["about"]["data"].pop("text"), "data of text must be"),
        (lambda c: c["about"].update(given_orders={"x": [0]}), "given_orders must be"),
        (lambda c: c["streams"].pop(), "are there for the seeds"),
        (lambda c: c["streams"][0].update(method="../../x"), "unknown method"),
        (lambda c: c.update(streams="x"), "streams must be a list"),
        (lambda c: c.update(about=[]), "about must be an object"),
    ],
)
def test_heads_that_cannot_be_are_refused(folder: Path, change: object, message: str) -> None:
    index = folder / INDEX
    content = json.loads(index.read_text("utf-8"))
    change(content)  # type: ignore[operator]
    content["checksum"] = digest_of({key: content[key] for key in ("about", "streams")}, 64)
    index.write_text(json.dumps(content), "utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        Run.load(folder)
    assert INDEX in str(caught.value)


def test_names_become_file_names_that_differ(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert len(names) == 2 and names[1] == "MCM" and "/" not in names[0]


def test_names_that_some_file_systems_confuse_get_files_of_their_own(tmp_path: Path) -> None:
    data = make_sweep_data(n_id=12, n_ood=6)
    titles = ["MCM", "mcm", "NUL", "con", "Com1", "", " ", "console", "a/b", "a_b"]
    detectors = {title: MCM(data.text_features, data.n_id) for title in titles}
    run = replay(data, detectors, Protocol((0,), 8), progress=False, folder=tmp_path)
    folders = [path.name for path in tmp_path.iterdir() if path.is_dir()]
    assert len({name.lower() for name in folders}) == len(titles)
    assert not {"nul", "con", "com1", ""} & {name.strip().lower() for name in folders}
    assert {"console", "a_b"} <= set(folders)
    assert Run.load(tmp_path).methods == run.methods == titles
