"""``mine`` and ``encode``: negative labels, and features of images and labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import typer

from adaneg_openood.cli import options
from adaneg_openood.cli.common import check_outputs, readable_errors, say

if TYPE_CHECKING:
    from adaneg_openood.benchmark.settings import LabelSettings
    from adaneg_openood.vlm import VisionLanguageModel


def mine(
    classes: str = options.CLASSES,
    out: Path = typer.Option(..., help="File that gets the list, as readable text."),
    model: str = options.MODEL,
    corpus: str = options.CORPUS,
    mining: str = options.MINING,
    n_negatives: Optional[str] = options.N_NEGATIVES,
    share: Optional[float] = options.SHARE,
    percentile: float = options.PERCENTILE,
    near_copy: Optional[float] = options.NEAR_COPY,
    adjective_share: Optional[float] = options.ADJECTIVE_SHARE,
    prompt: Optional[str] = options.PROMPT,
    adjective_prompt: Optional[str] = options.ADJECTIVE_PROMPT,
    match: Optional[str] = options.MATCH,
    exclude: Optional[list[str]] = options.EXCLUDE,
    exclude_related: bool = options.EXCLUDE_RELATED,
    seed: int = options.MINING_SEED,
    wordnet: Optional[Path] = options.WORDNET,
    lemmas: str = options.LEMMAS,
    download: bool = options.DOWNLOAD,
    cache: Optional[Path] = options.CACHE,
    device: str = options.DEVICE,
    precision: str = options.PRECISION,
) -> None:
    """Mine negative labels: the words farthest from every ID name."""
    with readable_errors():
        from dataclasses import replace

        from adaneg_openood.benchmark.labels import mining_of, named_classes
        from adaneg_openood.text import TextCache
        from adaneg_openood.vlm import load_model
        from adaneg_openood.vlm.registry import check_model

        settings = label_settings(
            classes=classes,
            corpus=corpus,
            mining=mining,
            n_negatives=n_negatives,
            share=share,
            percentile=percentile,
            near_copy=near_copy,
            adjective_share=adjective_share,
            prompt=prompt,
            adjective_prompt=adjective_prompt,
            match=match,
            exclude=exclude or None,
            exclude_related=exclude_related,
            mining_seed=seed,
            wordnet=wordnet,
            lemmas=lemmas,
            download=download,
        )
        # names, words and the output first: a typing error should not wait for a model to load
        check_model(model)
        check_outputs(out)
        names = named_classes(settings, "--classes")
        found = mining_of(settings)
        found = replace(found, corpus=found.load()[0])
        towers = load_model(model, device=device, precision=precision)
        kept = TextCache(None if cache is None else cache / "text")
        mined = found.run(towers, names, cache=kept, progress=True)
        mined.save(out)
        groups = f", published with {mined.groups} groups" if mined.groups else ""
        typer.echo(f"{out}: {len(mined)} negative labels mined by {mining} from {corpus}{groups}")


def encode(
    images: Optional[Path] = typer.Argument(None, help="Folder of images, or an imglist."),
    out: Optional[Path] = typer.Option(
        None, help="Feature file, such as bench/id.safetensors or bench/far/NAME.safetensors."
    ),
    model: str = options.MODEL,
    root: Optional[Path] = typer.Option(
        None, help="Folder that the paths of an imglist are relative to."
    ),
    labelled: Optional[bool] = typer.Option(
        None, "--labelled/--ood", help="Whether folders are classes, or every image is OOD."
    ),
    limit: Optional[int] = typer.Option(None, min=1, help="Take only the first so many images."),
    preprocessing: str = options.PREPROCESSING,
    batch_size: int = options.ENCODE_BATCH,
    workers: Optional[int] = options.WORKERS,
    skip_broken: bool = options.SKIP,
    decode: str = typer.Option(
        "cpu", help="cpu; or gpu: JPEG images are decoded on the CUDA device, a little differently."
    ),
    overwrite: bool = typer.Option(False, help="Replace a finished file."),
    part_size: int = typer.Option(
        4096, min=1, help="Number of images per part, which is saved and shared among processes."
    ),
    classes: Optional[str] = options.setting("classes", note="Writes the folder's text features."),
    negatives: Optional[Path] = options.NEGATIVES,
    corpus: str = options.CORPUS,
    mining: str = options.MINING,
    n_negatives: Optional[str] = options.N_NEGATIVES,
    prompt: Optional[str] = options.PROMPT,
    adjective_prompt: Optional[str] = options.ADJECTIVE_PROMPT,
    learned_prompts: Optional[Path] = options.LEARNED_PROMPTS,
    text_features: Optional[Path] = options.TEXT_FEATURES,
    folder: Optional[Path] = typer.Option(
        None, help="Benchmark folder that gets the text features of --classes."
    ),
    cache: Optional[Path] = options.CACHE,
    device: str = options.DEVICE,
    precision: str = options.PRECISION,
) -> None:
    """Encode images into a feature file; with --classes and --folder, the labels of a benchmark folder.

    Under torchrun the images are shared by its processes: torchrun --nproc-per-node 4 -m adaneg_openood
    encode ... gives the same bytes as one process.
    """
    with readable_errors():
        from adaneg_openood.data import encode_to_file
        from adaneg_openood.io.processes import local_device, process_group
        from adaneg_openood.vlm.registry import check_model

        if (images is None) != (out is None) or (classes is None) != (folder is None):
            raise ValueError("give IMAGES with --out, or --classes with --folder, or all four")
        if images is None and classes is None:
            raise ValueError("nothing to encode: give IMAGES with --out, or --classes with --folder")
        check_model(model)
        check_outputs(out, None if folder is None else folder / "text.npz")
        with process_group(device) as group:
            own_device = local_device(device)
            if classes is not None and folder is not None:
                settings = label_settings(
                    classes=classes,
                    negatives=negatives,
                    corpus=corpus,
                    mining=mining,
                    n_negatives=n_negatives,
                    prompt=prompt,
                    adjective_prompt=adjective_prompt,
                    learned_prompts=learned_prompts,
                    text_features=text_features,
                )
                n_labels = group.first(
                    lambda: _write_labels(folder, settings, model, own_device, precision, cache)
                )
                say(group, f"{folder}: text features of {n_labels} labels")
            if images is not None and out is not None:
                encode_to_file(
                    images,
                    out,
                    model=model,
                    root=root,
                    labelled=labelled,
                    limit=limit,
                    preprocessing=preprocessing,
                    device=own_device,
                    precision=precision,
                    batch_size=batch_size,
                    workers=workers,
                    skip_broken=skip_broken,
                    decode=decode,
                    overwrite=overwrite,
                    part_size=part_size,
                    progress=True,
                    group=group,
                )
                say(group, f"{out}: written")


def label_settings(**given: Any) -> LabelSettings:
    """Options of the command line as settings, checked; a default counts as not given."""
    from adaneg_openood.benchmark.settings import LabelSettings
    from adaneg_openood.io.configuration import checked

    fields = LabelSettings.model_fields
    own = {name: value for name, value in given.items() if value != fields[name].default}
    return checked(LabelSettings, own, "command line")


def _write_labels(
    folder: Path, settings: LabelSettings, model: str, device: str, precision: str, cache: Path | None
) -> int:
    """Write a benchmark folder's text features; the number of labels."""
    from adaneg_openood.benchmark.labels import make_labels, named_classes
    from adaneg_openood.data import refuse_mixing
    from adaneg_openood.vlm import describe, load_model

    names = named_classes(settings, "--classes")
    towers: VisionLanguageModel | None = None
    if settings.text_features is None:
        towers = load_model(model, device=device, precision=precision)
        about = describe(towers)
        about.pop("preprocessing", None)
        refuse_mixing(folder / "text.npz", about)
    made = make_labels(towers, names, settings, cache=cache, progress=True)
    made.save(folder)
    return len(made.names)
