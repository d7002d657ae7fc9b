"""``mine`` and ``encode``: negative labels, and features of images and labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Optional

import typer

from adaneg_openood.benchmark.labels import make_labels, mining_of, named_classes
from adaneg_openood.benchmark.settings import LabelSettings
from adaneg_openood.cli import options
from adaneg_openood.cli.common import check_outputs
from adaneg_openood.cli.options import LABEL_NAMES, ModelChoice, label_settings, setting
from adaneg_openood.data import encode_to_file, refuse_mixing
from adaneg_openood.io.files import cache_folder
from adaneg_openood.io.processes import process_group
from adaneg_openood.text import ClassNames, LabelFeatures, TextCache
from adaneg_openood.vlm import describe


@options.command
def mine(
    settings: LabelSettings = label_settings(
        *("classes", "corpus", "mining", "n_negatives", "share", "percentile", "near_copy"),
        *("adjective_share", "prompt", "adjective_prompt", "match", "exclude", "exclude_related"),
        *("mining_seed", "wordnet", "lemmas", "download"),
        classes=setting("classes", default=...),
        exclude=setting("exclude", note="Repeatable."),
        mining_seed=setting("mining_seed", "--seed"),
    ),
    out: Path = typer.Option(..., help="File that gets the list, as readable text."),
    model: ModelChoice = options.MODEL,
    cache: Optional[Path] = options.CACHE,
) -> None:
    """Mine negative labels: the words farthest from every ID name."""
    # names, words and the output first: a typing error should not wait for a model to load
    check_outputs(out)
    names = named_classes(settings, "--classes")
    mining = mining_of(settings)
    mining = replace(mining, corpus=mining.load()[0])
    kept = TextCache(cache_folder("text", cache))
    mined = mining.run(model.load(), names, cache=kept, progress=True)
    mined.save(out)
    groups = f"; it is scored in {mined.groups} groups" if mined.groups else ""
    how = f"from {settings.corpus}, by recipe {settings.mining}{groups}"
    typer.echo(f"{out}: {len(mined)} negative labels {how}")
    asked = mining.config.resolved().n_negatives
    if isinstance(asked, int) and len(mined) < asked:
        typer.echo(f"{asked} were asked for, and {settings.corpus} holds no more that may be taken")


@options.command
def encode(
    images: Optional[Path] = typer.Argument(None, help="Folder of images, or an imglist."),
    out: Optional[Path] = typer.Option(
        None, help="Feature file, such as bench/id.safetensors or bench/far/NAME.safetensors."
    ),
    model: ModelChoice = options.MODEL,
    root: Optional[Path] = typer.Option(
        None, help="Folder that the paths of an imglist are relative to."
    ),
    labelled: Optional[bool] = typer.Option(
        None, "--labelled/--ood", help="Whether folders are classes, or every image is OOD."
    ),
    limit: Optional[int] = typer.Option(None, min=1, help="Take only the first so many images."),
    preprocessing: str = setting("preprocessing"),
    batch_size: int = options.ENCODE_BATCH,
    workers: Optional[int] = options.WORKERS,
    skip_broken: bool = setting("skip_broken"),
    decode: str = typer.Option(
        "cpu", help="cpu; or gpu: JPEG images are decoded on the CUDA device, a little differently."
    ),
    overwrite: bool = typer.Option(False, help="Replace finished files."),
    part_size: int = typer.Option(
        4096, min=1, help="Number of images per part, which is saved and shared among processes."
    ),
    settings: LabelSettings = label_settings(
        *LABEL_NAMES, classes=setting("classes", note="Writes the folder's text features.")
    ),
    folder: Optional[Path] = typer.Option(
        None, help="Benchmark folder that gets the text features of --classes."
    ),
    cache: Optional[Path] = options.CACHE,
) -> None:
    """Encode images into a feature file; with --classes and --folder, the labels of a benchmark folder.

    Under torchrun the images are shared by its processes: torchrun --nproc-per-node 4 -m adaneg_openood
    encode ... gives the same bytes as one process.
    """
    if (images is None) != (out is None) or (settings.classes is None) != (folder is None):
        raise ValueError("give IMAGES with --out, or --classes with --folder, or all four")
    if images is None and folder is None:
        raise ValueError("nothing to encode: give IMAGES with --out, or --classes with --folder")
    check_outputs(out, None if folder is None else folder / "text.npz")
    with process_group(model.device) as group:
        told = []
        names = group.local(lambda: named_classes(settings, "--classes"), first_alone=True)
        if folder is not None:
            n_labels = group.first(
                lambda: _write_labels(folder, names, settings, model, cache, overwrite)
            )
            told.append(f"{folder}: text features of {n_labels} labels")
        if images is not None and out is not None:
            before = out.stat().st_mtime_ns if out.exists() else None
            encode_to_file(
                images,
                out,
                model=model.name,
                root=root,
                labelled=labelled,
                limit=limit,
                classes=names,
                preprocessing=preprocessing,
                device=model.device,
                precision=model.precision,
                batch_size=batch_size,
                workers=workers,
                skip_broken=skip_broken,
                decode=decode,
                overwrite=overwrite,
                part_size=part_size,
                progress=True,
                group=group,
            )
            new = out.stat().st_mtime_ns != before
            told.append(f"{out}: {'written' if new else 'is there already, made of the same images'}")
        for line in told if group.is_first else ():
            typer.echo(line)


def _write_labels(
    folder: Path,
    names: ClassNames | None,
    settings: LabelSettings,
    model: ModelChoice,
    cache: Path | None,
    overwrite: bool,
) -> int:
    """Write a benchmark folder's text features; the number of labels."""
    file = folder / "text.npz"
    known = LabelFeatures.load(file) if file.exists() and not overwrite else None
    towers = None
    if settings.text_features is None:
        towers = model.load()
        about = describe(towers)
        about.pop("preprocessing", None)
        refuse_mixing(file, about)
    made = make_labels(towers, names, settings, cache=cache, progress=True)
    own = (made.n_id, made.names, made.digest)
    if known is not None and (known.n_id, known.names, known.digest) != own:
        raise ValueError(
            f"{file}: is there already, with other text features (of {len(known.names)} labels); name "
            "another folder, or give --overwrite"
        )
    made.save(folder)
    return len(made.names)
