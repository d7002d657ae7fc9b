"""Opening a benchmark: lists, labels, words and settings are looked at before an image is encoded.

What is opened here is what a run uses; ``--check`` shows the items and stops.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar, Union

from adaneg_openood.benchmark.definition import Benchmark, BenchmarkSet
from adaneg_openood.benchmark.labels import named_classes, negatives_of
from adaneg_openood.benchmark.methods import check_fit
from adaneg_openood.benchmark.sets import Opened, StoredFeatures, fetched_later, open_set
from adaneg_openood.data import ImageSet
from adaneg_openood.data.feature_files import load_features
from adaneg_openood.data.feature_set import FeatureSet
from adaneg_openood.data.mixing import refuse_mixed
from adaneg_openood.io.names import listed
from adaneg_openood.io.processes import ALONE, Group
from adaneg_openood.text import ClassNames, LabelFeatures, Mining, NegativeLabels, templates
from adaneg_openood.text.learned import load_prompts
from adaneg_openood.text.rows import doubt_about
from adaneg_openood.vlm.registry import check_model

_NAMED = 3  # missing files an item lists
_EXPECTED = (ValueError, TypeError, OSError, ImportError)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Item:
    """One thing that a benchmark needs.

    Attributes:
        what: such as ``"near/tin"`` or ``"negatives"``.
        ok: whether it is there and right; None for a warning.
        found: what was found or is wrong.
        mend: where to get it, and how large it is.
    """

    what: str
    ok: bool | None
    found: str
    mend: str = ""


def to_text(items: Sequence[Item]) -> str:
    """The items, for a screen."""
    marks = {True: "ok", False: "--", None: "  "}
    width = max((len(item.what) for item in items), default=0)
    lines = []
    for item in items:
        lines.append(f"{marks[item.ok]} {item.what:<{width}}  {item.found}")
        if item.mend and item.ok is not True:
            lines.append(f"   {'':<{width}}  to mend: {item.mend}")
    n_missing = sum(item.ok is False for item in items)
    lines.append(f"\n{n_missing} part(s) missing or wrong." if n_missing else "\nNothing is missing.")
    return "\n".join(lines)


def readable_bytes(n: float) -> str:
    """Such as ``"1.5 GB"``.

    Example:
        >>> readable_bytes(1_500_000_000)
        '1.5 GB'
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n:.0f} B"


@dataclass
class OpenBenchmark:
    """A benchmark whose parts are open.

    Attributes:
        definition: what its YAML says.
        whole: all features, where one file holds the benchmark.
        sets: title -> images or features; sets that cannot be opened are not there.
        classes: the ID classes; None where they are not known.
        labels: text features of the user's own, or None.
        negatives: the list, or the words to mine from; None where learned prompts bring them.
        items: what was found, in the order of looking.
    """

    definition: Benchmark
    whole: FeatureSet | None = None
    sets: dict[str, Opened] = field(default_factory=dict)
    classes: ClassNames | None = None
    labels: LabelFeatures | None = None
    negatives: Union[NegativeLabels, Mining, None] = None
    items: list[Item] = field(default_factory=list)

    @property
    def needs_model(self) -> bool:
        """Whether texts or images are to be encoded."""
        if self.definition.features is not None:
            return False
        images = any(part.definition.features is None for part in self.definition.sets)
        return images or self.definition.text_features is None

    def missing(self) -> list[Item]:
        """The items that keep the benchmark from running."""
        return [item for item in self.items if item.ok is False]

    def refuse_missing(self) -> None:
        """Raise one error that lists everything that is missing or wrong.

        Raises:
            FileNotFoundError: something is.
        """
        listed = "".join(
            f"\n  {item.what}: {item.found}" + (f"\n    to mend: {item.mend}" if item.mend else "")
            for item in self.missing()
        )
        if listed:
            raise FileNotFoundError(f"{self.definition.origin}: the benchmark is not complete:{listed}")

    def note(self, what: str, ok: bool | None, found: str, mend: str = "") -> None:
        """Add an item."""
        self.items.append(Item(what, ok, found, mend))

    def tried(self, what: str, look: Callable[[], _T], said: Callable[[_T], str]) -> _T | None:
        """Look, and note what was found or is wrong."""
        try:
            found = look()
            self.note(what, True, said(found))
            return found
        except _EXPECTED as error:
            self.note(what, False, str(error))
            return None


def open_benchmark(benchmark: Benchmark, *, fetch: bool = True, group: Group = ALONE) -> OpenBenchmark:
    """Look at every list, image file, label and setting; nothing is encoded and no model is loaded.

    Args:
        benchmark: the definition.
        fetch: open the sets that are fetched from elsewhere, too; False only names them.
        group: processes that all open it; the first alone fetches.

    Returns:
        All that could be opened. A part that is missing does not keep the others from being looked at;
        see :meth:`OpenBenchmark.refuse_missing`.
    """
    return group.local(lambda: _open(benchmark, fetch), first_alone=True)


def _open(benchmark: Benchmark, fetch: bool) -> OpenBenchmark:
    made = OpenBenchmark(benchmark)
    file = benchmark.features
    if file is not None:
        made.whole = made.tried("features", lambda: load_features(file), _whole)
        if made.whole is not None and benchmark.logit_scale is not None:
            made.whole = replace(made.whole, logit_scale=benchmark.logit_scale)
    else:
        _open_sets(made, fetch)
        _refuse_same_images(made)
        _open_text(made)
        _compare_features(made)
        if made.needs_model:
            made.tried("model", lambda: check_model(benchmark.model), str)
    _check_methods(made)
    return made


def _open_sets(made: OpenBenchmark, fetch: bool) -> None:
    benchmark = made.definition
    if benchmark.classes is not None or benchmark.text_features is not None:
        made.classes = made.tried(
            "classes", lambda: named_classes(benchmark, benchmark.origin), _counted
        )
    for part in benchmark.sets:
        _open_set(made, part, fetch)
        if part.split == "id" and made.classes is None and benchmark.classes is None:
            made.classes = _classes_of_id(made)
    if made.classes is not None:
        twice = [name for name, n in Counter(made.classes.names).items() if n > 1]
        if twice:
            names = listed(map(repr, twice), _NAMED)
            said = f"{names}: the name of several classes, which no text tells apart"
            made.note("classes", None, said)
    left_out = [name for name in benchmark.csid if not benchmark.full_spectrum]
    if left_out:
        made.note("csid", None, f"left out without full_spectrum: {', '.join(left_out)}")


def _open_set(made: OpenBenchmark, part: BenchmarkSet, fetch: bool) -> None:
    own, classes = part.definition, made.classes
    later = "" if fetch else fetched_later(own)
    if later:
        made.note(part.title, None, later)
        return
    asked = f"{own.images} images" if own.images else ""
    mend = ", ".join(filter(None, (asked, own.size, f"from {own.source}" if own.source else "")))
    try:
        found = open_set(part, classes, made.definition.cache)
        if part.labelled and isinstance(found, StoredFeatures) and classes is not None:
            found.id_labels(len(classes))
    except _EXPECTED as error:
        made.note(part.title, False, str(error), mend)
        return
    gone = found.missing() if isinstance(found, ImageSet) else []
    if gone:
        files = listed((file for file, _ in gone), _NAMED)
        why = f"{len(gone)} of {len(found)} image files missing or empty: {files}"
        if len(gone) == len(found) or not made.definition.skip_broken:
            made.note(part.title, False, why, mend)
            return
        made.note(part.title, None, f"{why}; left out", mend)
    else:
        made.note(part.title, True, _described(found))
    made.sets[part.title] = found
    expected = None if own.images is None else min(own.images, own.limit or own.images)
    if expected is not None and len(found) != expected:
        said = f"the definition says {expected} images, there are {len(found)}"
        made.note(part.title, None, said, mend)


def _classes_of_id(made: OpenBenchmark) -> ClassNames | None:
    found = made.sets.get("id")
    if found is None:
        if any(item.what == "id" and item.ok is None for item in made.items):
            made.note("classes", None, "those that the ID set brings")
        return None
    if isinstance(found, StoredFeatures):
        said = f"{made.definition.origin}: classes is missing, and a feature file does not tell them"
        made.note("classes", False, f"{said}; give a benchmark's name, a file or a list")
        return None
    return made.tried("classes", found.class_names, _counted)


def _refuse_same_images(made: OpenBenchmark) -> None:
    """An image that is in two sets would count as ID and OOD, or twice."""
    owner: dict[str, str] = {}
    for title, found in made.sets.items():
        if not isinstance(found, ImageSet) or found.base is None:
            continue
        base = os.path.abspath(found.base)
        files = [os.path.normpath(os.path.join(base, name)) for name in found.names]
        shared = Counter(owner[file] for file in files if file in owner)
        for other, n in shared.items():
            if title.startswith("csid/") and other == "id":
                continue  # the same classes; a part of them may serve for a trial
            made.note(title, False, f"{n} of its {len(files)} images are in {other}, too")
        owner.update(dict.fromkeys(files, title))


def _open_text(made: OpenBenchmark) -> None:
    benchmark = made.definition
    if benchmark.text_features is not None:
        file, classes = benchmark.text_features, made.classes
        made.labels = made.tried(
            "text_features",
            lambda: LabelFeatures.load(file, *((len(classes), classes.names) if classes else ())),
            lambda found: f"{len(found.names)} labels in {file}",
        )
        return
    made.tried("prompt", lambda: templates(benchmark.prompt or "nice"), lambda t: " | ".join(t[:3]))
    if benchmark.learned_prompts is not None:
        prompts = benchmark.learned_prompts
        made.tried("learned_prompts", lambda: load_prompts(prompts), lambda _: str(prompts))

    def said(found: Union[NegativeLabels, Mining, None]) -> str:
        if found is None:
            return "those of the learned prompts"
        if isinstance(found, NegativeLabels):
            return f"{len(found)} labels in {benchmark.negatives}"
        config = found.config.resolved()
        number = config.n_negatives if config.share is None else f"{config.share:.0%} of the words"
        of = getattr(found.corpus, "source", "WordNet, which nltk fetches if it is not here")
        return f"{number}, mined from {of} ({config.recipe})"

    made.negatives = made.tried("negatives", lambda: _negatives(benchmark), said)
    if isinstance(made.negatives, NegativeLabels) and made.classes is not None:
        doubt = doubt_about(made.negatives, made.classes)
        if doubt:
            made.note("negatives", None, doubt)


def _negatives(benchmark: Benchmark) -> Union[NegativeLabels, Mining, None]:
    found = negatives_of(benchmark)
    if isinstance(found, Path):
        return NegativeLabels.load(found)
    if found is None or (found.download and found.corpus == "wordnet"):
        return found
    return replace(found, corpus=found.load()[0])


def _compare_features(made: OpenBenchmark) -> None:
    """Whether the features that exist already can be used together."""
    stored = {title: part for title, part in made.sets.items() if isinstance(part, StoredFeatures)}
    widths = {title: part.features.shape[-1] for title, part in stored.items()}
    told = {f"{title} ({part.file})": part.header for title, part in stored.items()}
    if made.labels is not None:
        widths["text_features"] = made.labels.features.shape[1]
        told["text_features"] = made.labels.provenance
    if len(set(widths.values())) > 1:
        listing = ", ".join(f"{title} {width}" for title, width in widths.items())
        made.note("widths", False, f"features of one model have one width, these differ: {listing}")
    try:
        refuse_mixed(told)
    except ValueError as error:
        made.note("models", False, str(error))


def _check_methods(made: OpenBenchmark) -> None:
    """Whether the methods' settings fit the number of labels, as far as it is known."""
    n_id, n_negatives = _counts(made)
    if n_id is None:
        return
    for title, method in made.definition.methods.items():
        try:
            check_fit(method.detector, method.settings, n_id, n_negatives)
        except (ValueError, TypeError) as error:
            made.note(f"methods.{title}", False, str(error))


def _counts(made: OpenBenchmark) -> tuple[int | None, int | None]:
    """C and M; None where they are not known before encoding."""
    if made.whole is not None:
        return made.whole.n_id, len(made.whole.text_features) - made.whole.n_id
    if made.labels is not None:
        return made.labels.n_id, made.labels.n_negatives
    n_id = None if made.classes is None else len(made.classes)
    number: object = None
    if made.definition.learned_prompts is None:
        if isinstance(made.negatives, NegativeLabels):
            number = len(made.negatives)
        elif made.negatives is not None:
            number = made.negatives.config.resolved().n_negatives
    return n_id, number if isinstance(number, int) else None


def _whole(data: FeatureSet) -> str:
    sets = {**data.near, **data.far}
    return f"{len(data.text_features)} labels, {len(data.id_features)} ID images, " + ", ".join(
        f"{len(part)} {name}" for name, part in sets.items()
    )


def _counted(classes: ClassNames | None) -> str:
    assert classes is not None
    return f"{len(classes)} classes from {classes.source}"


def _described(found: Opened) -> str:
    if isinstance(found, StoredFeatures):
        return f"{len(found)} features in {found.file}, {readable_bytes(found.file.stat().st_size)}"
    size = int(found.stats[:, 0].clip(min=0).sum())
    return f"{len(found)} images in {found.name}" + (f", {readable_bytes(size)}" if size else "")
