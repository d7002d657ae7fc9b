"""Benchmark definitions: what a YAML file may say, read and checked; nothing is opened."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Optional, Union

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationInfo, model_validator

from adaneg_openood.benchmark.methods import STANDARD, MethodSpec, method_schema, read_method
from adaneg_openood.benchmark.settings import (
    FORMER_NAMES,
    File,
    LabelSettings,
    ModelSettings,
    StorageSettings,
    StreamSettings,
    read_seeds,
)
from adaneg_openood.data.feature_set import RESERVED_NAMES
from adaneg_openood.detectors import DETECTORS
from adaneg_openood.io.checks import hint, not_allowed, shown
from adaneg_openood.io.configuration import Section, Whole, checked, given_values, read_yaml, shipped

SPLITS = ("csid", "near", "far")
KINDS = ("imglist", "folder", "features", "torchvision", "huggingface", "demo")


def _in_data(path: Any, info: ValidationInfo) -> Any:
    """A path of images is relative to the benchmark's data folder."""
    if not isinstance(path, (str, os.PathLike)):
        return path
    return Path((info.context or {}).get("data", "")) / Path(path).expanduser()


def _saved_or_hub(name: Any, info: ValidationInfo) -> Any:
    """A Hugging Face data set is a folder of save_to_disk, or a name on the hub."""
    place = _in_data(name, info)
    return str(place) if isinstance(place, Path) and place.is_dir() else name


DataFile = Annotated[Path, BeforeValidator(_in_data)]


class SetDefinition(Section):
    """Where the images of one set, or their features, are."""

    imglist: Optional[DataFile] = Field(None, description="List with lines 'path label', as OpenOOD's.")
    folder: Optional[DataFile] = Field(None, description="Folder with one folder per class.")
    features: Optional[DataFile] = Field(None, description="Feature file: what encode writes, or .npz.")
    torchvision: Optional[str] = Field(None, description="Name of a torchvision data set.")
    huggingface: Annotated[Optional[str], BeforeValidator(_saved_or_hub)] = Field(
        None, description="Hugging Face data set, or a folder of save_to_disk."
    )
    demo: Optional[str] = Field(None, description="Name of a set that the embedded demo draws.")
    root: Optional[DataFile] = Field(
        None, description="What an imglist's paths are relative to, or where torchvision keeps files."
    )
    args: dict[str, Any] = Field({}, description="Arguments of a torchvision or Hugging Face data set.")
    limit: Optional[Whole] = Field(None, ge=1, description="Take the first so many images.")
    images: Optional[Whole] = Field(None, ge=1, description="How many images there should be.")
    size: str = Field("", description="How large the download is, for people.")
    source: str = Field("", description="Where to get the images, for people.")

    @model_validator(mode="before")
    @classmethod
    def _one_kind(cls, values: Any) -> Any:
        given = given_values(values)
        kinds = [kind for kind in KINDS if kind in given]
        if len(kinds) != 1:
            found = f"{' and '.join(kinds)} are there" if kinds else f"there is {', '.join(given)}"
            raise ValueError(f"give exactly one of {', '.join(KINDS)}; {found or 'nothing'}")
        for key, users in (
            ("root", ("imglist", "torchvision")),
            ("args", ("torchvision", "huggingface")),
        ):
            if key in given and kinds[0] not in users:
                raise ValueError(f"{key} belongs to {' and '.join(users)}, not to {kinds[0]}")
        return given

    @property
    def kind(self) -> str:
        """One of :data:`KINDS`."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def location(self) -> str:
        """The list, folder or feature file; the data set's name of the other kinds."""
        return str(getattr(self, self.kind))


@dataclass(frozen=True)
class BenchmarkSet:
    """One set of a benchmark.

    Attributes:
        name: as tables show it.
        split: ``"id"``, ``"csid"``, ``"near"`` or ``"far"``.
        definition: where its images are.
    """

    name: str
    split: str
    definition: SetDefinition

    @property
    def labelled(self) -> bool:
        """Whether its images have ID classes."""
        return self.split in ("id", "csid")

    @property
    def title(self) -> str:
        """``"id"``, ``"near/ssb_hard"`` and so on."""
        return self.name if self.split == "id" else f"{self.split}/{self.name}"


def _read_sets(value: Any) -> Any:
    for name in given_values(value):
        if not name.strip() or "/" in name or "\\" in name or name in RESERVED_NAMES:
            raise ValueError(
                f"set name {name!r} must be text without slashes, and none of "
                f"{', '.join(RESERVED_NAMES)}, which tables use"
            )
    return value


def _some(methods: Any) -> Any:
    if not given_values(methods):
        raise ValueError("is empty; leave it out for the standard methods")
    return methods


Sets = Annotated[dict[str, SetDefinition], BeforeValidator(_read_sets)]


class Benchmark(ModelSettings, LabelSettings, StreamSettings, StorageSettings):
    """Everything that an evaluation needs; ``template.yml`` shows every key."""

    former_names: ClassVar[Mapping[str, str]] = {**FORMER_NAMES, "seed": "seeds"}
    _origin: str = PrivateAttr("")

    name: str = Field("", description="For tables and reports; the file's name if not given.")
    description: str = Field("", description="One line for people.")
    data: Optional[File] = Field(None, description="What the sets' paths are relative to.")
    features: Optional[DataFile] = Field(
        None, description="A feature file or folder that holds a whole benchmark, instead of sets."
    )
    id: Optional[SetDefinition] = Field(None, description="The ID test images, with labels.")
    csid: Sets = Field({}, description="Covariate-shifted ID sets by name.")
    near: Sets = Field({}, description="Near-OOD sets by name.")
    far: Sets = Field({}, description="Far-OOD sets by name.")
    full_spectrum: bool = Field(False, description="Images of csid sets count as ID.")
    methods: Annotated[
        dict[str, Annotated[MethodSpec, BeforeValidator(read_method)]], BeforeValidator(_some)
    ] = Field(STANDARD, description="What is compared: title -> detector and its settings.")
    seeds: Annotated[
        tuple[int, ...], BeforeValidator(read_seeds, json_schema_input_type=Union[int, list[int]])
    ] = Field((0, 1, 2), description="Seeds of the stream orders to average, or how many.")

    def model_post_init(self, context: Any) -> None:
        """Remember where it was read."""
        self._origin = (context or {}).get("origin", self.name)

    @model_validator(mode="after")
    def _fits(self) -> Benchmark:
        if self.features is not None:
            # a model and prompts would be silently useless
            clash = self.model_fields_set & {"id", *SPLITS, *ModelSettings.model_fields}
            clash |= self.model_fields_set & {*LabelSettings.model_fields} - {"logit_scale"}
            if clash:
                raise ValueError(
                    f"features holds a whole benchmark, so {', '.join(sorted(clash))} must go"
                )
            return self
        if self.id is None:
            raise ValueError("no ID set; give id, or features with a whole benchmark")
        if not self.near and not self.far:
            raise ValueError("no OOD set; give at least one under near or far")
        for name in self.near:
            if name in self.far:
                raise ValueError(f"far: set {name!r} is in near, too; names must differ")
        return self

    @property
    def origin(self) -> str:
        """The file it was read from, for messages."""
        return self._origin

    @property
    def sets(self) -> tuple[BenchmarkSet, ...]:
        """ID, csid, near and far sets; csid sets without ``full_spectrum`` are left out."""
        found = [] if self.id is None else [BenchmarkSet("id", "id", self.id)]
        for split in SPLITS:
            if split != "csid" or self.full_spectrum:
                found += [BenchmarkSet(name, split, own) for name, own in getattr(self, split).items()]
        return tuple(found)

    def method(self, name: str) -> MethodSpec:
        """A method by its title here, or a detector with its defaults.

        Raises:
            ValueError: neither of the two.
        """
        if name not in self.methods and name not in DETECTORS:
            raise ValueError(f"{self.origin}: method {not_allowed(name, [*self.methods, *DETECTORS])}")
        return self.methods.get(name, MethodSpec(name))

    def changed(self, **settings: Any) -> Benchmark:
        """A copy with some settings replaced; None leaves a setting as it is."""
        given = {key: value for key, value in settings.items() if value is not None}
        return self.model_copy(update=given)


def read_benchmark(
    source: str | os.PathLike[str], *, data: str | os.PathLike[str] | None = None
) -> Benchmark:
    """Read and check a benchmark; no image, list or model is opened.

    Args:
        source: a ``.yml`` file, the name of a shipped definition, or a file or folder of features, to
            which the standard methods belong.
        data: root of the sets' paths, instead of the file's own.

    Raises:
        FileNotFoundError: no such file or name.
        ValueError: a key that is unknown, missing or of the wrong kind; the message names the place.
    """
    path = Path(source)
    # a folder of data may be called as a benchmark is; one of features holds its text features
    of_features = any(path.glob("text*")) or os.fspath(source) not in shipped("benchmarks")
    if path.suffix == ".npz" or (path.is_dir() and of_features):
        values: Any = {"features": str(path.absolute())}
        return checked(Benchmark, {"name": path.stem, **values}, str(path), {"origin": str(path)})
    path, base = _find(source)
    values, root = read_yaml(path), base
    if isinstance(values, Mapping):  # x-...: nothing of ours; a place for YAML anchors
        values = {key: value for key, value in values.items() if not str(key).startswith("x-")}
        own = values.get("data")
        if own is not None and not isinstance(own, str):
            raise ValueError(f"{path}: data must be a path, got {shown(own)}")
        # the user's own argument is relative to where they are, what a file says to the file
        root = Path(data) if data is not None else base / os.path.expanduser(own or ".")
        root = root.absolute()
        values.update(name=values.get("name") or path.stem, data=str(root))
    context = {"base": base, "data": root, "origin": str(path)}
    return checked(Benchmark, values, str(path), context)


def _find(source: str | os.PathLike[str]) -> tuple[Path, Path]:
    """The YAML file, and what its paths are relative to."""
    path = Path(source)
    if path.is_file():
        return path, path.parent
    known, name = shipped("benchmarks"), os.fspath(source)
    if name in known:
        return known[name], Path()  # a shipped definition knows no folder of the user's
    raise FileNotFoundError(
        f"{name}: neither a file nor a benchmark of this package ({', '.join(known)}){hint(name, known)}"
    )


def benchmark_schema() -> dict[str, Any]:
    """The JSON schema of a benchmark's YAML, for editors that complete and check as you type."""
    schema = Benchmark.model_json_schema()
    schema["properties"]["methods"] = {
        **schema["properties"]["methods"],
        "additionalProperties": method_schema(),
    }
    schema["patternProperties"] = {"^x-": {}}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
