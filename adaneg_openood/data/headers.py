"""Feature files of images: their header, their checksums, and which of them may be used together."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from adaneg_openood.io.digests import tensor_digest
from adaneg_openood.io.files import atomic_path, read_json_object
from adaneg_openood.io.journal import digest_of

logger = logging.getLogger(__name__)

# of describe(): what must agree before two feature files may be used together
_IDENTITY = ("model", "weights", "dim", "preprocessing")
# of one file's rows; between files precision may differ, as text on a CPU and images on a GPU do
_ONE_FILE = (*_IDENTITY, "precision")
HEADER_KEY = "adaneg"
_CHECKSUM = "header_sha256"


def write_feature_file(
    path: Path, features: Tensor, labels: Tensor | None, about: dict[str, Any]
) -> None:
    """Write a ``.safetensors`` file with checksums of its features, labels and header.

    Args:
        path: the file.
        features: (N, D).
        labels: (N,) int64, or None.
        about: the header, JSON values.

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
        save_file(tensors, temporary, {HEADER_KEY: json.dumps(header)})


def refuse_damaged(path: Path, tensors: dict[str, Tensor]) -> None:
    """Compare what was read from a feature file with its checksums, if it has any.

    Raises:
        ValueError: it is not what was written; safetensors itself does not notice a flipped bit.
    """
    header = read_feature_header(path)
    for key in ("features", "labels"):
        checksum = header.get(f"{key}_sha256")
        if checksum is not None and (key not in tensors or tensor_digest(tensors[key]) != checksum):
            raise ValueError(
                f"{path}: damaged, its {key} do not have their checksum; encode the images again"
            )


def read_feature_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a feature file says of itself; empty for a file that was not made here.

    Keys: those of ``describe(model)``, ``decode``, ``source``, ``images_sha256``, ``batch_size``,
    ``names`` (N image names), ``skipped`` (name -> error), and checksums.

    Raises:
        ValueError: not a safetensors file, or its header is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: cannot be read, {error}") from error
    return parsed_header(path, metadata)


def parsed_header(path: str | os.PathLike[str], metadata: dict[str, str]) -> dict[str, Any]:
    """This package's part of a safetensors file's metadata; empty if there is none.

    Raises:
        ValueError: it is no JSON object.
    """
    if HEADER_KEY not in metadata:
        return {}
    try:
        header = json.loads(metadata[HEADER_KEY])
    # a hostile header may nest deeper than Python's stack
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged header, {error}") from error
    if not isinstance(header, dict):
        raise ValueError(f"{path}: damaged header, must be an object, got {type(header).__name__}")
    checked = {key: value for key, value in header.items() if key != _CHECKSUM}
    if _CHECKSUM in header and digest_of(checked) != header[_CHECKSUM]:
        raise ValueError(f"{path}: damaged header, it does not have its checksum")
    return header


def refuse_mixing(target: Path, provenance: dict[str, Any]) -> None:
    """Compare with the feature files that ``target`` would be used with.

    Those are the ``id``, ``near/*`` and ``far/*`` files and the text file's ``text.json`` of the
    same folder.

    Raises:
        ValueError: one was made with another backbone, weights or preprocessing; another precision
            is only warned of.
    """
    root = target.parent.parent if target.parent.name in ("near", "far") else target.parent
    others = sorted(
        file
        for folder in (root, root / "near", root / "far")
        for file in folder.glob("*.safetensors")
        if file != target and not file.name.startswith(".")
    )
    for other in others:
        header = read_feature_header(other)
        refuse_other(target, provenance, other, header, _IDENTITY)
        if header.get("precision", provenance.get("precision")) != provenance.get("precision"):
            logger.warning(
                "%s: encoded in %s, but %s in %s; scores differ a little from a run in one precision",
                *(target, provenance.get("precision"), other, header["precision"]),
            )
    about = root / "text.json"
    if about.is_file() and target.name != "text.npz":
        known = read_json_object(about)
        # a text tower knows no preprocessing
        identity = tuple(key for key in _IDENTITY if key != "preprocessing")
        refuse_other(target, provenance, about, known, identity)


def refuse_other_rows(target: Path, header: dict[str, Any], other: Path, known: dict[str, Any]) -> None:
    """Raise a ValueError if ``known`` is of another model, preprocessing or precision."""
    refuse_other(target, header, other, known, _ONE_FILE)


def refuse_other(
    target: Path,
    provenance: dict[str, Any],
    other: Path,
    known: dict[str, Any],
    identity: Sequence[str],
) -> None:
    """Raise a ValueError if the two differ in one of the keys that both have."""
    for key in differing(known, provenance, identity):
        raise ValueError(
            f"{target}: its {key} would be {provenance[key]!r}, but {other} was made with "
            f"{known[key]!r}; features of different models or preprocessing cannot be compared, "
            "so put them in different folders"
        )


def differing(
    one: Mapping[str, Any], other: Mapping[str, Any], identity: Sequence[str]
) -> Iterator[str]:
    """The keys of two provenances that both have, and that tell two models apart."""
    same_weights = "weights" in one and one["weights"] == other.get("weights")
    for key in identity:
        if key == "model" and same_weights:
            continue  # the same checkpoint under another path
        if key in one and key in other and one[key] != other[key]:
            yield key
