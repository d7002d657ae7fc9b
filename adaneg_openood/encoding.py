"""Images to feature files: many workers, resumed after interruption, never mixed."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from adaneg_openood.evaluation._atomic import atomic_path
from adaneg_openood.image_lists import OOD_LABEL, class_folders, list_folder, read_imglist
from adaneg_openood.vlm import VisionLanguageModel, describe

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

ON_ERROR = ("raise", "skip")
_NAMED = 8  # broken images an error lists
# of describe(): what must agree before two feature files may be used together
_IDENTITY = ("model", "weights", "dim", "preprocessing")
# of one file's rows; between files precision may differ, as text on a CPU and images on a GPU do
_ONE_FILE = (*_IDENTITY, "precision")


@dataclass(frozen=True, eq=False)
class ImageSource:
    """Images in one order, with a label and a name each.

    Attributes:
        name: where they come from, for provenance and messages.
        names: N image names.
        labels: N labels; -1 is OOD.
        open: index -> PIL image of any mode; runs in worker processes.
    """

    name: str
    names: Sequence[str]
    labels: Sequence[int]
    open: Callable[[int], Image]

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError(f"{self.name}: holds no image")
        if len(self.names) != len(self.labels):
            raise ValueError(f"{self.name}: {len(self.names)} names but {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.names)


def image_source(
    source: Any,
    *,
    root: str | os.PathLike[str] | None = None,
    labelled: bool | None = None,
    limit: int | None = None,
) -> ImageSource:
    """Images of a folder, an imglist or a dataset.

    Args:
        source: a folder; an OpenOOD imglist (``path label`` lines); or a map-style dataset of
            (PIL image, label), such as torchvision's and Hugging Face's.
        root: what an imglist's paths are relative to; None is the imglist's own folder.
        labelled: True takes a folder's first-level folders for its classes, in sorted order; False
            gives every image -1, for an OOD set; None gives -1 to a folder's images, and those of
            imglists and datasets the labels they bring.
        limit: take the first so many images; None takes all.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: no images, or a bad line in the imglist.
        TypeError: the dataset's items are not (PIL image, label).
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 or None, got {limit}")
    if not isinstance(source, (str, os.PathLike)):
        return _of_dataset(source, labelled, limit)
    path = Path(source)
    if path.is_dir():
        items = list_folder(path, class_folders(path) if labelled else None)
        base = path
    elif path.is_file():
        items = read_imglist(path)
        base = path.parent if root is None else Path(root)
    else:
        raise FileNotFoundError(f"{path}: no such folder of images or imglist")
    items = items[:limit]
    names = [image for image, _ in items]
    labels = [OOD_LABEL if labelled is False else label for _, label in items]
    return ImageSource(str(path), names, labels, _FileOpener(base, names))


class _FileOpener:
    """A class, not a closure, so that spawned workers can receive it."""

    def __init__(self, base: Path, names: Sequence[str]) -> None:
        self.base = base
        self.names = names

    def __call__(self, index: int) -> Image:
        return load_image(self.base / self.names[index])


class _DatasetOpener:
    def __init__(self, dataset: Any, image_key: str | int) -> None:
        self.dataset = dataset
        self.image_key = image_key

    def __call__(self, index: int) -> Image:
        return to_eight_bit(self.dataset[index][self.image_key])


def _of_dataset(dataset: Any, labelled: bool | None, limit: int | None) -> ImageSource:
    from PIL import Image as images

    kind = type(dataset).__name__
    try:
        n = len(dataset)
        first = dataset[0] if n else None
    except (TypeError, KeyError) as error:
        raise TypeError(
            f"{kind}: must be a folder, an imglist, or a map-style dataset with len() and [index]"
        ) from error
    n = n if limit is None else min(n, limit)
    image_key: str | int = 0
    label_key: str | int = 1
    if isinstance(first, dict):  # Hugging Face datasets
        image_key = "image" if "image" in first else "img"
        label_key = "label" if "label" in first else "fine_label"
    if n and (first is None or not isinstance(first[image_key], images.Image)):  # type: ignore[index]
        raise TypeError(
            f"{kind}: its items must be (PIL image, label), with no transform set, because the "
            "model brings its own preprocessing"
        )
    # torchvision keeps labels as a list, so that they can be had without decoding every image
    labels = getattr(dataset, "targets", None)
    if labelled is False:
        labels = [OOD_LABEL] * n
    if labels is None:
        labels = getattr(dataset, "labels", None)
    if labels is None and isinstance(first, dict):
        labels = dataset[label_key]
    if labels is None:
        labels = [dataset[index][label_key] for index in range(n)]
    samples = getattr(dataset, "samples", None)
    names = [str(samples[i][0]) if samples else f"{kind}[{i}]" for i in range(n)]
    return ImageSource(
        kind, names, [int(labels[i]) for i in range(n)], _DatasetOpener(dataset, image_key)
    )


def load_image(path: str | os.PathLike[str]) -> Image:
    """Open and decode an image file.

    Raises:
        OSError, ValueError: it is missing, empty, damaged or no image.
    """
    from PIL import Image as images
    from PIL import ImageFile

    file = Path(path)
    if file.is_file() and file.stat().st_size == 0:
        raise ValueError("the file has 0 bytes")
    # OpenOOD makes Pillow fill truncated images with grey, for the whole process
    lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with images.open(file) as image:
            image.load()
            return to_eight_bit(image)
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def to_eight_bit(image: Image) -> Image:
    """An RGB image of the same look.

    Alpha is dropped, as OpenOOD does; palettes, grey and CMYK are converted. 16-bit grey, which
    X-ray images come in, is scaled down, because Pillow's own conversion clips it to white.
    """
    if image.mode.startswith("I"):
        import numpy as np
        from PIL import Image as images

        values = np.asarray(image).astype(np.int64)
        # 32-bit "I" is how Pillow opens some 16-bit files; 8-bit values in it stay as they are
        wide = image.mode.startswith("I;16") or values.max(initial=0) > 255
        image = images.fromarray((values >> 8 if wide else values).clip(0, 255).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


class _Pixels(Dataset):  # type: ignore[type-arg]
    """index -> (index, pixels, error): a worker must not die of one broken image."""

    def __init__(
        self, source: ImageSource, transform: Callable[[Image], Tensor], start: int, stop: int
    ) -> None:
        self.source = source
        self.transform = transform
        self.start = start
        self.stop = stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, offset: int) -> tuple[int, Tensor | None, str]:
        index = self.start + offset
        try:
            return index, self.transform(self.source.open(index)), ""
        # Pillow's decoders raise many kinds; SyntaxError and struct.error are two of them
        except Exception as error:
            return index, None, f"{type(error).__name__}: {error}"


def _collate(
    items: list[tuple[int, Tensor | None, str]],
) -> tuple[list[int], Tensor | None, list[tuple[int, str]]]:
    good = [(index, pixels) for index, pixels, _ in items if pixels is not None]
    bad = [(index, error) for index, pixels, error in items if pixels is None]
    stacked = torch.stack([pixels for _, pixels in good]) if good else None
    return [index for index, _ in good], stacked, bad


def encode_images(
    model: VisionLanguageModel,
    source: ImageSource,
    output: str | os.PathLike[str],
    *,
    batch_size: int = 256,
    workers: int = 4,
    on_error: str = "raise",
    part_size: int = 4096,
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Encode images into a feature file.

    The file holds ``features`` (N, D) float32 of unit length and, unless every label is -1,
    ``labels`` (N,) int64; names, source and provenance are in its header
    (:func:`read_feature_header`). Placed as ``id.safetensors``, ``near/<name>.safetensors`` or
    ``far/<name>.safetensors`` of one folder, files are what ``load_features`` reads.

    Work is kept in ``<output>.parts`` as it is done, and taken up there after an interruption;
    with the same ``batch_size`` the result is the same bytes. Workers change nothing.

    Args:
        model: the image tower.
        source: see :func:`image_source`.
        output: a ``.safetensors`` file.
        batch_size: images a forward pass.
        workers: decoding processes; 0 decodes in this one.
        on_error: ``"raise"`` stops at broken images and names them; ``"skip"`` leaves them out,
            with a warning, and lists them in the header.
        part_size: images kept at a time, rounded up to whole batches.
        overwrite: replace a finished file; otherwise it is left as it is if it is this very work.
        progress: show a bar.

    Returns:
        ``output``.

    Raises:
        ValueError: broken images; a finished or half-finished file, or another file of the same
            benchmark folder, made with another backbone, weights or preprocessing (or the file
            itself in another precision); a bad argument.
    """
    target = Path(output)
    if target.suffix != ".safetensors":
        raise ValueError(f"{target}: features are saved as .safetensors, so the name must end in it")
    if batch_size < 1 or part_size < 1:
        raise ValueError(f"batch_size and part_size must be at least 1, got {batch_size}, {part_size}")
    if workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    if on_error not in ON_ERROR:
        raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
    provenance = describe(model)
    refuse_mixing(target, provenance)
    header = {
        **provenance,
        "source": source.name,
        "images_sha256": _digest(source),
        "batch_size": batch_size,
        "on_error": on_error,
    }
    if target.exists() and not overwrite:
        _check_same_work(target, header)
        logger.info("%s: is there already, made with the same model from the same images", target)
        return target
    _encode_parts(model, source, target, header, part_size, workers, progress)
    _join_parts(target, source, header)
    return target


def encode_to_file(
    images: Any,
    output: str | os.PathLike[str],
    *,
    model: str | VisionLanguageModel = "open_clip:ViT-B-16/openai",
    root: str | os.PathLike[str] | None = None,
    labelled: bool | None = None,
    limit: int | None = None,
    preprocessing: str = "model",
    device: str = "cpu",
    precision: str = "auto",
    batch_size: int = 256,
    workers: int = 4,
    on_error: str = "raise",
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """What the command line calls: a folder, imglist or dataset to a feature file.

    Args:
        images, root, labelled, limit: see :func:`image_source`.
        output, batch_size, workers, on_error, overwrite, progress: see :func:`encode_images`.
        model: a name, see :func:`~adaneg_openood.vlm.load_model`, or a loaded model.
        preprocessing: ``"model"`` or ``"paper"``, of a model given by name.
        device, precision: of a model given by name.

    Raises:
        ValueError, TypeError, OSError, ImportError: with a message for people.
    """
    # the images first: a wrong path should not wait for a model to load
    source = image_source(images, root=root, labelled=labelled, limit=limit)
    if isinstance(model, str):
        from adaneg_openood.vlm import load_model

        model = load_model(model, device=device, precision=precision, preprocessing=preprocessing)
    return encode_images(
        model,
        source,
        output,
        batch_size=batch_size,
        workers=workers,
        on_error=on_error,
        overwrite=overwrite,
        progress=progress,
    )


def read_feature_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a feature file says of itself; empty for a file that was not made here.

    Keys: those of ``describe(model)``, ``source``, ``images_sha256``, ``batch_size``, ``on_error``,
    ``names`` (N image names), ``skipped`` (name -> error).

    Raises:
        ValueError: not a safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: cannot be read, {error}") from error
    return dict(json.loads(metadata["adaneg"])) if "adaneg" in metadata else {}


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
        _refuse_other(target, provenance, other, header, _IDENTITY)
        if header.get("precision", provenance.get("precision")) != provenance.get("precision"):
            logger.warning(
                "%s: encoded in %s, but %s in %s; scores differ a little from a run in one precision",
                *(target, provenance.get("precision"), other, header["precision"]),
            )
    about = root / "text.json"
    if about.is_file() and target.name != "text.npz":
        known = json.loads(about.read_text("utf-8"))
        # a text tower knows no preprocessing
        identity = tuple(key for key in _IDENTITY if key != "preprocessing")
        _refuse_other(target, provenance, about, known, identity)


def _refuse_other(
    target: Path,
    provenance: dict[str, Any],
    other: Path,
    known: dict[str, Any],
    identity: Sequence[str],
) -> None:
    same_weights = "weights" in known and known["weights"] == provenance.get("weights")
    for key in identity:
        if key == "model" and same_weights:
            continue  # the same checkpoint under another path
        if key in known and key in provenance and known[key] != provenance[key]:
            raise ValueError(
                f"{target}: its {key} would be {provenance[key]!r}, but {other} was made with "
                f"{known[key]!r}; features of different models or preprocessing cannot be compared, "
                "so put them in different folders"
            )


def _check_same_work(target: Path, header: dict[str, Any]) -> None:
    known = read_feature_header(target)
    _refuse_other(target, header, target, known, _ONE_FILE)
    if known.get("images_sha256") != header["images_sha256"]:
        raise ValueError(
            f"{target}: is there already, with other images (from {known.get('source')}); "
            "name another file, or ask to overwrite"
        )


def _digest(source: ImageSource) -> str:
    digest = hashlib.sha256()
    for name, label in zip(source.names, source.labels):
        digest.update(f"{label} {name}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def _parts_folder(target: Path) -> Path:
    return target.with_name(f"{target.name}.parts")


def _encode_parts(
    model: VisionLanguageModel,
    source: ImageSource,
    target: Path,
    header: dict[str, Any],
    part_size: int,
    workers: int,
    progress: bool,
) -> None:
    folder = _parts_folder(target)
    folder.mkdir(parents=True, exist_ok=True)
    batch_size = int(header["batch_size"])
    # whole batches a part, so that a resumed run forms the same batches
    part_size = math.ceil(part_size / batch_size) * batch_size
    plan = {**header, "part_size": part_size, "images": len(source)}
    plan_file = folder / "plan.json"
    if plan_file.exists():
        known = json.loads(plan_file.read_text("utf-8"))
        _refuse_other(target, plan, plan_file, known, _ONE_FILE)
        if {**known, "model": plan.get("model")} != plan:
            logger.warning("%s: was begun with other images or sizes, so it begins again", target)
            shutil.rmtree(folder)
            folder.mkdir()
    with atomic_path(plan_file) as temporary:
        temporary.write_text(json.dumps(plan), "utf-8")
    bar = None
    if progress:
        from tqdm.auto import tqdm

        bar = tqdm(total=len(source), desc=target.stem, unit="image")
    try:
        for start in range(0, len(source), part_size):
            stop = min(start + part_size, len(source))
            file = folder / f"{start:09d}.safetensors"
            if not file.exists():
                _encode_part(model, source, header, range(start, stop), file, workers, bar)
            elif bar is not None:
                bar.update(stop - start)
    finally:
        if bar is not None:
            bar.close()


def decoded_batches(
    model: VisionLanguageModel, source: ImageSource, rows: range, batch_size: int, workers: int
) -> Iterable[tuple[list[int], Tensor | None, list[tuple[int, str]]]]:
    """Images of a source, decoded and preprocessed by worker processes, in order.

    Yields:
        Indices of the good images; their pixels (b, 3, H, W), None if there are none; and
        (index, error) of those that cannot be read.
    """
    # the transform alone goes to the workers, never the towers
    transform = getattr(model, "transform", model.preprocess)
    return DataLoader(
        _Pixels(source, transform, rows.start, rows.stop),
        batch_size=batch_size,
        num_workers=min(workers, max(1, len(rows) // 8)) if workers else 0,
        collate_fn=_collate,
        pin_memory=model.device.type == "cuda",
        # a generator of its own, because the loader draws a seed from the global one otherwise
        generator=torch.Generator(),
    )


def _encode_part(
    model: VisionLanguageModel,
    source: ImageSource,
    header: dict[str, Any],
    rows: range,
    file: Path,
    workers: int,
    bar: Any,
) -> None:
    from safetensors.torch import save_file

    loader = decoded_batches(model, source, rows, int(header["batch_size"]), workers)
    features, kept, broken = [], [], []
    for indices, pixels, bad in _progressed(loader, bar):
        broken += bad
        if bad and header["on_error"] == "raise":
            break
        if pixels is not None:
            features.append(model.encode_image(pixels).float().cpu())
            kept += indices
    if broken and header["on_error"] == "raise":
        listed = "; ".join(f"{source.names[i]} ({error})" for i, error in broken[:_NAMED])
        more = f"; and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
        raise ValueError(
            f"{source.name}: {len(broken)} broken image(s): {listed}{more}. Mend or remove them, "
            "or skip broken images; what was encoded so far is kept"
        )
    for index, error in broken:
        logger.warning("%s: skipped broken image %s (%s)", source.name, source.names[index], error)
    tensors = {
        "features": torch.cat(features) if features else torch.zeros(0, model.dim),
        "rows": torch.tensor(kept, dtype=torch.int64),
    }
    errors = {source.names[index]: error for index, error in broken}
    with atomic_path(file) as temporary:
        save_file(tensors, temporary, {"skipped": json.dumps(errors)})


def _progressed(loader: Any, bar: Any) -> Iterator[Any]:
    for batch in loader:
        yield batch
        if bar is not None:
            bar.update(len(batch[0]) + len(batch[2]))


def _join_parts(target: Path, source: ImageSource, header: dict[str, Any]) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    folder = _parts_folder(target)
    features, rows = [], []
    skipped: dict[str, str] = {}
    for part in sorted(folder.glob("*.safetensors")):
        with safe_open(part, framework="pt") as opened:
            features.append(opened.get_tensor("features"))
            rows.append(opened.get_tensor("rows"))
            skipped.update(json.loads(opened.metadata()["skipped"]))
    kept = torch.cat(rows)
    if not len(kept):
        raise ValueError(f"{source.name}: every image is broken, nothing to save")
    tensors = {"features": torch.cat(features)}
    labels = torch.tensor([int(label) for label in source.labels], dtype=torch.int64)[kept]
    if (labels != OOD_LABEL).any():
        tensors["labels"] = labels
    names = [source.names[index] for index in kept.tolist()]
    about = {**header, "names": names, "skipped": skipped}
    with atomic_path(target) as temporary:
        save_file(tensors, temporary, {"adaneg": json.dumps(about)})
    shutil.rmtree(folder)
