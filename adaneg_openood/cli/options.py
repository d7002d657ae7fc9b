"""The options of the command line, each defined once; those that are settings follow from the schema."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, Union, get_args, get_origin

import typer

from adaneg_openood.benchmark.definition import Benchmark
from adaneg_openood.benchmark.settings import read_seeds
from adaneg_openood.detectors import DETECTORS
from adaneg_openood.io.configuration import Section, not_allowed

_MISSING: Any = object()


def setting(
    name: str, *flags: str, group: type[Section] = Benchmark, default: Any = _MISSING, note: str = ""
) -> Any:
    """The option of a setting: its default, help and what it may be are those of the schema.

    Args:
        name: of the setting.
        flags: as people type it; ``--its-name`` if not given.
        group: the model that has it.
        default: another default; None where a file says it.
        note: added to the help.
    """
    field = group.model_fields[name]
    kind = field.annotation
    bounds = {
        key: getattr(limit, key)
        for limit in field.metadata
        for key in ("ge", "le")
        if hasattr(limit, key)
    }
    more: dict[str, Any] = {"min": bounds.get("ge"), "max": bounds.get("le")}
    if get_origin(kind) is Union:  # Optional
        kind = next(one for one in get_args(kind) if one is not type(None))
    if get_origin(kind) is Literal:
        more = one_of(get_args(kind))
    value = field.default if default is _MISSING else default
    if value is None and field.default not in (None, ""):
        more["show_default"] = f"the benchmark's, or {field.default}"
    flags = flags or (f"--{name.replace('_', '-')}",)
    if kind is bool:
        flags = (f"{flags[0]}/--no-{flags[0][2:]}",)
    return typer.Option(value, *flags, help=f"{field.description} {note}".strip(), **more)


def one_of(allowed: Iterable[str]) -> dict[str, Any]:
    """Arguments of an option that takes one of several words."""
    words = list(allowed)

    def read(text: str) -> str:
        if text not in words:
            raise ValueError(not_allowed(text, words))
        return text

    return {"parser": lambda text: _checked(read, text), "metavar": f"[{'|'.join(words)}]"}


def _checked(read: Callable[[str], Any], text: str) -> Any:
    try:
        return read(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


# the benchmark
SOURCE = typer.Argument(
    ..., help="A YAML file, a benchmark's name (see benchmarks), or an npz file or folder of features."
)
DATA = typer.Option(
    None, help="Folder that the image paths are relative to, instead of the benchmark's own."
)
FULL_SPECTRUM = setting("full_spectrum", "--fsood", default=None)

# the model and the labels
MODEL = setting("model")
PREPROCESSING = setting("preprocessing")
PRECISION = setting("precision")
CLASSES = setting("classes", default=...)
PROMPT = setting("prompt")
ADJECTIVE_PROMPT = setting("adjective_prompt")
LEARNED_PROMPTS = setting("learned_prompts")
NEGATIVES = setting("negatives")
CORPUS = setting("corpus")
MINING = setting("mining")
N_NEGATIVES = setting("n_negatives", "--n-negatives", "-n")
SHARE = setting("share")
PERCENTILE = setting("percentile")
NEAR_COPY = setting("near_copy")
ADJECTIVE_SHARE = setting("adjective_share")
MATCH = setting("match")
EXCLUDE = setting("exclude", note="Repeatable.")
EXCLUDE_RELATED = setting("exclude_related")
MINING_SEED = setting("mining_seed", "--seed")
WORDNET = setting("wordnet")
LEMMAS = setting("lemmas")
DOWNLOAD = setting("download")
TEXT_FEATURES = setting("text_features")

# the protocol
ORDER = setting("order", default=None)
BATCH_SIZE = setting("batch_size", default=None)
SEED = typer.Option(None, min=0, help="First seed of the stream orders.", show_default="0")
SEEDS = typer.Option(
    None,
    parser=lambda text: _checked(read_seeds, text),
    metavar="NUMBER|LIST",
    help="Number of stream orders to average, or their seeds with commas.",
    show_default="the benchmark's, or 3",
)

# where and how it is encoded
DEVICE = typer.Option("cpu", help="Where to compute: cpu, cuda, cuda:1, mps ...")
WORKERS = typer.Option(
    None, min=0, help="Number of processes that decode images.", show_default="one per core"
)
ENCODE_BATCH = typer.Option(256, min=1, help="Images encoded at a time; changes no result.")
SKIP_BROKEN = setting("skip_broken", default=None)
SKIP = setting("skip_broken")
CACHE = setting("cache")

# what is written
JSON: Any = typer.Option(None, "--json", help="Write all results here.")
CSV: Any = typer.Option(None, "--csv", help="Write the rows here.")


def method(default: str | None, help: str) -> Any:
    """An option for one of the detectors, by name."""
    return typer.Option(default, help=help, **one_of(DETECTORS))
