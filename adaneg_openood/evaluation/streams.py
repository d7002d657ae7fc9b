"""Streams: which images a detector meets, and in which order."""

from __future__ import annotations

import operator
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from adaneg_openood.data.feature_set import FeatureSet
from adaneg_openood.io.checks import check_choice, check_int

Ratio = tuple[int, int]
ORDERS = {
    "mixed": "ID and OOD images shuffled into one stream per OOD set (AdaNeg's protocol)",
    "id_first": "all ID images in the given order, then the OOD images (OpenOOD's evaluator)",
}
SPLITS = ("near", "far")


class Subset(typing.NamedTuple):
    """Rows of the ID and the OOD features, each in ascending order."""

    ids: np.ndarray
    oods: np.ndarray


class Detector(typing.Protocol):
    """Anything that scores (B, D) image features and can forget what it saw.

    What ``score`` returns has ``pred``, (B,) integers, and ``conf``, (B,) floats.
    """

    def score(self, features: Tensor) -> typing.Any: ...

    def reset(self) -> None: ...


def stream_order(n_ood: int, n_id: int, seed: int, order: str = "mixed") -> np.ndarray:
    """The order in which images are scored, as indices into concat(OOD, ID).

    It depends on the arguments alone, so a dataset's stream does not change with the datasets
    evaluated before it. Global random state is neither read nor written.

    Args:
        n_ood: number of OOD images; they come first in the concatenation.
        n_id: number of ID images.
        seed: seed of the shuffle, >= 0; not used by ``"id_first"``.
        order: ``"mixed"`` or ``"id_first"``, see :data:`ORDERS`.

    Returns:
        (n_ood + n_id,) int64, a permutation.

    Raises:
        ValueError: unknown order, or a negative count or seed.

    Source: AdaNeg (Zhang and Zhang, NeurIPS 2024) for ``"mixed"``, OpenOOD v1.5 for ``"id_first"``.

    Example:
        >>> stream_order(2, 3, seed=0, order="id_first").tolist()
        [2, 3, 4, 0, 1]
    """
    check_choice("order", order, tuple(ORDERS))
    for name, value in (("n_ood", n_ood), ("n_id", n_id), ("seed", seed)):
        if value < 0:
            raise ValueError(f"{name} must be >= 0, got {value}")
    n = n_ood + n_id
    if order == "id_first":
        return np.concatenate([np.arange(n_ood, n, dtype=np.int64), np.arange(n_ood, dtype=np.int64)])
    return np.random.default_rng(seed).permutation(n).astype(np.int64, copy=False)


@dataclass(frozen=True)
class Protocol:
    """How the images of a benchmark are met.

    Attributes:
        seeds: of the stream orders, and of the choice of images where ``ratio`` or ``n_images`` leave
            some out.
        batch_size: images per batch; a detector that keeps state depends on it.
        order: ``"mixed"`` or ``"id_first"``, see :data:`ORDERS`.
        ratio: ID to OOD images; None keeps the one there is.
        n_images: ID and OOD images together; None takes as many as the ratio allows.

    Raises:
        ValueError, TypeError: a setting out of range, or a number that is not whole.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    batch_size: int = 256
    order: str = "mixed"
    ratio: Ratio | None = None
    n_images: int | None = None

    def __post_init__(self) -> None:
        try:
            seeds = tuple(operator.index(seed) for seed in self.seeds)
        except TypeError:
            raise ValueError(f"seeds must be integers, got {self.seeds!r}") from None
        if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError(f"seeds must be distinct and >= 0, at least one, got {seeds}")
        object.__setattr__(self, "seeds", seeds)
        check_int("batch_size", self.batch_size)
        check_choice("order", self.order, tuple(ORDERS))
        if self.ratio is not None:
            if len(self.ratio) != 2:
                raise ValueError(f"ratio must be two whole numbers, ID to OOD, got {self.ratio}")
            for side, number in zip(("ID", "OOD"), self.ratio):
                check_int(f"ratio: the number of {side} images", number)
        if self.n_images is not None:
            check_int("n_images (an ID and an OOD image, or more)", self.n_images, 2)

    def sizes(self, n_id: int, n_ood: int) -> tuple[int, int]:
        """How many ID and OOD images are met, of so many; at least one of each.

        Raises:
            ValueError: there are fewer than ``n_images`` asks for.

        Example:
            >>> Protocol(ratio=(1, 1)).sizes(100, 300)
            (100, 100)
            >>> Protocol(ratio=(1, 10), n_images=22).sizes(100, 300)
            (2, 20)
            >>> Protocol(n_images=40).sizes(100, 300)
            (10, 30)
        """
        of_id, of_ood = self.ratio or (n_id, n_ood)
        if self.n_images is None:
            # whole-number arithmetic: no rounding can ask for an image too many
            if n_id * of_ood <= n_ood * of_id:
                return n_id, min(n_ood, max(1, n_id * of_ood // of_id))
            return min(n_id, max(1, n_ood * of_id // of_ood)), n_ood
        ids = min(max(1, round(self.n_images * of_id / (of_id + of_ood))), self.n_images - 1)
        oods = self.n_images - ids
        if ids > n_id or oods > n_ood:
            raise ValueError(
                f"{self.n_images} images at {of_id}:{of_ood} need {ids} ID and {oods} OOD images, there "
                f"are {n_id} and {n_ood}"
            )
        return ids, oods

    def takes_all(self, n_id: int, n_ood: int) -> bool:
        """Whether every image is met, of so many."""
        return self.sizes(n_id, n_ood) == (n_id, n_ood)

    def subset(self, n_id: int, n_ood: int, seed: int) -> Subset:
        """The images of a seed's stream; a smaller subset lies in a larger one of the same seed."""
        drawn = []
        for side, (n, keep) in enumerate(zip((n_id, n_ood), self.sizes(n_id, n_ood))):
            # generators of their own, so that the choice says nothing of the order
            chosen = np.random.default_rng([seed, 1 + side]).permutation(n)[:keep]
            drawn.append(np.sort(chosen))
        return Subset(*drawn)


@dataclass(frozen=True)
class Stream:
    """One OOD set, met together with the ID images in one order.

    Attributes:
        split: ``"near"`` or ``"far"``.
        dataset: name of the OOD set.
        seed: of the order, and of the choice of images.
        protocol: how it is met; its own ``seeds`` are not read.
        given_order: (N,) a permutation of concat(OOD, ID), in place of the seed's order; only where
            every image is met.
    """

    split: str
    dataset: str
    seed: int
    protocol: Protocol
    given_order: np.ndarray | None = field(default=None, compare=False, repr=False)

    def order(self, n_ood: int, n_id: int) -> np.ndarray:
        """(n_ood + n_id,) order over concat(OOD, ID) of the images that are met."""
        if self.given_order is not None:
            return np.asarray(self.given_order)
        return stream_order(n_ood, n_id, self.seed, self.protocol.order)

    def depends_on_seed(self, n_ood: int, n_id: int, keeps_state: bool) -> bool:
        """Whether another seed could give other scores, of so many images in all.

        Args:
            keeps_state: whether a detector's scores depend on the images before.
        """
        if not self.protocol.takes_all(n_id, n_ood):
            return True  # the seed chooses the images
        return keeps_state and self.protocol.order == "mixed" and self.given_order is None


def streams_of(
    data: FeatureSet, protocol: Protocol, given_orders: Mapping[str, np.ndarray] | None = None
) -> Iterator[Stream]:
    """Every OOD set under every seed, set by set; arguments as of ``replay``.

    Raises:
        ValueError: the protocol asks for more images than a set has.
    """
    for split in SPLITS:
        for dataset, ood in getattr(data, split).items():
            try:
                protocol.sizes(len(data.id_features), len(ood))
            except ValueError as error:
                raise ValueError(f"{dataset}: {error}") from None
            for seed in protocol.seeds:
                yield Stream(split, dataset, seed, protocol, (given_orders or {}).get(dataset))


def parse_ratio(text: str) -> Ratio:
    """``"1:10"`` -> ``(1, 10)``, ID to OOD.

    Raises:
        ValueError: it is none.
    """
    sides = [int(side) if side.strip().isdigit() else 0 for side in text.split(":")]
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(f"a ratio is ID:OOD, two whole numbers such as 1:10, got {text!r}")
    return sides[0], sides[1]
