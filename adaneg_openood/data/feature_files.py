"""Feature files: a whole :class:`FeatureSet`, or the features of one image set with their checksums."""

from __future__ import annotations

import json
import os
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaneg_openood.data.class_matching import refuse_other_classes
from adaneg_openood.data.feature_set import DEFAULT_LOGIT_SCALE, FeatureSet, whole_labels
from adaneg_openood.data.mixing import refuse_mixed
from adaneg_openood.io.digests import digest_of, tensor_digest
from adaneg_openood.io.files import atomic_path, read_json_object, refuse_bombs
from adaneg_openood.text.classnames import ClassNames
from adaneg_openood.text.labels import LabelFeatures

__all__ = ["FeatureSet", "load_features", "save_features"]

_REQUIRED = ("text_features", "n_id", "id_features", "id_labels")
_ALLOWED = (*_REQUIRED, "logit_scale", "names")
_SPLITS = ("near", "far")
# of a folder: stem of a file -> its keys -> what they hold
_FILES = {
    "text": {key: key for key in ("text_features", "n_id", "logit_scale", "names")},
    "id": {"features": "id_features", "labels": "id_labels"},
}
_SUFFIXES = (".npz", ".safetensors", ".npy")
_HEADER = "adaneg"
_CHECKSUM = "header_sha256"


def load_features(path: str | os.PathLike[str]) -> FeatureSet:
    """Read features from one ``.npz`` file or from a folder. Nothing is unpickled.

    The file's keys: ``text_features`` (C + M, D), ``n_id``, ``id_features`` (N, D), ``id_labels``
    (N,), ``near/<name>`` and ``far/<name>`` (n, D) each; optional ``logit_scale`` (100 without it)
    and ``names`` (C + M,) strings. A folder holds

    - ``text.npz`` or ``text.safetensors`` with ``text_features``, ``n_id`` and the optional keys,
      or one ``.npy`` file a key (``text_features.npy``, ``n_id.npy``);
    - ``id.npz`` or ``id.safetensors`` with ``features`` and ``labels``, or ``id_features.npy`` and
      ``id_labels.npy``;
    - ``near/<name>`` and ``far/<name>``: ``.npz`` or ``.safetensors`` with ``features``, or
      ``.npy``.

    Features keep their dtype. Sets of a folder are in alphabetical order.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: something is missing, unknown, damaged or out of range; the message names the
            file, what is wrong and what is allowed.
    """
    root = Path(path)
    if root.is_dir():
        parts, origins = _from_folder(root)
    elif not root.exists():
        raise FileNotFoundError(f"{root}: no such file or folder of features")
    elif root.suffix != ".npz":
        raise ValueError(f"{root}: a single file must be .npz; other kinds go in a folder")
    else:
        parts = _read(root)
        origins = {part: f"{root} [{part}]" for part in (*parts, *_ALLOWED)}
    origins[""] = str(root)
    made = _built(root, parts, origins)
    if root.is_dir():
        _refuse_mixed(root, made)
    return made


def save_features(path: str | os.PathLike[str], features: FeatureSet) -> None:
    """Write an ``.npz`` file that :func:`load_features` reads, atomically.

    bfloat16, which numpy lacks, is stored as float32; other dtypes are kept.

    Raises:
        ValueError: ``path`` does not end in ``.npz``.
    """
    target = Path(path)
    if target.suffix != ".npz":
        raise ValueError(f"{target}: features are saved as .npz, so the name must end in .npz")
    arrays = {
        "text_features": _to_numpy(features.text_features),
        "n_id": np.asarray(features.n_id, dtype=np.int64),
        "id_features": _to_numpy(features.id_features),
        "id_labels": _to_numpy(features.id_labels),
        "logit_scale": np.asarray(features.logit_scale, dtype=np.float64),
    }
    if features.names is not None:
        arrays["names"] = np.asarray(features.names, dtype=np.str_)
    for split, sets in (("near", features.near), ("far", features.far)):
        arrays.update({f"{split}/{name}": _to_numpy(part) for name, part in sets.items()})
    # an open file, because savez would add .npz to the temporary name
    with atomic_path(target) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _built(root: Path, parts: Mapping[str, Any], origins: Mapping[str, str]) -> FeatureSet:
    missing = [part for part in _REQUIRED if part not in parts]
    if missing:
        raise ValueError(
            f"{root}: missing {', '.join(missing)}; needed are {', '.join(_REQUIRED)} and at least "
            f"one near/<name> or far/<name>; found {', '.join(sorted(parts)) or 'nothing'}"
        )
    near: dict[str, Tensor] = {}
    far: dict[str, Tensor] = {}
    for part, value in parts.items():
        split, slash, name = part.partition("/")
        if slash and split in _SPLITS:
            (near if split == "near" else far)[name] = _tensor(origins[part], value)
        elif part not in _ALLOWED:
            raise ValueError(
                f"{root}: unknown key {part!r}; allowed are {', '.join(_ALLOWED)}, near/<name> and "
                "far/<name>"
            )
    names = parts.get("names")
    if names is not None and (not isinstance(names, np.ndarray) or names.dtype.kind != "U"):
        raise ValueError(f"{origins['names']}: names must be an array of strings")
    scale = DEFAULT_LOGIT_SCALE
    if "logit_scale" in parts:
        scale = float(_scalar(origins["logit_scale"], "logit_scale", parts["logit_scale"]))
    return FeatureSet(
        text_features=_tensor(origins["text_features"], parts["text_features"]),
        n_id=_scalar(origins["n_id"], "n_id", parts["n_id"]),
        id_features=_tensor(origins["id_features"], parts["id_features"]),
        id_labels=_tensor(origins["id_labels"], parts["id_labels"]),
        near=near,
        far=far,
        logit_scale=scale,
        names=None if names is None else tuple(map(str, names.ravel().tolist())),
        origins=dict(origins),
    )


def _refuse_mixed(root: Path, made: FeatureSet) -> None:
    """Compare what a folder's files say of themselves."""
    files = [
        file
        for place in ("id", "near/[!.]*", "far/[!.]*")
        for file in sorted(root.glob(f"{place}.safetensors"))
    ]
    told = {str(file): read_feature_header(file) for file in files}
    text = root / "text.json"
    refuse_mixed({**told, str(text): read_json_object(text)} if text.is_file() else told)
    file = str(root / "id.safetensors")
    header = told.get(file)
    if header and made.names is not None:
        classes = ClassNames(made.origins["names"], made.names[: made.n_id])
        refuse_other_classes(file, header, made.id_labels.tolist(), classes)


def _from_folder(root: Path) -> tuple[dict[str, Any], dict[str, str]]:
    parts: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def put(part: str, value: Any, origin: str) -> None:
        if part in parts:
            raise ValueError(f"{origin}: {part} is there twice, also in {origins[part]}; keep one")
        parts[part], origins[part] = value, origin

    for stem, keys in _FILES.items():
        for suffix in (".npz", ".safetensors"):
            file = root / f"{stem}{suffix}"
            if file.exists():
                values = _read(file)
                if "sha256" in values:
                    LabelFeatures.load(file)  # which checks it
                for key, value in values.items():
                    if key in ("sha256", "provenance"):
                        continue
                    if key not in keys:
                        raise ValueError(f"{file}: unknown key {key!r}; allowed are {', '.join(keys)}")
                    put(keys[key], value, f"{file} [{key}]")
        for part in keys.values():
            file = root / f"{part}.npy"
            if file.exists():
                put(part, _read(file)[""], str(file))
    for split in _SPLITS:
        folder = root / split
        for file in sorted(folder.iterdir()) if folder.is_dir() else ():
            if file.name.startswith("."):
                continue
            if file.suffix not in _SUFFIXES:
                raise ValueError(f"{file}: not a feature file; allowed are {', '.join(_SUFFIXES)}")
            values = _read(file)
            if set(values) != {""} and set(values) != {"features"}:
                raise ValueError(
                    f"{file}: must hold the one key features, "
                    f"found {', '.join(sorted(values)) or 'nothing'}"
                )
            put(f"{split}/{file.stem}", next(iter(values.values())), str(file))
    return parts, origins


def _read(file: Path) -> dict[str, Any]:
    """The arrays of a file by key; those of a ``.npy`` file under the key ""."""
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    try:
        if file.suffix == ".npz" and zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                refuse_bombs(file, archive)
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"": loaded}
        with loaded:
            twice = [key for key, n in Counter(loaded.files).items() if n > 1]
            if not twice:
                return {key: _entry(file, loaded, key) for key in loaded.files}
    # zipfile, zlib and numpy raise a dozen kinds over damaged files
    except Exception as error:
        if "pickle" in str(error).lower():
            # numpy takes a file it does not know for a pickle, so both causes are named
            raise ValueError(
                f"{file}: object array or not a numpy file ({error}); "
                "allowed are arrays of numbers, never pickled objects"
            ) from error
        if str(file) in str(error):
            raise ValueError(str(error)) from error
        raise ValueError(f"{file}: cannot be read, {error or type(error).__name__}") from error
    raise ValueError(f"{file}: key(s) {', '.join(sorted(twice))} there twice; names must differ")


def _entry(file: Path, loaded: Any, key: str) -> np.ndarray:
    try:
        return np.asarray(loaded[key])
    except ValueError as error:
        raise ValueError(f"[{key}] {error}") from error


def _read_safetensors(file: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = dict(load_file(file))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: cannot be read, {error}") from error
    header = read_feature_header(file)
    for key in ("features", "labels"):
        # safetensors itself does not notice a flipped bit
        checksum = header.get(f"{key}_sha256")
        if checksum is not None and (key not in tensors or tensor_digest(tensors[key]) != checksum):
            raise ValueError(
                f"{file}: damaged, its {key} do not have their checksum; encode the images again"
            )
    return tensors


def _tensor(origin: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if value.dtype.kind not in "fiu":
        raise ValueError(f"{origin}: must be an array of numbers, got dtype {value.dtype}")
    # torch reads neither another machine's byte order nor read-only or unsigned wide integers
    kind = value.dtype.newbyteorder("=") if value.dtype.kind == "f" else np.dtype(np.int64)
    if kind.kind == "f" and kind.itemsize > 8:
        kind = np.dtype(np.float64)
    return torch.from_numpy(np.array(value, dtype=kind))


def _scalar(origin: str, name: str, value: Any) -> Any:
    """A Python number from an array that holds one."""
    array = _to_numpy(value) if isinstance(value, Tensor) else np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "fiu":
        raise ValueError(
            f"{origin}: {name} must be one number, got {array.dtype} of shape {array.shape}"
        )
    return array.reshape(()).item()


def _to_numpy(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def read_rows(path: str | os.PathLike[str]) -> tuple[Tensor, Tensor | None]:
    """(N, D) features of one image set from a file of its own, and (N,) int64 labels if it has them.

    Args:
        path: ``.npy``; or ``.npz`` or ``.safetensors`` with the key ``features`` and, for ID images,
            ``labels``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds something else.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no such feature file: {file}")
    if file.suffix not in _SUFFIXES:
        raise ValueError(f"{file}: a feature file must be {', '.join(_SUFFIXES)}")
    values = _read(file)
    features = values.get("features", values.get(""))
    if features is None:
        raise ValueError(f"{file}: needs the key features, found {', '.join(sorted(values))}")
    rows, labels = _tensor(f"{file} [features]", features), values.get("labels")
    if labels is None:
        return rows, None
    where = f"{file} [labels]"
    return rows, whole_labels(where, _tensor(where, labels), len(rows))


def write_feature_file(
    path: Path, features: Tensor, labels: Tensor | None, about: dict[str, Any]
) -> None:
    """Write (N, D) features and (N,) labels, if any, as ``.safetensors`` with checksums.

    ``about`` becomes the header, JSON values.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors.torch import save_file

    tensors = {"features": features.contiguous()}
    if labels is not None:
        tensors["labels"] = labels
    header = {**about, **{f"{key}_sha256": tensor_digest(value) for key, value in tensors.items()}}
    header[_CHECKSUM] = digest_of(header)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {_HEADER: json.dumps(header)})


def read_feature_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a feature file says of itself; empty for a file that was not made here.

    Keys: those of ``describe(model)``, ``decode``, ``source``, ``images_sha256``, ``batch_size``,
    ``names`` (N image names), ``classes`` (names of the labels, where they are known), ``skipped``
    (name -> error), and checksums.

    Raises:
        ValueError: not a safetensors file, or its header is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(_HEADER, "{}"))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: cannot be read, {error}") from error
    # a hostile header may nest deeper than Python's stack
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged header, {error}") from error
    if not isinstance(header, dict):
        raise ValueError(f"{path}: damaged header, must be an object, got {type(header).__name__}")
    checked = {key: value for key, value in header.items() if key != _CHECKSUM}
    if _CHECKSUM in header and digest_of(checked) != header[_CHECKSUM]:
        raise ValueError(f"{path}: damaged header, it does not have its checksum")
    return header
