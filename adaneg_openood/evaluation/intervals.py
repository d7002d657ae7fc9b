"""How sure a number is: bootstrap intervals over images, and a paired test between two methods."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Union

import numpy as np
from torch import Tensor

from adaneg_openood.evaluation.metrics import METRICS, RankedScores, ScoreCounts, as_numpy, ood_metrics
from adaneg_openood.io.checks import check_int
from adaneg_openood.io.names import harmless

BOOTSTRAPPED = METRICS[:3]
Array = Union[np.ndarray, Tensor]


class Interval(NamedTuple):
    """A metric in percent, and the ends of its interval."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """A metric of method A less that of method B, in points.

    Attributes:
        value: on the images there are.
        low, high: ends of the bootstrap interval.
        p_value: two-sided, of the hypothesis that there is no difference; never below
            ``2 / (resamples + 1)``, nor below ``2 / 2**n`` where n images are all there are of ID or of
            OOD: so often do n images agree in sign by chance.
        may_be_chance: the interval holds 0, or the p-value is above ``1 - level``.
    """

    value: float
    low: float
    high: float
    p_value: float
    may_be_chance: bool


def bootstrap_intervals(
    confs: Array | Sequence[Array],
    label: Array,
    *,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Percentile bootstrap intervals of AUROC and both FPR@95.

    Images are drawn, ID and OOD apart; each keeps its score. For a method whose scores depend on the
    stream the interval says how much the test images matter, not how much the order does: for that,
    see the standard deviation over orders.

    Args:
        confs: (N,) confidences, or several such vectors (one a stream order) whose metrics are averaged.
        label: (N,) integers, -1 for OOD.
        n_resamples: B.
        level: in (0, 1).
        seed: of the draws; no global generator is touched.

    Returns:
        Metric name -> interval, in percent.

    Raises:
        ValueError, TypeError: lengths differ, scores not finite, ID or OOD images missing, or
            ``n_resamples`` or ``level`` out of range.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    check_draws(n_resamples, level)
    found = resampled({"": _vectors(confs)}, "", label, n_resamples, seed)
    return Bootstrap(*found, n_resamples, level).intervals("", "")


def paired_bootstrap(
    conf_a: Array | Sequence[Array],
    conf_b: Array | Sequence[Array],
    label: Array,
    *,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Difference]:
    """Test whether two methods differ on the same images: A less B, drawn images shared.

    Args:
        conf_a, conf_b: confidences of the two methods, as in :func:`bootstrap_intervals`.
        label, n_resamples, level, seed: as there.

    Returns:
        Metric name -> difference, in points.

    Raises:
        ValueError, TypeError: as there.
    """
    check_draws(n_resamples, level)
    both = {"a": _vectors(conf_a), "b": _vectors(conf_b)}
    found = resampled(both, "", label, n_resamples, seed)
    return Bootstrap(*found, n_resamples, level).differences("a", "b", "")


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Resampled metrics of every method and row, paired across methods.

    Attributes:
        observed: (method, row) -> (3,) metrics on the images there are, in percent. Rows are sets and
            the means of near and far ones (``nearood``, ``farood``), as in tables.
        drawn: (method, row) -> (B, 3) metrics of the resamples.
        n_images: row -> ID images or OOD images, whichever are fewer; for a group, in its smallest set.
        n_resamples: B.
        level: of the intervals.
    """

    observed: Mapping[tuple[str, str], np.ndarray]
    drawn: Mapping[tuple[str, str], np.ndarray]
    n_images: Mapping[str, int]
    n_resamples: int
    level: float

    @property
    def methods(self) -> list[str]:
        """Method names, in order."""
        return list(dict.fromkeys(method for method, _ in self.observed))

    @property
    def rows(self) -> list[str]:
        """Sets and group rows, as tables have them."""
        return list(dict.fromkeys(row for _, row in self.observed))

    def intervals(self, method: str, row: str) -> dict[str, Interval]:
        """Intervals of a set, or of a group's mean."""
        key = method, row
        columns = zip(BOOTSTRAPPED, self.observed[key], *self._ends(self.drawn[key]))
        return {name: Interval(*map(float, values)) for name, *values in columns}

    def differences(self, method: str, other: str, row: str) -> dict[str, Difference]:
        """``method`` less ``other``, with a paired test, on a set or on a group's mean."""
        observed = self.observed[method, row] - self.observed[other, row]
        drawn = self.drawn[method, row] - self.drawn[other, row]
        # one is added to both counts, so that a finite number of draws never claims certainty
        tail = np.minimum((drawn <= 0).sum(axis=0), (drawn >= 0).sum(axis=0))
        p_values = np.clip(2 * (tail + 1) / (len(drawn) + 1), 2.0 ** (1 - self.n_images[row]), 1.0)
        low, high = self._ends(drawn)
        may_be_chance = (low <= 0) & (high >= 0) | (p_values > 1 - self.level)
        columns = zip(*(column.tolist() for column in (observed, low, high, p_values, may_be_chance)))
        return {name: Difference(*values) for name, values in zip(BOOTSTRAPPED, columns)}

    def _ends(self, drawn: np.ndarray) -> Any:
        return np.quantile(drawn, [(1 - self.level) / 2, (1 + self.level) / 2], axis=0)

    def to_dict(self) -> dict[str, Any]:
        """Intervals of every method and row, and differences to the first method, as JSON values."""
        first, *others = self.methods
        intervals: dict[str, Any] = {method: {} for method in self.methods}
        differences: dict[str, Any] = {f"{method} - {first}": {} for method in others}
        for row in self.rows:
            for method in self.methods:
                found = self.intervals(method, row)
                intervals[method][row] = {name: list(one) for name, one in found.items()}
            for method in others:
                tested = self.differences(method, first, row)
                told = {name: one._asdict() for name, one in tested.items()}
                differences[f"{method} - {first}"][row] = told
        return {
            "resamples": self.n_resamples,
            "level": self.level,
            "meaning": "percentile bootstrap over images, ID and OOD apart; scores stay as they are",
            "intervals": intervals,
            "differences": differences,
        }

    def format(self) -> str:
        """Readable text: an interval a method and row, and tests against the first method."""
        first, *others = self.methods
        width = max(map(len, [*self.methods, *self.rows]))

        def line(row: str, method: str, told: Iterable[str]) -> str:
            return f"{harmless(row):<{width}}  {harmless(method):<{width}}  {'  '.join(told)}"

        percent = f"{100 * self.level:g} %"
        lines = [f"Bootstrap intervals ({percent}, {self.n_resamples} resamples of the images):"]
        for row in self.rows:
            for method in self.methods:
                found = self.intervals(method, row).items()
                told = [f"{name} {one.value:.2f} [{one.low:.2f}, {one.high:.2f}]" for name, one in found]
                lines.append(line(row, method, told))
        if others:
            lines.append(f"\nDifferences to {first}, with the p-value of a paired test:")
        for row in self.rows:
            for method in others:
                told = [
                    f"{name} {_signed(one.value)} [{_signed(one.low)}, {_signed(one.high)}] "
                    f"p {one.p_value:.3f}"
                    for name, one in self.differences(method, first, row).items()
                ]
                lines.append(line(row, method, told))
        return "\n".join([*lines, *self.warnings()])

    def warnings(self) -> list[str]:
        """Intervals of too few images, and one line per method: differences that chance may explain."""
        lines = [
            f"{harmless(row)}: of ID or of OOD there are only {n} images, too few for an interval of "
            f"{100 * self.level:g} %"
            for row, n in self.n_images.items()
            if 2.0 ** (1 - n) > 1 - self.level
        ]
        first, *others = self.methods
        for method in others:
            unsure, differ = [], False
            for row in self.rows:
                found = self.differences(method, first, row)
                differ = differ or any(round(one.low, 9) or round(one.high, 9) for one in found.values())
                names = [name for name, one in found.items() if one.may_be_chance]
                if names:
                    unsure.append(f"{row} ({', '.join(names)})")
            if not differ:
                lines.append(harmless(f"{method} - {first}: no difference anywhere"))
            elif unsure:
                where = f"{method} - {first}: chance may explain the difference in "
                lines.append(harmless(where + "; ".join(unsure)))
        return lines


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"  # never -0.00


def check_draws(n_resamples: int, level: float) -> None:
    """Raise unless there can be an interval of this level, before the draws, which take long."""
    check_int("n_resamples", n_resamples, 2)
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must be in (0, 1), got {level}")


def resampled(
    confs: Mapping[str, Sequence[Array]],
    row: str,
    label: Array,
    n_resamples: int,
    seed: int,
    number: int = 0,
) -> tuple[dict[tuple[str, str], np.ndarray], dict[tuple[str, str], np.ndarray], dict[str, int]]:
    """The first three fields of a :class:`Bootstrap` for one row, the same draws for every method.

    Args:
        confs: method -> one (N,) vector per stream order; their metrics are averaged.
        number: of the set. Sets with the same ID images and seed draw the same ID images, and OOD
            images independently.

    Raises:
        ValueError: what ``ood_metrics`` refuses.
    """
    labels = as_numpy(label)
    is_ood, no_class = labels == -1, np.zeros(len(labels), dtype=np.int64)
    observed, ranked, drawn = {}, {}, {}
    for method, given in confs.items():
        vectors = [as_numpy(conf) for conf in given]
        met = [ood_metrics(conf, labels, no_class) for conf in vectors]
        observed[method, row] = np.mean([[one[name] for name in BOOTSTRAPPED] for one in met], axis=0)
        ranked[method, row] = [RankedScores(conf, is_ood) for conf in vectors]
        drawn[method, row] = np.empty((n_resamples, len(BOOTSTRAPPED)))
    for place, weight in enumerate(draws(is_ood, n_resamples, seed, number)):
        for key, several in ranked.items():
            drawn[key][place] = np.mean([_percent(one.counts(weight)) for one in several], axis=0)
    return observed, drawn, {row: int(min(is_ood.sum(), (~is_ood).sum()))}


def draws(is_ood: np.ndarray, n_resamples: int, seed: int, number: int) -> Iterator[np.ndarray]:
    """How often each image is drawn, (N,) int64, B times; ID and OOD images apart."""
    sides = (
        (np.flatnonzero(~is_ood), np.random.default_rng([seed, 0])),
        (np.flatnonzero(is_ood), np.random.default_rng([seed, 1, number])),
    )
    for _ in range(n_resamples):
        weight = np.zeros(len(is_ood), dtype=np.int64)
        for rows, rng in sides:
            weight[rows] = np.bincount(rng.integers(len(rows), size=len(rows)), minlength=len(rows))
        yield weight


def _percent(counts: ScoreCounts) -> tuple[float, float, float]:
    """:data:`BOOTSTRAPPED` of one resample."""
    fpr_ood, fpr_id = (counts.fpr95(id_positive=positive)[0] for positive in (False, True))
    return 100 * fpr_ood, 100 * fpr_id, 100 * counts.auroc()


def _vectors(confs: Array | Sequence[Array]) -> Sequence[Array]:
    several = [confs] if getattr(confs, "ndim", 0) == 1 else list(confs)
    if not several:
        raise ValueError("no scores; give one (N,) vector or several")
    return several  # type: ignore[return-value]
