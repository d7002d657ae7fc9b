"""Images at both ends of the confidences."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from adaneg_openood.report.record import Example, RunRecord

if TYPE_CHECKING:
    from adaneg_openood.data import ImageSet

PER_STRIP = 8
_SIDE = 96  # pixels


def extreme_examples(
    record: RunRecord, images: Mapping[str, ImageSet], method: str
) -> tuple[Example, ...]:
    """Images of highest and lowest confidence of every OOD set's first stream, small PNGs.

    Raises:
        ValueError: images for a part that is not there, or another number of images than features.
    """
    sizes = {"id": len(record.id_labels), **{name: record.n_ood(name) for name in record.sets}}
    for part, given in images.items():
        if part not in sizes:
            raise ValueError(f"images given for {part!r}; parts are {', '.join(sizes)}")
        if len(given.names) != sizes[part]:
            raise ValueError(
                f"{len(given.names)} images given for {part!r}, which has {sizes[part]} features"
            )
    found: list[Example] = []
    for dataset in record.sets:
        conf, pred = record.conf(method, dataset), record.stream_of(method, dataset).pred
        n_ood = record.n_ood(dataset)
        sides = {"ood": (dataset, 0, n_ood), "id": ("id", n_ood, len(conf))}
        for side, (part, start, end) in sides.items():
            if part not in images:
                continue
            by_conf = np.argsort(conf[start:end], kind="stable")
            ends = {"high": by_conf[::-1][:PER_STRIP], "low": by_conf[:PER_STRIP]}
            for name, chosen in ends.items():
                for index in chosen.tolist():
                    text = _said(record, side, index, int(pred[start + index]))
                    found.append(
                        Example(
                            dataset=dataset,
                            side=side,
                            end=name,
                            conf=float(conf[start + index]),
                            text=text,
                            file=str(images[part].names[index]),
                            picture=_png(images[part].open(index)),
                        )
                    )
    return tuple(found)


def _said(record: RunRecord, side: str, index: int, pred: int) -> str:
    """What an image is, and what it was taken for."""
    taken_for = record.row_name(pred)
    if side == "ood":
        return f"nearest class {taken_for}"
    label = int(record.id_labels[index])
    return taken_for if pred == label else f"{record.row_name(label)}, seen as {taken_for}"


def _png(image: Image.Image) -> bytes:
    small = image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    small.save(file, format="PNG", optimize=True)
    return file.getvalue()
