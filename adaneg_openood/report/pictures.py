"""Small pictures of images that tell something: ends of the confidences, and what the memory holds."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from adaneg_openood.detectors.bank import FeatureBank
from adaneg_openood.detectors.fixed_bank import FixedBank, as_pooled
from adaneg_openood.evaluation import FeatureSet, StreamResult
from adaneg_openood.evaluation.replaying import replay_streams
from adaneg_openood.evaluation.streams import Stream
from adaneg_openood.report.record import MEMORY, Example, RunRecord, telling_rows

if TYPE_CHECKING:
    from adaneg_openood.data import ImageSet

logger = logging.getLogger(__name__)

_SIDE = 96  # pixels, so that a picture is at most about 9 kB
_PER_STRIP, _PER_ROW, _ROWS = 8, 9, 4
_MOST = 360  # pictures of either kind on a page; many sets get fewer each


def check_images(images: Mapping[str, ImageSet], data: FeatureSet) -> None:
    """Raise a ValueError for a part that is not there, or another number of images than features."""
    sizes = {part: len(rows) for part, rows in {"id": data.id_features, **data.near, **data.far}.items()}
    for part, given in images.items():
        if part not in sizes:
            raise ValueError(f"images given for {part!r}; parts are {', '.join(sizes)}")
        if len(given) != sizes[part]:
            raise ValueError(f"{len(given)} images given for {part!r}, which has {sizes[part]} features")


def examples(
    record: RunRecord,
    images: Mapping[str, ImageSet],
    data: FeatureSet,
    detectors: Mapping[str, Any],
    device: torch.device | str | None,
) -> tuple[Example, ...]:
    """Every picture of a page, of the sets whose images are at hand; see :func:`check_images`."""
    shares = _MOST // len(record.results.splits)
    shown = [*_extremes(record, min(_PER_STRIP, max(1, shares // 4)))]
    shown += _held(record, data, detectors, device, min(_ROWS, max(1, shares // (2 * _PER_ROW))))
    found = []
    for dataset, place, row, index in shown:
        stream = record.first(record.judge, dataset)
        is_ood = index < stream.n_ood
        part, number = (dataset, index) if is_ood else ("id", index - stream.n_ood)
        if part not in images:
            continue
        name = str(images[part].names[number])
        try:
            picture = _jpeg(images[part].open(number))
        except (OSError, ValueError) as error:  # it was moved since it was encoded
            logger.warning("%s of %s is not shown: %s", name, part, error)
            continue
        conf, said = float(stream.conf[index]), _said(record, stream, index)
        found.append(Example(dataset, place, row, is_ood, conf, said, name, picture))
    return tuple(found)


_Found = tuple[str, str, int, int]  # OOD set, place, text row, index into concat(OOD, ID)


def _extremes(record: RunRecord, n: int) -> Iterator[_Found]:
    """Images of highest and lowest confidence."""
    for dataset in record.results.splits:
        stream = record.first(record.judge, dataset)
        for side, start, end in (("ood", 0, stream.n_ood), ("id", stream.n_ood, len(stream.conf))):
            ranked = (start + np.argsort(stream.conf[start:end], kind="stable")).tolist()
            for name, chosen in (("high", ranked[::-1][:n]), ("low", ranked[:n])):
                yield from ((dataset, f"{side} {name}", -1, index) for index in chosen)


def _held(
    record: RunRecord,
    data: FeatureSet,
    detectors: Mapping[str, Any],
    device: torch.device | str | None,
    n_rows: int,
) -> Iterator[_Found]:
    """Images in the judge's bank: of ID rows with the most OOD images, and of the fullest negative rows.

    A bank keeps features, so the first streams are met once more, and each feature is looked for.
    """
    detector = detectors[record.judge]
    if not isinstance(getattr(detector, "bank", None), (FeatureBank, FixedBank)):
        return
    run = record.results
    streams = [Stream(split, name, run.seeds[0], run.protocol) for name, split in run.splits.items()]
    for result in replay_streams(data, {record.judge: detector}, streams, device=device):
        known = record.first(record.judge, result.dataset)
        bank = as_pooled(detector.bank)
        ids, negatives = telling_rows(known, run.about.n_classes, n_rows)
        ood: torch.Tensor = {**data.near, **data.far}[result.dataset]
        every = torch.cat([ood, data.id_features]).to(bank.features.device).float()
        every = torch.nn.functional.normalize(every, dim=1)
        owners = bank.rows[: bank.n_cached]
        for row in (*ids, *negatives):
            mine = (owners == row).nonzero().squeeze(1)
            mine = mine[bank.entropies[mine].argsort(stable=True)][:_PER_ROW]
            for index in (bank.features[mine].float() @ every.T).argmax(dim=1).tolist():
                yield result.dataset, MEMORY, row, index


def _said(record: RunRecord, stream: StreamResult, index: int) -> str:
    """What an image is, and what it was taken for."""
    label, taken_for = int(stream.label[index]), record.row_name(int(stream.pred[index]))
    if label < 0:
        return f"nearest class {taken_for}"
    return taken_for if label == stream.pred[index] else f"{record.row_name(label)}, seen as {taken_for}"


def _jpeg(image: Image.Image) -> bytes:
    small = image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    small.save(file, format="JPEG", quality=80, optimize=True)
    return file.getvalue()
