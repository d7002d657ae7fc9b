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


RECIPE = typer.Option("openood-vlm", "--method", help="Recipe: openood-vlm (AdaNeg's), neglabel or csp.")
NUMBER = typer.Option(None, "--number", "-n", help="Negative labels to keep, or all.")
SHARE = typer.Option(None, help="Share of each kind to keep, instead of a number.")
NEAR_COPY = typer.Option(None, help="Words with a cosine above it go last (csp: 0.95).")
EXCLUDE = typer.Option(None, help="Word file to leave out, such as noun.person; or none. Repeatable.")


def mine(
    id_source: str = ID,
    out: Path = typer.Option(..., help="Where the readable list goes."),
    model: str = MODEL,
    recipe: str = RECIPE,
    corpus: str = typer.Option("wordnet", help="wordnet, or a word list, one per line."),
    wordnet: Optional[Path] = typer.Option(None, help="Folder or zip that holds WordNet."),
    lemmas: str = typer.Option("first", help="first lemma of a synset, or all."),
    download: bool = typer.Option(False, help="Let nltk fetch WordNet."),
    number: Optional[str] = NUMBER,
    share: Optional[float] = SHARE,
    percentile: float = typer.Option(0.95, help="Of a word's cosines to the ID names."),
    near_copy: Optional[float] = NEAR_COPY,
    adjective_share: Optional[float] = typer.Option(
        None, help="In [0, 1]; as in the corpus if not given."
    ),
    seed: int = typer.Option(0, min=0, help="Of the nouns that csp draws for its adjectives."),
    exclude: Optional[list[str]] = EXCLUDE,
    prompt: Optional[str] = typer.Option(
        None, help="nice, simple, or a template with {}; the recipe's own if not given."
    ),
    match: Optional[str] = typer.Option(None, help="How ID names go: exact, caseless or plural."),
    exclude_related: bool = typer.Option(
        False, help="Drop what WordNet places under or above an ID class."
    ),
    device: str = DEVICE,
    precision: str = PRECISION,
) -> None:
    """Mine negative labels: the words farthest from every ID name."""
    with readable_errors():
        from adaneg_openood.text import Mining, MiningConfig, TextCache, class_names
        from adaneg_openood.text import mine as mine_words
        from adaneg_openood.vlm import load_model

        config = MiningConfig(
            recipe=recipe,
            n_negatives=_number(number),
            share=share,
            percentile=percentile,
            near_copy=near_copy,
            adjective_share=adjective_share,
            seed=seed,
            exclude=[] if exclude == ["none"] else exclude or None,
            prompt=prompt,
            match=match,
            exclude_related=exclude_related,
        )
        # names and words first: a typing error should not wait for a model to load
        classes = class_names(id_source)
        words, database = Mining(config, corpus, wordnet, lemmas, download).load()
        towers = load_model(model, device=device, precision=precision)
        mined = mine_words(
            towers, classes, words, config, wordnet=database, cache=TextCache(), progress=True
        )
        mined.save(out)
        groups = f", published with {mined.groups} groups" if mined.groups else ""
        typer.echo(f"{out}: {len(mined)} negative labels{groups}")


def _number(text: str | None) -> int | str | None:
    if text is None or text == "all":
        return text
    if not text.isdecimal():
        raise ValueError(f"--number must be a whole number or all, got {text!r}")
    return int(text) or "all"


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
    workers: Optional[int] = WORKERS,
    skip_broken: bool = SKIP_BROKEN,
    decode: str = typer.Option(
        "cpu",
        help="cpu, or gpu: decode and resize JPEGs on the CUDA device, a little differently.",
    ),
    overwrite: bool = typer.Option(False, help="Replace a finished file."),
    part_size: int = typer.Option(4096, min=1, help="Images kept and shared out at a time."),
    id_source: Optional[str] = typer.Option(
        None, "--id", help="ID names: writes the folder's text features."
    ),
    negatives: Optional[Path] = typer.Option(None, help="Mined list, with --id."),
    prompt: Optional[str] = typer.Option(None, help="Template of ID names and nouns, with --id."),
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

        if (images is None) != (out is None) or (id_source is None) != (folder is None):
            raise ValueError("give IMAGES with --out, or --id with --folder, or all four")
        if images is None and id_source is None:
            raise ValueError("nothing to encode: give IMAGES with --out, or --id with --folder")
        with process_group(device) as group:
            own_device = local_device(device)
            if id_source is not None and folder is not None:
                n_labels = group.first(
                    lambda: _write_labels(
                        folder,
                        id_source,
                        negatives,
                        model,
                        text_features,
                        device=own_device,
                        precision=precision,
                        prompt=prompt,
                        learned_prompts=prompts,
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
                    skip_broken=skip_broken,
                    decode=decode,
                    overwrite=overwrite,
                    part_size=part_size,
                    progress=True,
                    group=group,
                )
                say(group, f"{out}: written")


def _write_labels(
    folder: Path,
    id_source: str,
    negatives: Path | None,
    model: str,
    text_features: Path | None,
    *,
    device: str,
    precision: str,
    prompt: str | None,
    learned_prompts: Path | None,
) -> int:
    """Write a benchmark folder's text features; the number of labels."""
    from adaneg_openood.data import refuse_mixing
    from adaneg_openood.text import TextCache, class_names, label_features
    from adaneg_openood.vlm import describe, load_model

    classes = class_names(id_source)  # a typing error should not wait for a model to load
    towers = None
    if text_features is None:
        towers = load_model(model, device=device, precision=precision)
        about = describe(towers)
        about.pop("preprocessing", None)
        refuse_mixing(folder / "text.npz", about)
    made = label_features(
        towers,
        classes,
        negatives,
        prompt=prompt,
        learned_prompts=learned_prompts,
        text_features=text_features,
        cache=TextCache(),
        progress=True,
    )
    made.save(folder)
    return len(made.names)
