"""``mine`` and ``encode``: negative labels, and features of images and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import typer

from adaneg_openood.cli.common import (
    DEVICE,
    PREPROCESSING,
    SKIP_BROKEN,
    WORKERS,
    readable_errors,
    say,
)

MODEL = typer.Option("open_clip:ViT-B-16/openai", help="Backbone, such as open_clip:ARCH/TAG or /FILE.")
PRECISION = typer.Option("auto", help="auto (fp16 on CUDA), fp32, fp16 or bf16.")
ID = typer.Option(
    ..., "--id", help="imagenet, imagenet200, cifar10, cifar100, bimcv, or a file of names."
)


def mine(
    id_source: str = ID,
    out: Path = typer.Option(..., help="Where the readable list goes."),
    model: str = MODEL,
    corpus: str = typer.Option("wordnet", help="wordnet, or a word list, one a line."),
    wordnet: Optional[Path] = typer.Option(None, help="Folder or zip that holds WordNet."),
    lemmas: str = typer.Option("first", help="first lemma of a synset, or all."),
    download: bool = typer.Option(False, help="Let nltk fetch WordNet."),
    number: int = typer.Option(10_000, "--number", "-n", help="Negative labels to keep; 0 keeps all."),
    percentile: float = typer.Option(0.95, help="Of a word's cosines to the ID names."),
    adjective_share: Optional[float] = typer.Option(
        None, help="In [0, 1]; as in the corpus if not given."
    ),
    prompt: str = typer.Option("nice", help="nice, simple, or a template with {}."),
    match: str = typer.Option("caseless", help="How ID names are removed: exact, caseless or plural."),
    exclude_related: bool = typer.Option(
        False, help="Drop what WordNet places under or above an ID class."
    ),
    device: str = DEVICE,
    precision: str = PRECISION,
) -> None:
    """Mine negative labels: the words farthest from every ID name."""
    with readable_errors():
        from adaneg_openood.text import MiningConfig
        from adaneg_openood.text.workflow import mine_to_file

        config = MiningConfig(
            n_negatives=number or None,
            percentile=percentile,
            adjective_share=adjective_share,
            prompt=prompt,
            match=match,
            exclude_related=exclude_related,
        )
        mined = mine_to_file(
            out,
            id_source=id_source,
            model=model,
            corpus=corpus,
            wordnet=wordnet,
            lemmas=lemmas,
            download=download,
            config=config,
            device=device,
            precision=precision,
        )
        typer.echo(f"{out}: {len(mined)} negative labels")


def encode(
    images: Optional[Path] = typer.Argument(None, help="Folder of images, or an imglist."),
    out: Optional[Path] = typer.Option(
        None, help="Feature file, such as bench/id.safetensors or bench/far/NAME.safetensors."
    ),
    model: str = MODEL,
    root: Optional[Path] = typer.Option(None, help="What an imglist's paths are relative to."),
    labelled: Optional[bool] = typer.Option(
        None, "--labelled/--ood", help="Folders are classes, or every image is OOD."
    ),
    limit: Optional[int] = typer.Option(None, min=1, help="Only the first so many images."),
    preprocessing: str = PREPROCESSING,
    batch_size: int = typer.Option(256, min=1),
    workers: int = WORKERS,
    skip_broken: bool = SKIP_BROKEN,
    overwrite: bool = typer.Option(False, help="Replace a finished file."),
    part_size: int = typer.Option(4096, min=1, help="Images kept and shared out at a time."),
    id_source: Optional[str] = typer.Option(
        None, "--id", help="ID names: writes the folder's text features."
    ),
    negatives: Optional[Path] = typer.Option(None, help="Mined list, with --id."),
    prompt: str = typer.Option("nice", help="Template of ID names and nouns, with --id."),
    prompts: Optional[Path] = typer.Option(
        None, help="Learned prompts (CoOp, NegPrompt, LAPT), with --id."
    ),
    text_features: Optional[Path] = typer.Option(None, help="Text features of your own, with --id."),
    folder: Optional[Path] = typer.Option(None, help="Benchmark folder that gets the text, with --id."),
    device: str = DEVICE,
    precision: str = PRECISION,
) -> None:
    """Encode images into a feature file; with --id and --folder, the labels of a benchmark folder.

    Under torchrun the images are shared by its processes: torchrun --nproc-per-node 4 -m adaneg_openood
    encode ... gives the same bytes as one process.
    """
    with readable_errors():
        from adaneg_openood.data import encode_to_file
        from adaneg_openood.io.processes import local_device, process_group
        from adaneg_openood.text.workflow import labels_to_folder

        if (images is None) != (out is None) or (id_source is None) != (folder is None):
            raise ValueError("give IMAGES with --out, or --id with --folder, or all four")
        if images is None and id_source is None:
            raise ValueError("nothing to encode: give IMAGES with --out, or --id with --folder")
        with process_group(device) as group:
            own_device = local_device(device)
            if id_source is not None and folder is not None:
                n_labels = group.first(
                    lambda: len(
                        labels_to_folder(
                            folder,
                            id_source=id_source,
                            negatives=negatives,
                            model=model,
                            prompt=prompt,
                            prompts=prompts,
                            features=text_features,
                            device=own_device,
                            precision=precision,
                        ).names
                    )
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
                    on_error="skip" if skip_broken else "raise",
                    overwrite=overwrite,
                    part_size=part_size,
                    group=group,
                )
                say(group, f"{out}: written")
