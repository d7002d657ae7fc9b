"""Encoding images into a feature file of one's own choice."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from adaneg_openood.data.class_matching import Classes
from adaneg_openood.data.feature_files import read_feature_header, read_rows, write_feature_file
from adaneg_openood.data.feature_store import FeatureStore, ImageFeatures
from adaneg_openood.data.image_files import OOD_LABEL
from adaneg_openood.data.image_set import ImageSet
from adaneg_openood.data.mixing import IDENTITY, differing
from adaneg_openood.io.digests import tensor_digest
from adaneg_openood.io.files import check_writable, read_json_object
from adaneg_openood.io.locks import first_holds
from adaneg_openood.io.processes import ALONE, Group
from adaneg_openood.vlm import DEFAULT_MODEL, VisionLanguageModel, describe

logger = logging.getLogger(__name__)

# safetensors allows a header of 100 MB, and the names are in it; some room for the rest
_MOST_NAME_BYTES = 90_000_000


def encode_to_file(
    images: Any,
    output: str | os.PathLike[str],
    *,
    model: str | VisionLanguageModel = DEFAULT_MODEL,
    root: str | os.PathLike[str] | None = None,
    labelled: bool | None = None,
    limit: int | None = None,
    classes: Classes | None = None,
    preprocessing: str = "model",
    device: str = "cpu",
    precision: str = "auto",
    overwrite: bool = False,
    batch_size: int = 256,
    group: Group = ALONE,
    **encoding: Any,
) -> Path:
    """Encode images into a feature file.

    The file holds ``features`` (N, D) float32 of unit length and, unless every label is -1,
    ``labels`` (N,) int64; names, source and provenance are in its header
    (:func:`read_feature_header`). Placed as ``id.safetensors``, ``near/<name>.safetensors`` or
    ``far/<name>.safetensors`` of one folder, files are what ``load_features`` reads.

    The work is kept in a :class:`FeatureStore`, ``<output>.parts``, until the file is written, and taken
    up there after an interruption.

    Args:
        images: an :class:`ImageSet`, or what :meth:`ImageSet.of` takes.
        output: a ``.safetensors`` file.
        model: a name, see :func:`~adaneg_openood.vlm.load_model`, or a loaded model.
        root, labelled, limit, classes: see :meth:`ImageSet.of`.
        preprocessing: ``"model"`` or ``"paper"``, of a model given by name.
        device, precision: of a model given by name.
        overwrite: replace a finished file; otherwise its features are left as they are if they are of
            this very model and these very images, told by name, size and time of change, and its labels
            become those of the images.
        batch_size, group, encoding: ``workers``, ``skip_broken``, ``decode``, ``part_size`` and
            ``progress``, see :meth:`FeatureStore.get`.

    Returns:
        ``output``.

    Raises:
        ValueError: as :meth:`FeatureStore.get`; or a finished file, or another file of the same
            benchmark folder, made with another backbone, weights or preprocessing (or the file itself in
            another precision or way of decoding); or ``id.safetensors`` without labels.
        BlockingIOError: another process is writing the same file.
        TypeError, OSError, ImportError: with a message for people.
    """
    target = Path(output)

    def listed() -> ImageSet:
        if target.suffix != ".safetensors":
            raise ValueError(f"{target}: features are saved as .safetensors, so the name must end in it")
        check_writable(target)
        # the images before the model: a wrong path should not wait for it to load
        found = images
        if not isinstance(images, ImageSet):
            found = ImageSet.of(images, root=root, labelled=labelled, limit=limit, classes=classes)
        if target.stem == "id" and max(found.labels) < 0:
            raise ValueError(
                f"{target}: ID images need labels; say that the folders are classes (labelled), give an "
                "imglist with labels, or call the file near/NAME or far/NAME if the images are OOD"
            )
        _refuse_many_names(found)
        return found

    def loaded() -> VisionLanguageModel:
        from adaneg_openood.vlm import load_model

        if not isinstance(model, str):
            return model
        return load_model(model, device=device, precision=precision, preprocessing=preprocessing)

    source = group.local(listed)
    tower = group.local(loaded, first_alone=True)  # so that a download happens once
    header = {
        **describe(tower),
        "decode": encoding.get("decode", "cpu"),
        "source": source.name,
        "images_sha256": group.first(lambda: source.images_digest(range(len(source)))),
        "batch_size": batch_size,
        **_class_names(source),
    }
    store = FeatureStore(target.with_name(f"{target.name}.parts"))
    # released on every way out; the other ranks work under rank 0's lock
    with first_holds(group, target):
        group.first(lambda: refuse_mixing(target, header))
        skip_broken = encoding.get("skip_broken", False)
        if overwrite or not group.first(lambda: _is_finished(target, header, source, skip_broken)):
            made = store.get(source, tower, batch_size=batch_size, group=group, **encoding)
            group.first(lambda: _finish(target, header, made))
        # what a run has left that was killed after it wrote the file, too
        group.first(lambda: shutil.rmtree(store.folder, ignore_errors=True))
    return target


def _is_finished(target: Path, header: dict[str, Any], images: ImageSet, skip_broken: bool) -> bool:
    if not target.exists():
        return False
    known = read_feature_header(target)
    _refuse_other(target, header, target, known, (*IDENTITY, "precision", "decode"))
    if known.get("images_sha256") != header["images_sha256"]:
        raise ValueError(
            f"{target}: is there already, with other images (from {known.get('source')}), or they have "
            "changed since; name another file, or ask to overwrite"
        )
    if known["skipped"] and not skip_broken:
        return False
    labels = torch.tensor(images.without(known["skipped"]).labels, dtype=torch.int64)
    own = None if (labels == OOD_LABEL).all() else labels
    digest = None if own is None else tensor_digest(own)
    if (digest, header.get("classes")) != (known.get("labels_sha256"), known.get("classes")):
        # features do not depend on labels
        names, skipped = tuple(known["names"]), known["skipped"]
        made = ImageFeatures(read_rows(target)[0], own, names, skipped, False, known)
        _finish(target, {**header, "batch_size": known["batch_size"]}, made)
    return True


def _finish(target: Path, header: dict[str, Any], made: ImageFeatures) -> None:
    about = {**header, "names": list(made.names), "skipped": dict(made.skipped)}
    if "difference" in made.about:
        about["difference"] = made.about["difference"]
    for left in target.parent.glob(f".{target.name}.*.tmp"):
        left.unlink(missing_ok=True)  # of a run that was killed here; the lock is ours
    write_feature_file(target, made.features, made.labels, about)


def _class_names(images: ImageSet) -> dict[str, list[str]]:
    """The names of the labels, for readers that have other ones; nothing where they are not known."""
    if max(images.labels) >= 0:
        with suppress(ValueError):
            return {"classes": list(images.class_names().names)}
    return {}


def _refuse_many_names(images: ImageSet) -> None:
    """Said before hours of work, and not by safetensors after them."""
    if sum(map(len, images.names)) * 14 < _MOST_NAME_BYTES:  # a character takes 13 bytes at most
        return
    length = sum(len(json.dumps(json.dumps(name))) for name in images.names)
    if length > _MOST_NAME_BYTES:
        share = len(images) * _MOST_NAME_BYTES // length
        raise ValueError(
            f"{images.name}: the names of its {len(images)} images take {length / 1e6:.0f} MB, and a "
            f"feature file has room for {_MOST_NAME_BYTES / 1e6:.0f}; encode lists of at most about "
            f"{share} images into files of their own"
        )


def refuse_mixing(target: Path, provenance: dict[str, Any]) -> None:
    """Compare with the feature files that ``target`` would be used with.

    Those are the ``id``, ``near/*`` and ``far/*`` files and the text file's ``text.json`` of the
    same folder.

    Raises:
        ValueError: one was made with another backbone, weights or preprocessing; another precision
            is only warned of.
    """
    root = target.parent.parent if target.parent.name in ("near", "far") else target.parent
    for folder in (root, root / "near", root / "far"):
        for other in sorted(folder.glob("[!.]*.safetensors")):
            if other == target:
                continue
            header, own = read_feature_header(other), provenance.get("precision")
            _refuse_other(target, provenance, other, header, IDENTITY)
            if header.get("precision", own) != own:
                logger.warning(
                    "%s: encoded in %s, but %s in %s; scores differ a little from a run in one "
                    "precision",
                    *(target, own, other, header["precision"]),
                )
    about = root / "text.json"
    if about.is_file() and target.name != "text.npz":
        # a text tower knows no preprocessing
        _refuse_other(target, provenance, about, read_json_object(about), IDENTITY[:-1])


def _refuse_other(
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
