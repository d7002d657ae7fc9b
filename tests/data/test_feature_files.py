"""Feature files: round trips, and errors that say what to do."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adaneg_openood.evaluation import FeatureSet, load_features, save_features

N_ID, DIM = 3, 4


def make_data(**changed: Any) -> FeatureSet:
    generator = torch.Generator().manual_seed(0)

    def rows(n: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(n, DIM, generator=generator), dim=1)

    parts: dict[str, Any] = {
        "text_features": rows(N_ID + 2),
        "n_id": N_ID,
        "id_features": rows(20),
        "id_labels": torch.arange(20) % N_ID,
        "near": {"ssb": rows(10), "ninco": rows(6)},
        "far": {"textures": rows(8)},
    }
    return FeatureSet(**{**parts, **changed})


DATA = make_data(logit_scale=50.0, names=("cat", "dog", "hen", "bed", "Zürich"))


def arrays() -> dict[str, Any]:
    sets = {f"near/{name}": part for name, part in DATA.near.items()}
    sets.update({f"far/{name}": part for name, part in DATA.far.items()})
    parts = {
        "text_features": DATA.text_features,
        "id_features": DATA.id_features,
        "id_labels": DATA.id_labels,
        **sets,
    }
    return {"n_id": np.asarray(N_ID), **{key: part.numpy() for key, part in parts.items()}}


def assert_same(got: FeatureSet, expected: FeatureSet = DATA) -> None:
    assert torch.equal(got.text_features, expected.text_features)
    assert torch.equal(got.id_features, expected.id_features)
    assert torch.equal(got.id_labels, expected.id_labels) and got.id_labels.dtype == torch.int64
    assert got.n_id == expected.n_id and type(got.n_id) is int
    for mine, other in ((got.near, expected.near), (got.far, expected.far)):
        assert set(mine) == set(other)
        assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_npz_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "features.npz"
    save_features(path, DATA)
    got = load_features(str(path))
    assert_same(got)
    assert list(got.near) == ["ssb", "ninco"]
    assert got.logit_scale == 50.0 and got.names == DATA.names
    assert [file.name for file in path.parent.iterdir()] == ["features.npz"]


def test_optional_keys(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", **arrays())
    got = load_features(tmp_path / "f.npz")
    assert got.logit_scale == 100.0 and got.names is None


def test_bfloat16_is_saved_as_float32_and_float16_is_kept(tmp_path: Path) -> None:
    data = make_data(near={"a": DATA.near["ssb"].bfloat16()}, far={"b": DATA.far["textures"].half()})
    save_features(tmp_path / "f.npz", data)
    got = load_features(tmp_path / "f.npz")
    assert torch.equal(got.near["a"], data.near["a"].float())
    assert got.far["b"].dtype == torch.float16


def test_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.npz"
    save_features(path, DATA)
    before = path.read_bytes()

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        save_features(path, DATA)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_save_needs_npz(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must end in .npz"):
        save_features(tmp_path / "f.npy", DATA)


def write_folder(root: Path, kind: str) -> None:
    parts = arrays()
    for folder in ("near", "far"):
        (root / folder).mkdir(parents=True)
    text = {key: parts[key] for key in ("text_features", "n_id")}
    image = {"features": parts["id_features"], "labels": parts["id_labels"]}
    sets = {key: value for key, value in parts.items() if "/" in key}
    if kind == "npz":
        np.savez(root / "text.npz", **text)
        np.savez(root / "id.npz", **image)
        for key, value in sets.items():
            np.savez(root / f"{key}.npz", features=value)
    elif kind == "npy":
        for key, value in parts.items():
            np.save(root / f"{key}.npy", value)
    else:
        save_file = pytest.importorskip("safetensors.torch").save_file

        def tensors(values: dict[str, Any]) -> dict[str, torch.Tensor]:
            return {key: torch.from_numpy(np.array(value)) for key, value in values.items()}

        save_file(tensors(text), root / "text.safetensors")
        save_file(tensors(image), root / "id.safetensors")
        for key, value in sets.items():
            save_file(tensors({"features": value}), root / f"{key}.safetensors")


@pytest.mark.parametrize("kind", ["npz", "npy", "safetensors"])
def test_folders(tmp_path: Path, kind: str) -> None:
    write_folder(tmp_path / "f", kind)
    (tmp_path / "f" / "near" / ".hidden").touch()
    got = load_features(tmp_path / "f")
    assert_same(got)
    assert list(got.near) == ["ninco", "ssb"]


def bad_rows(key: str, value: float) -> np.ndarray:
    array = arrays()[key].copy()
    array[2] = value
    return array


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n_id": None}, r"missing n_id; needed are text_features, n_id, id_features"),
        ({"id_labels": None, "text_features": None}, "missing text_features, id_labels"),
        ({"near/ssb": None, "near/ninco": None, "far/textures": None}, "no OOD set"),
        ({"near/ssb": np.ones((3, 5), "f4")}, r"\[near/ssb\]: must have 4 columns.*got 5"),
        ({"near/ssb": np.ones((0, 4), "f4")}, r"\[near/ssb\]: is empty"),
        ({"near/ssb": np.ones(4, "f4")}, r"\[near/ssb\]: must be 2-d"),
        ({"near/ssb": np.ones((3, 4), "i4")}, r"\[near/ssb\]: must be floating point"),
        ({"near/ssb": np.array([["a"] * 4])}, r"\[near/ssb\]: must be an array of numbers"),
        ({"far/textures": bad_rows("far/textures", np.nan)}, r"NaN or inf.* in 1 row\(s\): 2"),
        ({"id_features": bad_rows("id_features", np.inf)}, r"\[id_features\]: NaN or infinite"),
        ({"text_features": bad_rows("text_features", 0)}, r"\[text_features\]: only zeros"),
        ({"id_labels": np.full(20, 3)}, r"\[id_labels\]: labels outside \[0, 3\).*20 row\(s\)"),
        ({"id_labels": np.zeros(19, int)}, r"labels must have shape \(20,\)"),
        ({"id_labels": np.zeros(20)}, "labels must be integers"),
        ({"n_id": np.asarray(6)}, r"\[n_id\]: n_id must lie in \[1, 5\]"),
        ({"n_id": np.asarray(2.5)}, "n_id must be an integer"),
        ({"n_id": np.array([1, 2])}, "n_id must be one number"),
        ({"logit_scale": np.asarray(-1.0)}, "logit_scale must be finite and above 0"),
        ({"names": np.array(["a", "b"])}, "names must have one entry per text row, 5, got 2"),
        ({"names": np.arange(5)}, "names must be an array of strings"),
        ({"Near/ssb": np.ones((3, 4), "f4")}, "unknown key 'Near/ssb'; allowed are"),
        ({"near/a/b": np.ones((3, 4), "f4")}, "without slashes"),
        ({"near/nearood": np.ones((3, 4), "f4")}, "group rows"),
        ({"far/ssb": np.ones((3, 4), "f4")}, r"ssb in both near and far"),
        ({"near/ssb": np.array([[1, "x"]], dtype=object)}, r"\[near/ssb\].*never pickled"),
    ],
)
def test_bad_npz(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    parts = {key: part for key, part in {**arrays(), **changed}.items() if part is not None}
    np.savez(tmp_path / "bad.npz", **parts)
    with pytest.raises(ValueError, match=message) as error:
        load_features(tmp_path / "bad.npz")
    assert "bad.npz" in str(error.value)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_key_twice_in_npz(tmp_path: Path) -> None:
    path = tmp_path / "f.npz"
    np.savez(path, **arrays())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("near/ssb.npy", archive.read("near/ssb.npy"))
    with pytest.raises(ValueError, match=r"f.npz: key\(s\) near/ssb there twice"):
        load_features(path)


@pytest.mark.parametrize("content", [b"", b"not a file of numbers", b"PK\x03\x04 cut short"])
def test_damaged_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f.npz").write_bytes(content)
    with pytest.raises(ValueError, match="f.npz"):
        load_features(tmp_path / "f.npz")


def test_cut_file(tmp_path: Path) -> None:
    save_features(tmp_path / "f.npz", DATA)
    content = (tmp_path / "f.npz").read_bytes()
    (tmp_path / "f.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="f.npz: cannot be read|f.npz: object array or not"):
        load_features(tmp_path / "f.npz")


def test_bad_places(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        load_features(tmp_path / "absent")
    (tmp_path / "f.pt").touch()
    with pytest.raises(ValueError, match="single file must be .npz"):
        load_features(tmp_path / "f.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: missing text_features.*found nothing"):
        load_features(tmp_path / "empty")


def test_bad_folders(tmp_path: Path) -> None:
    root = tmp_path / "f"
    write_folder(root, "npz")
    np.save(root / "near" / "ssb.npy", DATA.near["ssb"].numpy())
    with pytest.raises(ValueError, match=r"near/ssb is there twice, also in .*ssb.np"):
        load_features(root)
    (root / "near" / "ssb.npy").rename(root / "near" / "ssb.pt")
    with pytest.raises(ValueError, match=r"ssb.pt: not a feature file; allowed are .npz"):
        load_features(root)
    (root / "near" / "ssb.pt").unlink()
    np.savez(root / "near" / "ssb.npz", feature=np.ones((2, 4)))
    with pytest.raises(ValueError, match=r"ssb.npz: must hold the one key features, found feature"):
        load_features(root)
    (root / "near" / "ssb.npz").unlink()
    np.savez(root / "id.npz", features=np.ones((2, 4)), label=np.zeros(2))
    with pytest.raises(ValueError, match=r"id.npz: unknown key 'label'; allowed are features, lab"):
        load_features(root)
    (root / "id.npz").unlink()
    (root / "id.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="id.safetensors: cannot be read"):
        load_features(root)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    root = tmp_path / "f"
    write_folder(root, "npy")
    np.save(root / "near" / "ssb.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="ssb.npy: object array.*never pickled"):
        load_features(root)


def test_feature_set_checks_without_a_file() -> None:
    with pytest.raises(ValueError, match="FeatureSet: no OOD set"):
        make_data(near={}, far={})
    with pytest.raises(ValueError, match="near/x: must be a tensor, got ndarray"):
        make_data(near={"x": np.ones((2, 4))})
    sets = {"x": torch.ones(2, 4)}
    data = make_data(near=sets)
    sets["y"] = torch.ones(2, 9)
    assert list(data.near) == ["x"]
