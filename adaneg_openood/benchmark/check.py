"""What a benchmark lacks, all of it, before the first image is encoded."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaneg_openood.benchmark.definition import Benchmark
from adaneg_openood.benchmark.definition import ImageSet as SetDefinition
from adaneg_openood.benchmark.run import benchmark_classes, given_classes, needs_model
from adaneg_openood.benchmark.sets import Stored, labels_of, open_set
from adaneg_openood.data import ImageSet
from adaneg_openood.data.feature_files import load_features
from adaneg_openood.data.store_entries import default_store
from adaneg_openood.text import ClassNames, LabelFeatures, Mining, NegativeLabels, templates
from adaneg_openood.text.learned import load_prompts
from adaneg_openood.text.wordnet import find_wordnet

_NAMED = 3  # missing files an item lists
_EXPECTED = (ValueError, TypeError, OSError, ImportError)
_LIBRARIES = {
    "open_clip": ("open_clip", "pip install open_clip_torch"),
    "clip": ("clip.clip", 'pip install "adaneg_openood[clip]"'),
    "hf": ("transformers", 'pip install "adaneg_openood[hf]"'),
}


@dataclass(frozen=True)
class Item:
    """One thing a benchmark needs.

    Attributes:
        what: such as ``"near/tin"`` or ``"negatives"``.
        ok: whether it is there; None for a warning.
        found: what was found or is wrong.
        mend: where to get it, and how large it is.
    """

    what: str
    ok: bool | None
    found: str
    mend: str = ""


def check(benchmark: Benchmark, cache: Path | None = None) -> list[Item]:
    """Look at every list, image file, label and setting of a benchmark; nothing is encoded.

    Args:
        benchmark: the definition.
        cache: folder of the feature cache, where the demo's images are drawn.

    Returns:
        One item a part. A part that is missing does not keep the others from being looked at.
    """
    if benchmark.features is not None:
        return [_tried("features", lambda: _whole(benchmark))]
    folder = default_store() if cache is None else cache
    items: list[Item] = []
    opened: dict[str, ImageSet | Stored] = {}
    later = set()
    known = _or_none(lambda: given_classes(benchmark))  # a fault in them is told below
    for item in benchmark.used_sets:
        fetched = _fetched_later(item)
        if fetched:
            later.add(item.title)
            items.append(Item(item.title, None, fetched))
        else:
            items += _set(item, folder, opened, known)
            if known is None and item.title == "id" and "id" in opened:
                known = _or_none(lambda: benchmark_classes(benchmark, opened["id"]))
    left_out = [item.title for item in benchmark.sets if item not in benchmark.used_sets]
    n_id = None

    def classes() -> str:
        nonlocal n_id
        found = benchmark_classes(benchmark, opened.get("id"))
        n_id = len(found)
        return f"{len(found)} classes from {found.source}"

    if "id" in later and benchmark.classes is None and benchmark.text_features is None:
        items.append(Item("classes", None, "those that the ID set brings"))
    else:
        items.append(_tried("classes", classes))
    if n_id is not None:
        items += [
            _tried(f"labels of {item.title}", lambda i=item: _labels(i, opened[i.title], n_id))  # type: ignore[misc]
            for item in benchmark.used_sets
            if item.labelled and item.title in opened
        ]
    items += _text(benchmark, n_id)
    items += _widths(benchmark, opened)
    if needs_model(benchmark, opened):
        items.append(_backbone(benchmark.backbone))
    if left_out:
        items.append(Item("csid", None, f"left out without full_spectrum: {', '.join(left_out)}"))
    return items


def missing(items: list[Item]) -> list[Item]:
    """Those that keep the benchmark from running."""
    return [item for item in items if item.ok is False]


def to_text(items: list[Item]) -> str:
    """The list, for a screen."""
    marks = {True: "ok", False: "--", None: "  "}
    width = max((len(item.what) for item in items), default=0)
    lines = []
    for item in items:
        lines.append(f"{marks[item.ok]} {item.what:<{width}}  {item.found}")
        if item.mend and item.ok is not True:
            lines.append(f"   {'':<{width}}  to mend: {item.mend}")
    n_missing = len(missing(items))
    lines.append(f"\n{n_missing} part(s) missing or wrong." if n_missing else "\nNothing is missing.")
    return "\n".join(lines)


def refuse_missing(benchmark: Benchmark, cache: Path | None = None) -> None:
    """Raise one error that lists everything that is missing or wrong.

    Raises:
        FileNotFoundError: something is.
    """
    gone = missing(check(benchmark, cache))
    if gone:
        listed = "".join(
            f"\n  {item.what}: {item.found}" + (f"\n    to mend: {item.mend}" if item.mend else "")
            for item in gone
        )
        raise FileNotFoundError(f"{benchmark.origin}: the benchmark is not complete:{listed}")


def _or_none(look: Callable[[], ClassNames | None]) -> ClassNames | None:
    try:
        return look()
    except _EXPECTED:
        return None


def _tried(what: str, look: Callable[[], str], mend: str = "") -> Item:
    try:
        return Item(what, True, look())
    except _EXPECTED as error:
        return Item(what, False, str(error), mend)


def _whole(benchmark: Benchmark) -> str:
    assert benchmark.features is not None
    data = load_features(benchmark.features)
    sets = {**data.near, **data.far}
    return f"{len(data.text_features)} labels, {len(data.id_features)} ID images, " + ", ".join(
        f"{len(part)} {name}" for name, part in sets.items()
    )


def _set(
    item: SetDefinition,
    cache: Path,
    opened: dict[str, ImageSet | Stored],
    classes: ClassNames | None,
) -> Iterator[Item]:
    mend = _where_to_get(item)
    try:
        part = open_set(item, cache, classes)
    except _EXPECTED as error:
        yield Item(item.title, False, str(error).removeprefix(f"{item.title}: "), mend)
        return
    opened[item.title] = part
    if isinstance(part, Stored):
        n, where = len(part.features), f"features in {part.file}"
        yield Item(item.title, True, f"{n} {where}, {readable_bytes(part.file.stat().st_size)}")
    else:
        n, gone = len(part), [path for path, _ in part.missing()]
        if gone:
            listed = ", ".join(gone[:_NAMED]) + (", ..." if len(gone) > _NAMED else "")
            yield Item(item.title, False, f"{len(gone)} of {n} image files missing: {listed}", mend)
        else:
            size = int(part.stats[:, 0].sum())
            told = f", {readable_bytes(size)}" if size > 0 else ""
            yield Item(item.title, True, f"{n} images in {part.name}{told}")
    expected = None if item.images is None else min(item.images, item.limit or item.images)
    if expected is not None and n != expected:
        yield Item(item.title, None, f"the definition says {expected} images, there are {n}", mend)


def _fetched_later(item: SetDefinition) -> str:
    """What is fetched when it is needed, in words; looking at it now would fetch it. Else empty."""
    if item.kind == "torchvision" and item.options.get("download"):
        return f"torchvision fetches {item.location} unless it is in {item.root}"
    if item.kind == "huggingface" and not Path(item.location).is_dir() and _installed("datasets"):
        return f"{item.location}, fetched from the Hugging Face hub unless it is cached"
    return ""


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that a submodule is in
        return False
    except ValueError:  # loaded without a spec, by hand
        return True


def _widths(benchmark: Benchmark, opened: dict[str, ImageSet | Stored]) -> Iterator[Item]:
    """Whether the features that exist already can be used together."""
    widths = {
        title: part.features.shape[-1] for title, part in opened.items() if isinstance(part, Stored)
    }
    if benchmark.text_features is not None:
        try:
            widths["text_features"] = LabelFeatures.load(benchmark.text_features).features.shape[1]
        except _EXPECTED:  # said elsewhere
            return
    if len(set(widths.values())) > 1:
        told = ", ".join(f"{title} {width}" for title, width in widths.items())
        yield Item("widths", False, f"features of one model have one width, these differ: {told}")


def readable_bytes(n: int) -> str:
    """Such as ``"1.5 GB"``.

    Example:
        >>> readable_bytes(1_500_000_000)
        '1.5 GB'
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n} B"


def _where_to_get(item: SetDefinition) -> str:
    parts = [
        f"{item.images} images" if item.images else "",
        item.size,
        f"from {item.source}" if item.source else "",
    ]
    return ", ".join(part for part in parts if part)


def _labels(item: SetDefinition, part: ImageSet | Stored, n_id: int) -> str:
    labels = labels_of(item, part, n_id)
    held = len(labels.unique())
    return f"{held} of {n_id} classes have images"


def _text(benchmark: Benchmark, n_id: int | None) -> Iterator[Item]:
    if benchmark.text_features is not None:
        file = benchmark.text_features

        def labels() -> str:
            return f"{len(LabelFeatures.load(file, n_id).names)} labels in {file}"

        yield _tried("text_features", labels)
        return
    yield _tried("prompt", lambda: " | ".join(templates(benchmark.prompt or "nice")[:3]))
    if benchmark.prompts is not None:
        prompts = benchmark.prompts

        def learned() -> str:
            if not load_prompts(prompts).brings_negatives and benchmark.negatives is None:
                raise ValueError(f"{prompts}: has no negative contexts, so negatives are needed")
            return f"learned prompts in {prompts}"

        yield _tried("prompts", learned)
    if benchmark.negatives is not None:
        mend = "" if isinstance(benchmark.negatives, Mining) else "adaneg-openood mine"
        yield _tried("negatives", lambda: _negatives(benchmark.negatives), mend)


def _negatives(wanted: Any) -> str:
    if not isinstance(wanted, Mining):
        return f"{len(NegativeLabels.load(wanted))} labels in {wanted}"
    number = wanted.config.resolved_count() or f"{wanted.config.resolved().share:.0%}"
    if wanted.corpus == "demo":
        return f"{number}, mined from the demo's words"
    if wanted.corpus == "wordnet":
        if wanted.download:
            return f"{number}, mined from WordNet, which nltk fetches if it is not here"
        return f"{number}, mined from WordNet in {find_wordnet(wanted.wordnet)}"
    if not Path(str(wanted.corpus)).exists():
        raise FileNotFoundError(f"no such word list: {wanted.corpus}")
    return f"{number}, mined from {wanted.corpus}"


def _backbone(name: str) -> Item:
    """Whether its library and files are there; the weights themselves are not opened."""
    prefix, colon, rest = name.partition(":")
    if name == "demo":
        return Item("backbone", True, "the demo's own")
    if not colon or prefix in ("local-dir", "hf-hub"):
        prefix, rest = "open_clip", name
    if prefix not in _LIBRARIES:
        known = ", ".join(("demo", *_LIBRARIES))
        return Item(
            "backbone", False, f"unknown kind of model {prefix!r} in {name!r}; known are {known}"
        )
    module, command = _LIBRARIES[prefix]
    if not _installed(module):
        return Item("backbone", False, f"{name} needs {module.partition('.')[0]}", command)
    path = rest.partition("/")[2] if prefix == "open_clip" else rest
    local = path.startswith(("/", "~", "."))
    if local and not Path(path).expanduser().exists():
        return Item("backbone", False, f"no such weights: {path}")
    told = "its files are here" if local else "weights are fetched at first use unless they are cached"
    return Item("backbone", True, f"{name}; {told}")
