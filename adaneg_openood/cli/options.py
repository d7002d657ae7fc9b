"""The options of the command line, each defined once; those that are settings follow from the schema."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union, get_args, get_origin, get_type_hints

import typer

from adaneg_openood.benchmark.definition import Benchmark, read_benchmark
from adaneg_openood.benchmark.settings import EncodeOptions, LabelSettings, read_seeds, shifted
from adaneg_openood.cli.common import readable_errors
from adaneg_openood.io.checks import not_allowed
from adaneg_openood.io.configuration import checked
from adaneg_openood.io.processes import local_device
from adaneg_openood.vlm import VisionLanguageModel
from adaneg_openood.vlm.registry import check_model

_MISSING: Any = object()


class Made:
    """A command's parameter that is made of several options, those that ``make`` takes."""

    def __init__(self, make: Callable[..., Any], options: Iterable[Parameter] = ()) -> None:
        self.make = make
        self.options = list(options) or [
            one.replace(annotation=get_type_hints(make)[one.name])
            for one in inspect.signature(make).parameters.values()
        ]

    def some(self, *names: str) -> Any:
        """Arguments of ``make``, of which a command offers some; the others are None."""

        def given(**values: Any) -> dict[str, Any]:
            return {**dict.fromkeys(one.name for one in self.options), **values}

        return Made(given, [one for one in self.options if one.name in names])


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A command for typer: :class:`Made` parameters become their options, errors become one line."""
    parameters = inspect.signature(function).parameters.values()
    groups = {one.name: one.default for one in parameters if isinstance(one.default, Made)}
    options = [option for one in parameters for option in getattr(one.default, "options", [one])]

    @functools.wraps(function)
    def run(**given: Any) -> None:
        with readable_errors():
            for name, group in groups.items():
                given[name] = group.make(**{one.name: given.pop(one.name) for one in group.options})
            function(**given)

    keyword = [one.replace(kind=Parameter.KEYWORD_ONLY) for one in options]
    run.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in options}
    return run


def setting(name: str, *flags: str, default: Any = _MISSING, note: str = "") -> Any:
    """The option of a setting: its default, help and what it may be are those of the schema.

    Args:
        name: of the setting.
        flags: as people type it; ``--its-name`` if not given.
        default: another default; None where a file says it.
        note: added to the help.
    """
    field = Benchmark.model_fields[name]
    kind = _kind(field.annotation)
    more: dict[str, Any] = {
        side: getattr(limit, bound)
        for limit in field.metadata
        for side, bound in (("min", "ge"), ("max", "le"))
        if hasattr(limit, bound)
    }
    if get_origin(kind) is Literal:
        more = one_of(get_args(kind))
    value = field.default if default is _MISSING else default
    if value is None and field.default not in (None, ""):
        more["show_default"] = f"the benchmark's, or {field.default}"
    flags = flags or (f"--{name.replace('_', '-')}", *(["-n"] if name == "n_negatives" else []))
    if kind is bool:
        flags = (f"{flags[0]}/--no-{flags[0][2:]}",)
    return typer.Option(value, *flags, help=f"{field.description} {note}".strip(), **more)


def _kind(annotation: Any) -> Any:
    """The type of a setting that may be None; text where it may be of several."""
    if get_origin(annotation) is Union:
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        annotation = kinds[0] if len(kinds) == 1 else str
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def label_settings(*names: str, **own: Any) -> Any:
    """Options that become :class:`LabelSettings`; a default counts as not given.

    Args:
        names: of the settings.
        own: options that differ from :func:`setting` of their name.
    """
    fields = LabelSettings.model_fields

    def make(**given: Any) -> LabelSettings:
        told = {name: value for name, value in given.items() if value not in (fields[name].default, [])}
        return checked(LabelSettings, told, "command line")

    options = []
    for name in names:
        kind = _kind(fields[name].annotation)
        typed = {tuple: list[str], Literal: str}.get(get_origin(kind), kind)
        default = own.get(name) or setting(name)
        options.append(Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=typed))
    return Made(make, options)


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


SEED = typer.Option(None, min=0, help="First seed of the stream orders.", show_default="0")
SEEDS: Any = typer.Option(
    None,
    parser=lambda text: _checked(read_seeds, text),
    metavar="NUMBER|LIST",
    help="Number of stream orders to average, or their seeds with commas.",
    show_default="the benchmark's, or 3",
)
DEVICE = typer.Option("cpu", help="Where to compute: cpu, cuda, cuda:1, mps ...")
WORKERS = typer.Option(
    None, min=0, help="Number of processes that decode images.", show_default="one per core"
)
ENCODE_BATCH = typer.Option(256, min=1, help="Images encoded at a time; changes no result.")
CACHE = setting("cache")
JSON: Any = typer.Option(None, "--json", help="Write all results here.")
CSV: Any = typer.Option(None, "--csv", help="Write the rows here.")
SOURCE = typer.Argument(
    ..., help="A YAML file, a benchmark's name (see benchmarks), or an npz file or folder of features."
)


def read_source(
    source: str = SOURCE,
    data: Optional[Path] = typer.Option(
        None, help="Folder that the image paths are relative to, instead of the benchmark's own."
    ),
    full_spectrum: Optional[bool] = setting("full_spectrum", "--fsood", default=None),
    batch_size: Optional[int] = setting("batch_size", default=None),
    order: Optional[str] = setting("order", default=None),
    seed: Optional[int] = SEED,
    seeds: Optional[Any] = SEEDS,
    skip_broken: Optional[bool] = setting("skip_broken", default=None),
    cache: Optional[Path] = CACHE,
) -> Benchmark:
    """The benchmark that a command was given, with what its options say."""
    benchmark = read_benchmark(source, data=data)
    return benchmark.changed(
        seeds=shifted(seeds or benchmark.seeds, seed),
        **{"full_spectrum": full_spectrum, "batch_size": batch_size, "order": order},
        **{"skip_broken": skip_broken, "cache": cache},
    )


def encode_options(
    device: str = DEVICE, encode_batch: int = ENCODE_BATCH, workers: Optional[int] = WORKERS
) -> EncodeOptions:
    """How images are encoded."""
    return EncodeOptions(device, encode_batch, workers, progress=True)


@dataclass(frozen=True)
class ModelChoice:
    """A model that is named, looked at, and loaded when it is needed."""

    name: str
    device: str
    precision: str

    def load(self) -> VisionLanguageModel:
        """The model."""
        from adaneg_openood.vlm import load_model

        return load_model(self.name, device=self.device, precision=self.precision)


def named_model(
    model: str = setting("model"), device: str = DEVICE, precision: str = setting("precision")
) -> ModelChoice:
    """The model of that name, if there is one."""
    check_model(model)
    return ModelChoice(model, local_device(device), precision)


# of label_settings, where a list of negatives may be given
LABEL_NAMES = (
    *("classes", "negatives", "corpus", "mining", "n_negatives", "prompt", "adjective_prompt"),
    *("learned_prompts", "text_features"),
)
BENCHMARK: Any = Made(read_source)
ENCODING: Any = Made(encode_options)
MODEL: Any = Made(named_model)
