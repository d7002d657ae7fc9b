"""Opening a benchmark: lists, labels, words and settings are looked at before an image is encoded.

What is opened here is what a run uses; ``--check`` shows the items and stops.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar, Union

from adaneg_openood.benchmark.check import Item, missing, readable_bytes
from adaneg_openood.benchmark.definition import Benchmark, BenchmarkSet
from adaneg_openood.benchmark.detector_settings import check_fit
from adaneg_openood.benchmark.labels import named_classes, negatives_of
from adaneg_openood.benchmark.sets import Opened, StoredFeatures, fetched_later, open_set
from adaneg_openood.data import ImageSet
from adaneg_openood.data.feature_files import load_features
from adaneg_openood.data.feature_set import FeatureSet
from adaneg_openood.text import ClassNames, LabelFeatures, Mining, NegativeLabels, templates
from adaneg_openood.text.learned import load_prompts
from adaneg_openood.vlm.registry import check_model

_NAMED = 3  # missing files an item lists
_EXPECTED = (ValueError, TypeError, OSError, ImportError)
_T = TypeVar("_T")


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
        return missing(self.items)

    def refuse_missing(self) -> None:
        """Raise one error that lists everything that is missing or wrong.

        Raises:
            FileNotFoundError: something is.
        """
        gone = self.missing()
        if gone:
            listed = "".join(
                f"\n  {item.what}: {item.found}" + (f"\n    to mend: {item.mend}" if item.mend else "")
                for item in gone
            )
            raise FileNotFoundError(f"{self.definition.origin}: the benchmark is not complete:{listed}")


def open_benchmark(benchmark: Benchmark, *, fetch: bool = True) -> OpenBenchmark:
    """Look at every list, image file, label and setting; nothing is encoded and no model is loaded.

    Args:
        benchmark: the definition.
        fetch: open the sets that are fetched from elsewhere, too; False only names them.

    Returns:
        All that could be opened. A part that is missing does not keep the others from being looked at;
        see :meth:`OpenBenchmark.refuse_missing`.
    """
    return _Opener(benchmark, fetch).opened()


class _Opener:
    def __init__(self, benchmark: Benchmark, fetch: bool) -> None:
        self.benchmark, self.fetch = benchmark, fetch
        self.made = OpenBenchmark(benchmark)

    def opened(self) -> OpenBenchmark:
        made, benchmark = self.made, self.benchmark
        if benchmark.features is not None:
            file = benchmark.features
            made.whole = self.tried("features", lambda: load_features(file), _whole)
            if made.whole is not None and benchmark.logit_scale is not None:
                made.whole = replace(made.whole, logit_scale=benchmark.logit_scale)
        else:
            self.open_parts()
        self.check_methods()
        return made

    def note(self, what: str, ok: bool | None, found: str, mend: str = "") -> None:
        self.made.items.append(Item(what, ok, found, mend))

    def tried(
        self, what: str, look: Callable[[], _T], said: Callable[[_T], str], mend: str = ""
    ) -> _T | None:
        """Look, and note what was found or is wrong."""
        try:
            found = look()
            self.note(what, True, said(found))
            return found
        except _EXPECTED as error:
            self.note(what, False, str(error), mend)
            return None

    def open_parts(self) -> None:
        made, benchmark = self.made, self.benchmark
        known: ClassNames | None = None
        if benchmark.classes is not None or benchmark.text_features is not None:
            known = self.tried("classes", lambda: named_classes(benchmark, benchmark.origin), _counted)
        for part in benchmark.sets:
            self.open_one(part, known)
            if part.split == "id" and known is None and benchmark.classes is None:
                known = self.classes_of_id()
        made.classes = known
        if known is not None:
            self.warn_of_twins(known)
        left_out = [name for name in benchmark.csid if not benchmark.full_spectrum]
        if left_out:
            self.note("csid", None, f"left out without full_spectrum: {', '.join(left_out)}")
        self.refuse_same_images()
        self.open_text()
        self.compare_widths()
        if made.needs_model:
            self.tried("model", lambda: check_model(benchmark.model), str)

    def open_one(self, part: BenchmarkSet, classes: ClassNames | None) -> None:
        own = part.definition
        later = "" if self.fetch else fetched_later(own)
        if later:
            self.note(part.title, None, later)
            return
        asked = f"{own.images} images" if own.images else ""
        mend = ", ".join(filter(None, (asked, own.size, f"from {own.source}" if own.source else "")))
        try:
            found = open_set(part, classes, self.benchmark.cache)
            if part.labelled and isinstance(found, StoredFeatures) and classes is not None:
                found.id_labels(len(classes))
        except _EXPECTED as error:
            self.note(part.title, False, str(error), mend)
            return
        gone = found.missing() if isinstance(found, ImageSet) else []
        if gone:
            listed = ", ".join(file for file, _ in gone[:_NAMED]) + (
                ", ..." if len(gone) > _NAMED else ""
            )
            why = f"{len(gone)} of {len(found)} image files missing or empty: {listed}"
            if len(gone) == len(found) or not self.benchmark.skip_broken:
                self.note(part.title, False, why, mend)
                return
            self.note(part.title, None, f"{why}; left out", mend)
        self.made.sets[part.title] = found
        if not gone:
            self.note(part.title, True, _described(found))
        expected = None if own.images is None else min(own.images, own.limit or own.images)
        if expected is not None and len(found) != expected:
            said = f"the definition says {expected} images, there are {len(found)}"
            self.note(part.title, None, said, mend)

    def classes_of_id(self) -> ClassNames | None:
        found, where = self.made.sets.get("id"), self.benchmark.origin
        if found is None:
            later = any(item.what == "id" and item.ok is None for item in self.made.items)
            if later:
                self.note("classes", None, "those that the ID set brings")
            return None
        if isinstance(found, StoredFeatures):
            said = f"{where}: classes is missing, and a feature file does not tell them"
            self.note("classes", False, f"{said}; give a benchmark's name, a file or a list")
            return None
        return self.tried("classes", found.class_names, _counted)

    def warn_of_twins(self, classes: ClassNames) -> None:
        twice = [name for name, n in Counter(classes.names).items() if n > 1]
        if twice:
            listed = ", ".join(map(repr, twice[:_NAMED])) + (", ..." if len(twice) > _NAMED else "")
            self.note(
                "classes", None, f"{listed}: the name of several classes, which no text tells apart"
            )

    def refuse_same_images(self) -> None:
        """An image that is in two sets would count as ID and OOD, or twice."""
        owner: dict[str, str] = {}
        for title, found in self.made.sets.items():
            if not isinstance(found, ImageSet) or found.base is None:
                continue
            base = os.path.abspath(found.base)
            files = [os.path.normpath(os.path.join(base, name)) for name in found.names]
            shared = Counter(owner[file] for file in files if file in owner)
            for other, n in shared.items():
                if title.startswith("csid/") and other == "id":
                    continue  # the same classes; a part of them may serve for a trial
                self.note(title, False, f"{n} of its {len(files)} images are in {other}, too")
            owner.update(dict.fromkeys(files, title))

    def open_text(self) -> None:
        made, benchmark = self.made, self.benchmark
        if benchmark.text_features is not None:
            file, n_id = benchmark.text_features, made.classes and len(made.classes)
            made.labels = self.tried(
                "text_features",
                lambda: LabelFeatures.load(file, n_id or None),
                lambda found: f"{len(found.names)} labels in {file}",
            )
            return
        self.tried("prompt", lambda: templates(benchmark.prompt or "nice"), lambda t: " | ".join(t[:3]))
        if benchmark.learned_prompts is not None:
            prompts = benchmark.learned_prompts
            self.tried("learned_prompts", lambda: load_prompts(prompts), lambda _: str(prompts))
        made.negatives = self.tried("negatives", self.negatives, self.said_of_negatives)

    def negatives(self) -> Union[NegativeLabels, Mining, None]:
        found = negatives_of(self.benchmark)
        if isinstance(found, Path):
            return NegativeLabels.load(found)
        if found is None or (found.download and found.corpus == "wordnet"):
            return found
        words, _ = found.load()
        return replace(found, corpus=words)

    def said_of_negatives(self, found: Union[NegativeLabels, Mining, None]) -> str:
        if found is None:
            return "those of the learned prompts"
        if isinstance(found, NegativeLabels):
            return f"{len(found)} labels in {self.benchmark.negatives}"
        config = found.config.resolved()
        number = config.n_negatives if config.share is None else f"{config.share:.0%} of the words"
        of = getattr(found.corpus, "source", "WordNet, which nltk fetches if it is not here")
        return f"{number}, mined from {of} ({config.recipe})"

    def compare_widths(self) -> None:
        """Whether the features that exist already can be used together."""
        widths = {
            title: part.features.shape[-1]
            for title, part in self.made.sets.items()
            if isinstance(part, StoredFeatures)
        }
        if self.made.labels is not None:
            widths["text_features"] = self.made.labels.features.shape[1]
        if len(set(widths.values())) > 1:
            told = ", ".join(f"{title} {width}" for title, width in widths.items())
            self.note("widths", False, f"features of one model have one width, these differ: {told}")

    def check_methods(self) -> None:
        """Whether the methods' settings fit the number of labels, as far as it is known."""
        n_id, n_negatives = self.counts()
        if n_id is None:
            return
        for title, method in self.benchmark.methods.items():
            try:
                check_fit(method.detector, method.settings, n_id, n_negatives)
            except (ValueError, TypeError) as error:
                self.note(f"methods.{title}", False, str(error))

    def counts(self) -> tuple[int | None, int | None]:
        """C and M; None where they are not known before encoding."""
        made = self.made
        if made.whole is not None:
            return made.whole.n_id, len(made.whole.text_features) - made.whole.n_id
        if made.labels is not None:
            return made.labels.n_id, made.labels.n_negatives
        n_id = None if made.classes is None else len(made.classes)
        if isinstance(made.negatives, NegativeLabels) and self.benchmark.learned_prompts is None:
            return n_id, len(made.negatives)
        if isinstance(made.negatives, Mining) and self.benchmark.learned_prompts is None:
            number = made.negatives.config.resolved().n_negatives
            return n_id, number if isinstance(number, int) else None
        return n_id, None


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
