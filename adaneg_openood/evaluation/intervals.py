"""How sure a number is: bootstrap intervals over images, and a paired test between two methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Union

import numpy as np
from torch import Tensor

from adaneg_openood.evaluation.metrics import RankedScores, ScoreCounts, ood_metrics
from adaneg_openood.io.names import harmless

BOOTSTRAPPED = ("FPR@95", "FPR@95 (ID positive)", "AUROC")
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
            ``2 / (resamples + 1)``.
    """

    value: float
    low: float
    high: float
    p_value: float

    @property
    def holds_zero(self) -> bool:
        """Whether the interval holds 0, so that chance may explain the difference."""
        return self.low <= 0.0 <= self.high


class Resampler:
    """Draws images with replacement, ID and OOD images apart, the same ones for every method.

    Args:
        label: (N,) integers, -1 for OOD.
        n_resamples: B.
        seed: of this class's own generators.
        group: sets with the same ID images and the same seed draw the same ID images, whatever their
            OOD images are; ``group`` makes the OOD draws of different sets independent.

    Raises:
        ValueError: no ID or no OOD image, or fewer than two resamples.
    """

    def __init__(self, label: Array, n_resamples: int = 1000, seed: int = 0, group: int = 0) -> None:
        if n_resamples < 2:
            raise ValueError(f"n_resamples must be at least 2, got {n_resamples}")
        self.is_ood = np.asarray(label) == -1
        self.n_resamples, self.seed, self.group = n_resamples, seed, group
        if self.is_ood.all() or not self.is_ood.any():
            raise ValueError("label must hold both ID (>= 0) and OOD (-1) images")

    def distribution(self, confs: Sequence[Array]) -> np.ndarray:
        """Metrics of every resample, averaged over the given score vectors (such as stream orders).

        Args:
            confs: S vectors of (N,) confidences, larger = more ID.

        Returns:
            (B, 3) float64 in percent, columns :data:`BOOTSTRAPPED`.
        """
        ranked = [self._ranked(np.asarray(conf, dtype=np.float64)) for conf in confs]
        out = np.empty((self.n_resamples, len(BOOTSTRAPPED)))
        for row, weight in enumerate(self._draws()):
            out[row] = np.mean([_percent(one.counts(weight)) for one in ranked], axis=0)
        return out

    def _ranked(self, conf: np.ndarray) -> RankedScores:
        if conf.shape != self.is_ood.shape:
            raise ValueError(f"conf must be {self.is_ood.shape}, one entry per label, got {conf.shape}")
        if not np.isfinite(conf).all():
            raise ValueError("conf must be finite")
        return RankedScores(conf, self.is_ood)

    def _draws(self) -> Any:
        """How often each image is drawn, (N,) int64, B times."""
        ids, oods = np.flatnonzero(~self.is_ood), np.flatnonzero(self.is_ood)
        of_id = np.random.default_rng([self.seed, 0])
        of_ood = np.random.default_rng([self.seed, 1, self.group])
        for _ in range(self.n_resamples):
            weight = np.zeros(len(self.is_ood), dtype=np.int64)
            for rows, rng in ((ids, of_id), (oods, of_ood)):
                weight[rows] = np.bincount(rng.integers(len(rows), size=len(rows)), minlength=len(rows))
            yield weight


def _percent(counts: ScoreCounts) -> tuple[float, float, float]:
    """:data:`BOOTSTRAPPED` of one resample."""
    fpr_ood, fpr_id = counts.fpr95().fpr, counts.fpr95(id_positive=True).fpr
    return 100 * fpr_ood, 100 * fpr_id, 100 * counts.auroc()


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
        ValueError: lengths differ, scores not finite, ID or OOD images missing, level out of range.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    several = _vectors(confs)
    resampler = Resampler(label, n_resamples, seed)
    return _intervals(_observed(several, label), resampler.distribution(several), level)


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
        ValueError: as there.
    """
    a, b = _vectors(conf_a), _vectors(conf_b)
    resampler = Resampler(label, n_resamples, seed)
    return _differences(
        _observed(a, label) - _observed(b, label),
        resampler.distribution(a) - resampler.distribution(b),
        level,
    )


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Resampled metrics of every method and set, paired across methods.

    Attributes:
        observed: (method, set) -> (3,) metrics on the images there are, in percent.
        drawn: (method, set) -> (B, 3) metrics of the resamples.
        groups: split -> names of its sets.
        n_resamples: B.
        level: of the intervals.
    """

    observed: Mapping[tuple[str, str], np.ndarray]
    drawn: Mapping[tuple[str, str], np.ndarray]
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    n_resamples: int = 1000
    level: float = 0.95

    @property
    def methods(self) -> list[str]:
        """Method names, in order."""
        return list(dict.fromkeys(method for method, _ in self.observed))

    @property
    def rows(self) -> list[str]:
        """Sets and group rows (``nearood``, ``farood``), as tables have them."""
        return [
            name for split, names in self.groups.items() if names for name in (*names, f"{split}ood")
        ]

    def intervals(self, method: str, row: str) -> dict[str, Interval]:
        """Intervals of a set, or of a group's mean."""
        return _intervals(
            self._of(self.observed, method, row), self._of(self.drawn, method, row), self.level
        )

    def differences(self, method: str, other: str, row: str) -> dict[str, Difference]:
        """``method`` less ``other``, with a paired test, on a set or on a group's mean."""
        return _differences(
            self._of(self.observed, method, row) - self._of(self.observed, other, row),
            self._of(self.drawn, method, row) - self._of(self.drawn, other, row),
            self.level,
        )

    def to_dict(self) -> dict[str, Any]:
        """Intervals of every method and row, and differences to the first method, as JSON values."""
        first = self.methods[0]
        return {
            "resamples": self.n_resamples,
            "level": self.level,
            "meaning": "percentile bootstrap over images, ID and OOD apart; scores stay as they are",
            "intervals": {
                method: {
                    row: {k: list(v) for k, v in self.intervals(method, row).items()}
                    for row in self.rows
                }
                for method in self.methods
            },
            "differences": {
                f"{method} - {first}": {
                    row: {k: v._asdict() for k, v in self.differences(method, first, row).items()}
                    for row in self.rows
                }
                for method in self.methods[1:]
            },
        }

    def format(self) -> str:
        """Readable text: an interval a method and row, and tests against the first method."""
        percent = f"{100 * self.level:g} %"
        lines = [f"Bootstrap intervals ({percent}, {self.n_resamples} resamples of the images):"]
        width = max(map(len, [*self.methods, *self.rows]))
        first = self.methods[0]
        for row in self.rows:
            for method in self.methods:
                told = [
                    f"{name} {one.value:.2f} [{one.low:.2f}, {one.high:.2f}]"
                    for name, one in self.intervals(method, row).items()
                ]
                lines.append(self._line(row, method, width, told))
        if len(self.methods) > 1:
            lines.append(f"\nDifferences to {first}, with the p-value of a paired test:")
            for row in self.rows:
                for method in self.methods[1:]:
                    told = [
                        f"{name} {one.value:+.2f} [{one.low:+.2f}, {one.high:+.2f}] p {one.p_value:.3f}"
                        for name, one in self.differences(method, first, row).items()
                    ]
                    lines.append(self._line(row, method, width, told))
            lines += self.warnings()
        return "\n".join(lines)

    @staticmethod
    def _line(row: str, method: str, width: int, told: Sequence[str]) -> str:
        return f"{harmless(row):<{width}}  {harmless(method):<{width}}  {'  '.join(told)}"

    def warnings(self) -> list[str]:
        """One line per method: differences to the first method that chance may explain."""
        lines = []
        first = self.methods[0]
        for method in self.methods[1:]:
            unsure = []
            for row in self.rows:
                found = self.differences(method, first, row).items()
                names = [name for name, one in found if one.holds_zero]
                if names:
                    unsure.append(f"{row} ({', '.join(names)})")
            if unsure:
                where = f"{method} - {first}: intervals hold 0, so chance may explain it, in "
                lines.append(harmless(where + "; ".join(unsure)))
        return lines

    def _of(self, values: Mapping[tuple[str, str], np.ndarray], method: str, row: str) -> np.ndarray:
        for split, names in self.groups.items():
            if row == f"{split}ood":
                mean: np.ndarray = np.mean([values[method, name] for name in names], axis=0)
                return mean
        if (method, row) not in values:
            raise KeyError(f"no {row!r} of {method!r}; rows are {', '.join(self.rows)}")
        return values[method, row]


def observed_and_drawn(
    confs: Mapping[str, Sequence[Array]], label: Array, n_resamples: int, seed: int, group: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What :class:`Bootstrap` keeps of one set.

    Args:
        confs: method -> one (N,) vector a stream order.
        label: (N,).
        n_resamples, seed, group: see :class:`Resampler`.
    """
    resampler = Resampler(label, n_resamples, seed, group)
    observed = {name: _observed(vectors, label) for name, vectors in confs.items()}
    return observed, {name: resampler.distribution(vectors) for name, vectors in confs.items()}


def _vectors(confs: Array | Sequence[Array]) -> list[Array]:
    if isinstance(confs, (np.ndarray, Tensor)) and confs.ndim == 1:
        return [confs]
    several = list(confs)
    if not several:
        raise ValueError("no scores; give one (N,) vector or several")
    return several


def _observed(confs: Sequence[Array], label: Array) -> np.ndarray:
    labels = np.asarray(label)
    rows = []
    for conf in confs:
        metrics = ood_metrics(conf, labels, np.zeros(len(labels), dtype=np.int64))
        rows.append([metrics[name] for name in BOOTSTRAPPED])
    mean: np.ndarray = np.mean(rows, axis=0)
    return mean


def _ends(drawn: np.ndarray, level: float) -> np.ndarray:
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must be in (0, 1), got {level}")
    ends: np.ndarray = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return ends


def _intervals(observed: np.ndarray, drawn: np.ndarray, level: float) -> dict[str, Interval]:
    low, high = _ends(drawn, level)
    values = zip(BOOTSTRAPPED, observed, low, high)
    return {name: Interval(float(v), float(a), float(b)) for name, v, a, b in values}


def _differences(observed: np.ndarray, drawn: np.ndarray, level: float) -> dict[str, Difference]:
    low, high = _ends(drawn, level)
    n = len(drawn)
    # one is added to both counts, so that a finite number of draws never claims certainty
    tail = np.minimum((drawn <= 0).sum(axis=0), (drawn >= 0).sum(axis=0))
    p = np.minimum(1.0, 2 * (tail + 1) / (n + 1))
    values = zip(BOOTSTRAPPED, observed, low, high, p)
    return {name: Difference(float(v), float(a), float(b), float(q)) for name, v, a, b, q in values}
