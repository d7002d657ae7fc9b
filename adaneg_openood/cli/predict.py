"""``build`` and ``predict``: a detector in use."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import typer

from adaneg_openood.benchmark.labels import make_labels, named_classes
from adaneg_openood.benchmark.methods import read_method
from adaneg_openood.benchmark.settings import LabelSettings
from adaneg_openood.cli import options
from adaneg_openood.cli.common import check_outputs, named_values, settings_text, write_json
from adaneg_openood.cli.options import LABEL_NAMES, ModelChoice, label_settings, one_of, setting
from adaneg_openood.data import ImageSet
from adaneg_openood.data.class_matching import match_names
from adaneg_openood.detectors import DETECTORS
from adaneg_openood.detectors.threshold import LEAST_SCORES
from adaneg_openood.io.files import atomic_path
from adaneg_openood.io.names import harmless, listed

if TYPE_CHECKING:
    from adaneg_openood.predictor import Prediction, Predictor

logger = logging.getLogger(__name__)

BATCH = setting("batch_size", default=64)
EXIF = typer.Option(
    True, "--exif/--no-exif", help="Turn images as their EXIF orientation says; benchmarks never do."
)


@options.command
def build(
    settings: LabelSettings = label_settings(*LABEL_NAMES, classes=setting("classes", default=...)),
    validation: Path = typer.Option(
        ..., help="ID images for the threshold, at least 20: a folder or an imglist."
    ),
    out: Path = typer.Option(..., help="Folder that the predictor is written to."),
    method: str = typer.Option("smoothed_neglabel", help="The detector.", **one_of(DETECTORS)),
    given: Optional[list[str]] = typer.Option(
        None, "--set", help="A setting of the detector, such as groups=5. Repeatable."
    ),
    tpr: float = typer.Option(0.95, help="Share of the ID images that the threshold keeps, in (0, 1]."),
    stream: bool = typer.Option(
        False, help="The validation images may hold OOD images too; the threshold is then lower."
    ),
    exif: bool = EXIF,
    model: ModelChoice = options.MODEL,
    batch_size: int = BATCH,
    workers: Optional[int] = options.WORKERS,
    cache: Optional[Path] = options.CACHE,
) -> None:
    """Make a predictor: labels, a calibrated detector, its threshold and its memory."""
    from adaneg_openood.predictor import PREDICTOR_FILE, Predictor

    spec = read_method({"detector": method, **dict(named_values("--set", "NAME=VALUE", given))})
    check_outputs(out / PREDICTOR_FILE)
    names = named_classes(settings, "--classes")
    images = ImageSet.of(validation, labelled=False, exif=exif)
    if len(images) < LEAST_SCORES:  # calibrate says so too, after the labels are encoded
        raise ValueError(
            f"{validation}: holds {len(images)} image(s); a threshold needs at least {LEAST_SCORES}"
        )
    folders = {name.partition("/")[0] for name in images.names if "/" in name and validation.is_dir()}
    other = sorted(folders - match_names(folders, names).keys()) if names else []
    if other and not stream:
        told = "%s: %s are no class, and their images are taken for ID"
        logger.warning(told, validation, listed(other))
    towers = model.load()
    labels = make_labels(
        towers, names, settings, takes_corpus=spec.takes_corpus, cache=cache, progress=True
    )
    predictor = Predictor(towers, labels, spec.detector, spec.settings)
    predictor.calibrate(
        images, tpr, of_id=not stream, batch_size=batch_size, workers=workers, progress=True
    )
    predictor.save(out)
    typer.echo(f"{out}: {labels.n_id} ID names, {labels.n_negatives} negatives, method {method}")
    typer.echo(f"threshold {predictor.shown_threshold}")
    about = {**predictor.detector.settings(), "batch_size": batch_size}
    typer.echo(settings_text({predictor.detector.info.title: about}))


@options.command
def predict(
    run: Path = typer.Argument(..., help="Folder of a predictor, which build makes."),
    images: list[Path] = typer.Argument(..., help="Images, folders of images, or imglists."),
    csv_file: Optional[Path] = typer.Option(
        None, "--csv", help="Write one row per image here, the most likely OOD first."
    ),
    json_file: Optional[Path] = options.JSON,
    keep: bool = typer.Option(
        False, help="Save what the detector learns from these images; another process waits meanwhile."
    ),
    exif: bool = EXIF,
    batch_size: int = BATCH,
    workers: Optional[int] = options.WORKERS,
    device: str = options.DEVICE,
) -> None:
    """Print a verdict, a class, a confidence and the nearest negative labels for each image.

    An image is OOD where its confidence is below the threshold. Both lie in [0, 1]; with AdaNeg they
    reach 1 + lambda, and with OODD they lie in [-1, 1]. The label is the nearest ID name, whatever the
    verdict.

    Exit status: 0 if every image was judged, 1 if some could not be read, 2 if nothing was done.
    """
    from adaneg_openood.predictor import Predictor

    check_outputs(csv_file, json_file)
    sources = [ImageSet.of(path, labelled=False, exif=exif) for path in images]
    chosen: dict[str, Any] = {"batch_size": batch_size, "workers": workers}
    if keep:
        with Predictor.keeping(run, device=device) as predictor:
            rows = list(_judged(predictor, sources, chosen))
    else:
        rows = list(_judged(Predictor.load(run, device=device), sources, chosen))
    if csv_file is not None:
        _write_csv(csv_file, rows)
    # without NaN, which JSON has not
    write_json(
        json_file,
        [{key: None if value != value else value for key, value in row.items()} for row in rows],
    )
    counts = Counter(row["verdict"] or "unreadable" for row in rows)
    told = ", ".join(f"{counts[kind]} {kind}" for kind in ("ID", "OOD", "unreadable") if counts[kind])
    typer.echo(f"{len(rows)} image(s): {told}")
    if counts["unreadable"] == len(rows):
        raise ValueError("no image could be read")
    if counts["unreadable"]:
        raise typer.Exit(1)


def _judged(
    predictor: Predictor, sources: list[ImageSet], chosen: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """One row per image; each is printed as soon as it is there."""
    typer.echo(f"{predictor.detector.info.title}, threshold {predictor.shown_threshold}")
    for source in sources:
        for made in predictor.predict(source, **chosen):
            typer.echo(harmless(_line(made)))
            path = os.path.abspath(os.path.join(source.base or "", made.image))
            yield {"path": path, **dataclasses.asdict(made)}


def _line(made: Prediction) -> str:
    if made.error:
        return f"{made.image}: cannot be read ({made.error})"
    is_id = made.verdict == "ID"
    said = f"ID, {made.label}" if is_id else f"OOD (nearest ID name: {made.label})"
    return (
        f"{made.image}: {said}, confidence {made.confidence:.4f} {'>=' if is_id else '<'} "
        f"{made.threshold:.4f}; negatives: {', '.join(made.negatives)}"
    )


def _write_csv(file: Path, rows: list[dict[str, Any]]) -> None:
    import pandas as pd

    frame = pd.DataFrame(rows).sort_values("confidence", kind="stable")
    frame["negatives"] = frame["negatives"].map("; ".join)
    for column in ("path", "image", "label", "negatives", "error"):
        frame[column] = frame[column].map(lambda text: harmless(text, "csv"))
    with atomic_path(file) as temporary:
        frame.to_csv(temporary, index=False)
