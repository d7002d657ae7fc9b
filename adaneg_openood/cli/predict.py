"""``build`` and ``predict``: a detector in use."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Optional

import typer

from adaneg_openood.cli.common import DEVICE, WORKERS, readable_errors
from adaneg_openood.cli.labels import ID, MODEL, PRECISION

BATCH = typer.Option(64, min=1, help="Images scored at a time.")


def build(
    id_source: str = ID,
    negatives: Optional[Path] = typer.Option(None, help="Mined list, or any word list."),
    validation: Path = typer.Option(..., help="ID images for the threshold: a folder or an imglist."),
    out: Path = typer.Option(..., help="Folder of the run."),
    tpr: float = typer.Option(0.95, help="Share of ID images to keep."),
    stream: bool = typer.Option(False, help="The validation images may be OOD too: a lower threshold."),
    text_features: Optional[Path] = typer.Option(None, help="Text features of your own."),
    model: str = MODEL,
    prompt: Optional[str] = typer.Option(None, help="nice, simple, or a template with {}."),
    batch_size: int = BATCH,
    workers: Optional[int] = WORKERS,
    device: str = DEVICE,
    precision: str = PRECISION,
) -> None:
    """Make a run folder: labels, a calibrated detector, its threshold and its memory."""
    with readable_errors():
        from adaneg_openood.data import ImageSet
        from adaneg_openood.predictor import Predictor
        from adaneg_openood.text import TextCache, class_names, label_features
        from adaneg_openood.vlm import load_model

        source = ImageSet.of(validation, labelled=False, exif=True)
        classes = class_names(id_source)
        towers = load_model(model, device=device, precision=precision)
        labels = label_features(
            towers,
            classes,
            negatives,
            prompt=prompt,
            text_features=text_features,
            cache=TextCache(),
            progress=True,
        )
        predictor = Predictor(towers, labels)
        threshold = predictor.calibrate(
            source, tpr, of_id=not stream, batch_size=batch_size, workers=workers, progress=True
        )
        predictor.save(out)
        typer.echo(f"{out}: {labels.n_id} ID names, {len(labels.names) - labels.n_id} negatives")
        typer.echo(f"threshold {threshold}")


def predict(
    images: Path = typer.Argument(..., help="An image, a folder of images, or an imglist."),
    run: Path = typer.Option(..., "--model", help="Run folder, see build."),
    csv_file: Optional[Path] = typer.Option(None, "--csv", help="Write a row an image here."),
    keep: bool = typer.Option(False, help="Save what the detector learns from these images."),
    batch_size: int = BATCH,
    workers: Optional[int] = WORKERS,
    device: str = DEVICE,
) -> None:
    """Label, confidence and verdict of images, with the negative labels that lie nearest."""
    with readable_errors():
        from adaneg_openood.data import ImageSet
        from adaneg_openood.io.files import atomic_path
        from adaneg_openood.predictor import OOD, Predictor

        source = ImageSet.of(images, labelled=False, exif=True)
        predictor = Predictor.load(run, device=device)
        rows, broken = [], 0
        typer.echo(f"threshold {predictor.threshold}")
        for made in predictor.predict(source, batch_size=batch_size, workers=workers):
            rows.append(made)
            if made.error is not None:
                broken += 1
                typer.echo(f"{made.image}: cannot be read ({made.error})")
                continue
            verdict = f"{OOD} (nearest ID name: {made.nearest})" if made.label == OOD else made.label
            near = ", ".join(made.negatives)
            typer.echo(f"{made.image}: {verdict}, confidence {made.confidence:.4f}; negatives: {near}")
        if csv_file is not None:
            import pandas as pd

            frame = pd.DataFrame([dataclasses.asdict(row) for row in rows])
            frame["negatives"] = frame["negatives"].map("; ".join)
            with atomic_path(csv_file) as temporary:
                frame.to_csv(temporary, index=False)
        if keep:
            predictor.save(run)
        if broken:
            typer.echo(f"{broken} of {len(rows)} image(s) could not be read", err=True)
        if broken == len(rows):
            raise ValueError(f"{images}: no image could be read")
