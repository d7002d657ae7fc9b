"""Settings: one name, one default and one check for the benchmark's YAML, OpenOOD's and the commands.

Each model is a group of settings that belong together. A benchmark, a postprocessor of OpenOOD and a
command take the groups they need; the descriptions are the help of the command line and the JSON schema.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Optional, Union

from pydantic import BeforeValidator, Field, ValidationInfo

from adaneg_openood.io.checks import shown
from adaneg_openood.io.configuration import Number, Section, Whole
from adaneg_openood.io.processes import Group, local_device
from adaneg_openood.text.classnames import BENCHMARKS, benchmark_key
from adaneg_openood.text.prompts import templates
from adaneg_openood.vlm import DEFAULT_MODEL

NAMED_CLASSES = (*BENCHMARKS, "demo")
NAMED_CORPORA = ("wordnet", "demo")
FORMER_NAMES = {
    "backbone": "model",
    "cache_dir": "cache",
    "candidates": "corpus",
    "class_names": "classes",
    "template": "prompt",
    "adjective_template": "adjective_prompt",
    "prompts": "learned_prompts",
    "protocol": "order (mixed or id_first)",
}


def _beside(path: Any, info: ValidationInfo) -> Any:
    """A path that a file names is relative to that file; elsewhere to where the user is."""
    if not isinstance(path, (str, os.PathLike)):
        return path
    base = (info.context or {}).get("base")
    place = Path(path).expanduser()
    return place if base is None else Path(base) / place


def _read_classes(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, (list, tuple)):
        # YAML reads the class name "no" as false
        odd = [name for name in value if not isinstance(name, str)]
        if odd or not value:
            raise ValueError(
                f"must be a list of names, got {shown(odd[0] if odd else value)}; put names such as "
                "no, on and 7 in quotes"
            )
        return tuple(value)
    if not isinstance(value, (str, os.PathLike)):
        raise ValueError(f"must be a benchmark's name, a file or a list of names, got {shown(value)}")
    key = benchmark_key(str(value))
    return key if key in NAMED_CLASSES else str(_beside(value, info))


def _read_corpus(value: Any, info: ValidationInfo) -> Any:
    return value if value in NAMED_CORPORA else str(_beside(value, info))


def _read_prompt(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, str):
        raise ValueError(f"must be text, got {shown(value)}")
    file = _beside(value, info)
    value = str(file) if "{}" not in value and file.is_file() else value
    templates(value)
    return value


def _read_n_negatives(value: Any) -> Any:
    number = "all" if value == "all" else str(value)
    if number != "all" and (not number.isdigit() or number == "0"):
        raise ValueError(f"must be a whole number from 1, or all, got {shown(value)}")
    return number if number == "all" else int(number)


def read_seeds(value: Any) -> tuple[int, ...]:
    """Seeds of the stream orders: from a list of them or from their number, also as text.

    Raises:
        ValueError: there is none, one is there twice, or something is no seed.

    Example:
        >>> read_seeds(3), read_seeds([4, 7]), read_seeds("4,7")
        ((0, 1, 2), (4, 7), (4, 7))
    """
    parts = value.split(",") if isinstance(value, str) and "," in value else value
    listed = parts if isinstance(parts, (list, tuple)) else [parts]
    numbers = [int(part) for part in listed if str(part).strip().isdigit()]
    found = tuple(numbers) if listed is parts else tuple(range(sum(numbers)))
    if not found or len(numbers) < len(listed) or len(set(found)) < len(found):
        raise ValueError(
            f"must be a list of distinct whole numbers from 0, or how many seeds, got {shown(value)}"
        )
    return found


def shifted(seeds: tuple[int, ...], first: int | None) -> tuple[int, ...]:
    """Seeds from ``first`` on, as many as there were; None leaves them as they are.

    Raises:
        ValueError: the seeds are not those from 0 on, so somebody chose them one by one.

    Example:
        >>> shifted((0, 1, 2), 7)
        (7, 8, 9)
    """
    if first is None:
        return seeds
    if seeds != tuple(range(len(seeds))):
        raise ValueError(
            f"the seeds are given one by one ({shown(list(seeds))}), and a first seed ({first}) too"
        )
    return tuple(range(first, first + len(seeds)))


def _read_list_file(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, Mapping):
        raise ValueError(
            "must be a file; mining has keys of its own beside it: corpus, mining, n_negatives, "
            "percentile and others"
        )
    return _beside(value, info)


def _read_files(value: Any) -> Any:
    listed = [value] if isinstance(value, str) else value
    return () if listed in (["none"], ("none",)) else listed


File = Annotated[Path, BeforeValidator(_beside)]


class ModelSettings(Section):
    """The vision-language model."""

    model: str = Field(
        DEFAULT_MODEL,
        description="open_clip:ARCHITECTURE/TAG, open_clip:ARCHITECTURE//path/to/weights, hf:NAME or "
        "hf:/folder (transformers), clip:ViT-B/16 (OpenAI's package), or demo, the embedded one.",
    )
    preprocessing: Literal["model", "paper"] = Field(
        "model", description="model: the model's own; paper: shorter side to 256, centre crop 224."
    )
    precision: Literal["auto", "fp32", "fp16", "bf16"] = Field(
        "auto", description="auto (fp16 on CUDA, fp32 elsewhere), fp32, fp16 or bf16."
    )


class NameSettings(Section):
    """The text rows of the ID classes."""

    former_names: ClassVar[Mapping[str, str]] = FORMER_NAMES

    classes: Annotated[Union[str, tuple[str, ...], None], BeforeValidator(_read_classes)] = Field(
        None,
        description="ID classes: imagenet, imagenet200, cifar10, cifar100, bimcv, demo, a file of "
        "names, a folder with one folder per class, or, in a YAML file, a list.",
    )
    prompt: Annotated[Optional[str], BeforeValidator(_read_prompt)] = Field(
        None,
        description="Template of ID names and nouns: nice, simple, plain, ensemble, a text with {} in "
        "it, or a file with one template per line; that of the list of negatives, or nice, if not "
        "given.",
    )
    text_features: Optional[File] = Field(
        None,
        description="Text features of your own (.npz, .safetensors or .pt; ID rows first) instead of "
        "prompts and negatives.",
    )
    logit_scale: Optional[Number] = Field(
        None, gt=0, description="Scale of the cosines; the model's if not given."
    )


class NegativeSettings(Section):
    """Where negative labels come from."""

    former_names: ClassVar[Mapping[str, str]] = FORMER_NAMES

    negatives: Annotated[Optional[Path], BeforeValidator(_read_list_file)] = Field(
        None, description="File of negative labels: what mine writes, or any word list."
    )
    corpus: Annotated[str, BeforeValidator(_read_corpus)] = Field(
        "wordnet",
        description="Words that negative labels are mined from: wordnet, demo, or a word list or a "
        "folder of them.",
    )
    mining: Literal["openood-vlm", "neglabel", "csp"] = Field(
        "openood-vlm", description="Recipe of mining: openood-vlm (AdaNeg's), neglabel or csp."
    )
    n_negatives: Annotated[Union[int, Literal["all"], None], BeforeValidator(_read_n_negatives)] = Field(
        None, description="How many negative labels are mined, or all; 10000 for openood-vlm."
    )
    share: Optional[Number] = Field(
        None, gt=0, le=1, description="Share of each kind of word to keep, instead of n_negatives."
    )
    percentile: Number = Field(
        0.95, ge=0, le=1, description="Which of a word's sorted cosines to the ID names ranks it."
    )
    near_copy: Optional[Number] = Field(
        None, ge=0, le=1, description="Words with a cosine above it go last; 0.95 for csp."
    )
    adjective_share: Optional[Number] = Field(
        None, ge=0, le=1, description="Share of adjectives; as among the candidates if not given."
    )
    adjective_prompt: Annotated[Optional[str], BeforeValidator(_read_prompt)] = Field(
        None, description="Template of adjectives; 'This is a {} photo.' if not given."
    )
    match: Optional[Literal["exact", "caseless", "plural"]] = Field(
        None, description="How words that are ID names are recognised; as the recipe if not given."
    )
    exclude: Annotated[Optional[tuple[str, ...]], BeforeValidator(_read_files)] = Field(
        None,
        description="Word files to leave out, such as noun.person, or none; as the recipe if not given.",
    )
    exclude_related: bool = Field(
        False, description="Drop the words that WordNet places under or above an ID class."
    )
    mining_seed: Whole = Field(0, ge=0, description="Of the nouns that csp draws for its adjectives.")
    wordnet: Optional[File] = Field(
        None, description="Folder or zip file that holds WordNet; the usual places if not given."
    )
    lemmas: Literal["first", "all"] = Field(
        "first", description="Take the first lemma of a WordNet synset, or all."
    )
    download: bool = Field(False, description="Let nltk fetch WordNet.")
    learned_prompts: Optional[File] = Field(
        None, description="A checkpoint of learned prompts (CoOp, NegPrompt, LAPT) instead of prompt."
    )


class LabelSettings(NegativeSettings, NameSettings):
    """All text rows: ID names, then negative labels."""


class StreamSettings(Section):
    """How images come to a detector."""

    order: Literal["mixed", "id_first"] = Field(
        "mixed",
        description="mixed: ID and OOD images shuffled, one stream per OOD set (the paper's protocol); "
        "id_first: all ID images first.",
    )
    batch_size: Whole = Field(
        256, ge=1, description="Images scored at a time; results of methods with a memory depend on it."
    )


class StorageSettings(Section):
    """What happens to images that cannot be read, and where features are kept."""

    skip_broken: bool = Field(
        False, description="Leave out images that cannot be read, instead of stopping."
    )
    cache: Optional[File] = Field(
        None,
        description="Folder of encoded images and texts; $ADANEG_CACHE or ~/.cache/adaneg_openood if "
        "not given.",
    )


@dataclass(frozen=True)
class EncodeOptions:
    """How a benchmark is encoded; changes no result beyond rounding.

    Attributes:
        device: of the model.
        batch_size: images per forward pass.
        workers: decoding processes; None takes as many as there are cores.
        progress: show bars.
    """

    device: str = "cpu"
    batch_size: int = 256
    workers: int | None = None
    progress: bool = False

    def on(self, group: Group) -> EncodeOptions:
        """The same on one rank: its own GPU, and bars on the first alone."""
        return replace(self, device=local_device(self.device), progress=self.progress and group.is_first)
