"""Benchmark definitions: read from YAML, checked, with paths resolved."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from adaneg_openood.benchmark.methods import STANDARD, MethodSpec, read_method
from adaneg_openood.benchmark.spec import KINDS, SPLITS, Benchmark, ImageSet
from adaneg_openood.data.feature_set import RESERVED_NAMES
from adaneg_openood.detectors.checks import check_choice
from adaneg_openood.evaluation.streams import ORDERS
from adaneg_openood.io.configuration import read_yaml
from adaneg_openood.io.fields import Fields
from adaneg_openood.text import Mining, MiningConfig
from adaneg_openood.vlm import DEFAULT_MODEL
from adaneg_openood.vlm.base import PRECISIONS
from adaneg_openood.vlm.preprocessing import PREPROCESSINGS

__all__ = [
    "Benchmark",
    "ImageSet",
    "MethodSpec",
    "Mining",
    "load_benchmark",
    "open_benchmark",
    "shipped_benchmarks",
]

_MINING = (
    *("recipe", "n_negatives", "share", "percentile", "near_copy", "adjective_share", "seed", "exclude"),
    *("prompt", "adjective_prompt", "match", "exclude_related"),
)


def shipped_benchmarks() -> dict[str, Path]:
    """Name -> YAML file of the definitions that come with this package."""
    package = files("adaneg_openood")
    # in the wheel the folder lies inside the package, in a checkout beside it
    for place in (Path(str(package)) / "configs", Path(str(package)).parent / "configs"):
        found = {path.stem: path for path in sorted((place / "benchmarks").glob("*.yml"))}
        if found:
            return found
    return {}


def open_benchmark(
    source: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    full_spectrum: bool | None = None,
) -> Benchmark:
    """A benchmark from whatever people have: a definition, or a file or folder of features.

    Args:
        source: a YAML file or the name of a shipped definition, see :func:`load_benchmark`; or what
            ``load_features`` takes, to which the standard methods belong.
        data, full_spectrum: of a definition.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_benchmark`.
    """
    path = Path(source)
    # a folder of data may be called as a benchmark is; one of features holds its text features
    of_features = any(path.glob("text*")) or os.fspath(source) not in shipped_benchmarks()
    if path.suffix == ".npz" or (path.is_dir() and of_features):
        return Benchmark(name=path.stem, origin=str(path), features=path)
    return load_benchmark(path, data=data, full_spectrum=full_spectrum)


def load_benchmark(
    source: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    full_spectrum: bool | None = None,
) -> Benchmark:
    """Read and check a benchmark definition; no image, list or model is opened.

    Args:
        source: a ``.yml`` file, or the name of a shipped definition.
        data: root of the image sets' paths, instead of the file's own.
        full_spectrum: overrides the file's.

    Raises:
        FileNotFoundError: no such file or name.
        ValueError: a key that is unknown, missing or of the wrong kind; the message names the place.
    """
    path, base = _find(source)
    loaded = read_yaml(path)
    if isinstance(loaded, dict):  # x-...: nothing of ours; a place for YAML anchors
        loaded = {k: v for k, v in loaded.items() if not str(k).startswith("x-")}
    top = Fields(loaded, str(path))
    own = top.take("data", str, None)
    # the user's own argument is relative to where they are, what a file says to the file
    root = Path(data) if data is not None else base / os.path.expanduser(own or ".")
    place = _Places(base, root)
    whole = top.take("features", str, None)
    sets = _read_sets(top, place)
    _one_source(top, whole, sets)
    precision = _choice(top, "precision", PRECISIONS, "auto")
    spectrum = top.take("full_spectrum", bool, False)
    names = _read_classes(top, place)
    made = Benchmark(
        name=top.take("name", str, path.stem),
        origin=str(path),
        description=top.take("description", str, "").strip(),
        features=None if whole is None else root / os.path.expanduser(whole),
        classes=names,
        backbone=top.take("backbone", str, DEFAULT_MODEL),
        preprocessing=_choice(top, "preprocessing", PREPROCESSINGS, "model"),
        precision=precision,
        prompt=top.take("prompt", str, None),
        prompts=place.beside(top.take("prompts", str, None)),
        text_features=place.beside(top.take("text_features", str, None)),
        logit_scale=top.take("logit_scale", float, None),
        negatives=_read_negatives(top, place),
        sets=sets,
        full_spectrum=spectrum if full_spectrum is None else full_spectrum,
        methods=_read_methods(top),
        seeds=_read_seeds(top),
        batch_size=_positive(top, "batch_size", 256),
        order=_choice(top, "order", tuple(ORDERS), "mixed"),
    )
    top.finish()
    return made


@dataclass(frozen=True)
class _Places:
    base: Path
    data: Path

    def beside(self, path: str | None) -> Path | None:
        """A path relative to the YAML file."""
        return None if path is None else self.base / os.path.expanduser(path)

    def of_data(self, path: str) -> Path:
        """A path relative to the data root."""
        return self.data / os.path.expanduser(path)


def _find(source: str | os.PathLike[str]) -> tuple[Path, Path]:
    """The YAML file, and what its paths are relative to."""
    path = Path(source)
    if path.is_file():
        return path, path.parent
    shipped = shipped_benchmarks()
    name = os.fspath(source)
    if name in shipped:
        return shipped[name], Path()  # a shipped definition knows no folder of the user's
    near = difflib.get_close_matches(name, shipped, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise FileNotFoundError(
        f"{name}: neither a file nor a benchmark of this package ({', '.join(shipped)}){hint}"
    )


def _one_source(top: Fields, whole: str | None, sets: tuple[ImageSet, ...]) -> None:
    if whole is not None:
        # backbone and prompts would be silently useless
        clash = [
            key
            for key in ("id", *SPLITS, "classes", "backbone", "negatives", "text_features", "prompts")
            if key in top
        ]
        if clash:
            raise ValueError(
                f"{top.at('features')} holds a whole benchmark, so {', '.join(clash)} must go"
            )
        return
    splits = {s.split for s in sets}
    if "id" not in splits:
        raise ValueError(f"{top.where}: no ID set; give id:, or features: with a whole benchmark")
    if not splits & {"near", "far"}:
        raise ValueError(f"{top.where}: no OOD set; give at least one under near: or far:")
    if "text_features" not in top and "negatives" not in top and "prompts" not in top:
        raise ValueError(
            f"{top.where}: no negative labels; give negatives: (a list, or mine:), prompts: with "
            "negative contexts, or text_features:"
        )


def _read_classes(top: Fields, place: _Places) -> str | tuple[str, ...] | None:
    from adaneg_openood.text.classnames import BENCHMARKS

    value = top.take("classes", None, None)
    if value is None:
        return None
    if isinstance(value, list):
        # YAML reads the class name "no" as false
        odd = [name for name in value if not isinstance(name, str)]
        if odd or not value:
            raise ValueError(
                f"{top.at('classes')} must be a list of names, got {odd[0] if odd else value!r}; "
                "put names such as no, on and 7 in quotes"
            )
        return tuple(value)
    if not isinstance(value, str):
        raise ValueError(f"{top.at('classes')} must be a name, a file or a list, got {value!r}")
    if value.lower() in (*BENCHMARKS, "demo"):
        return value.lower()
    return str(place.beside(value))


def _read_negatives(top: Fields, place: _Places) -> Path | Mining | None:
    value = top.take("negatives", None, None)
    if value is None or isinstance(value, str):
        return place.beside(value)
    outer = Fields(value, top.at("negatives"))
    mine = Fields(outer.take("mine", dict), outer.at("mine"))
    outer.finish()
    settings = {key: mine.take(key, None, None) for key in _MINING}
    chosen = {key: value for key, value in settings.items() if value is not None}
    chosen.setdefault("prompt", top.values.get("prompt"))
    corpus = mine.take("corpus", str, "wordnet")
    folder = place.beside(mine.take("wordnet", str, None))
    try:
        config = MiningConfig(**chosen)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{mine.where}: {error}") from error
    made = Mining(
        config,
        corpus if corpus in ("wordnet", "demo") else str(place.beside(corpus)),
        None if folder is None else str(folder),
        mine.take("lemmas", str, "first"),
        mine.take("download", bool, False),
    )
    mine.finish()
    return made


def _read_sets(top: Fields, place: _Places) -> tuple[ImageSet, ...]:
    sets = []
    alone = top.take("id", dict, None)
    if alone is not None:
        sets.append(_read_set(Fields(alone, top.at("id")), "id", "id", place))
    for split in SPLITS:
        group = Fields(top.take(split, dict, None) or {}, top.at(split))
        for name in group.values:
            if not name.strip() or "/" in name or "\\" in name or name in RESERVED_NAMES:
                raise ValueError(
                    f"{group.where}: set name {name!r} must be text without slashes, and none of "
                    f"{', '.join(RESERVED_NAMES)}, which tables use"
                )
            if split == "far" and name in (top.values.get("near") or {}):
                raise ValueError(f"{group.where}: set {name!r} is in near, too; names must differ")
            sets.append(_read_set(Fields(group.take(name), group.at(name)), name, split, place))
    return tuple(sets)


def _read_set(own: Fields, name: str, split: str, place: _Places) -> ImageSet:
    given = [kind for kind in KINDS if kind in own]
    if len(given) != 1:
        what = f"{' and '.join(given)} are there" if given else f"there is {', '.join(own.values)}"
        raise ValueError(f"{own.where}: give exactly one of {', '.join(KINDS)}; {what}")
    kind = given[0]
    location = own.take(kind, str)
    root = own.take("root", str, None) if kind in ("imglist", "torchvision") else None
    options = own.take("args", dict, {}) if kind in ("torchvision", "huggingface") else {}
    in_files = kind in ("imglist", "folder", "features")
    if kind == "huggingface" and place.of_data(location).is_dir():
        in_files = True  # saved with save_to_disk
    limit = _positive(own, "limit", None)
    made = ImageSet(
        name=name,
        split=split,
        kind=kind,
        location=str(place.of_data(location)) if in_files else location,
        root=place.of_data(root or ".") if kind in ("imglist", "torchvision") else None,
        options=options,
        limit=limit,
        images=_positive(own, "images", None),
        size=str(own.take("size", None, "")),
        source=own.take("source", str, ""),
    )
    for other in KINDS:
        own.take(other, None, None)  # so that a wrong key is compared with all of them
    own.finish()
    return made


def _read_methods(top: Fields) -> tuple[MethodSpec, ...]:
    methods = top.take("methods", dict, None)
    if methods is None:
        return STANDARD
    if not methods:
        raise ValueError(f"{top.at('methods')} is empty; leave it out for the standard ones")
    group = Fields(methods, top.at("methods"))
    return tuple(read_method(name, Fields(group.take(name), group.at(name))) for name in group.values)


def _read_seeds(top: Fields) -> tuple[int, ...]:
    value = top.take("seeds", None, [0, 1, 2])
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return tuple(range(value))
    good = isinstance(value, list) and bool(value) and all(type(seed) is int for seed in value)
    if not good or min(value) < 0 or len(set(value)) < len(value):
        raise ValueError(
            f"{top.at('seeds')} must be a list of distinct whole numbers from 0, or how many, "
            f"got {value!r}"
        )
    return tuple(value)


def _positive(fields: Fields, key: str, default: int | None) -> Any:
    value = fields.take(key, int, default)
    if value is not None and value < 1:
        raise ValueError(f"{fields.at(key)} must be at least 1, got {value}")
    return value


def _choice(fields: Fields, key: str, allowed: tuple[str, ...], default: str) -> str:
    value = fields.take(key, str, default)
    check_choice(fields.at(key), value, allowed)
    return str(value)
