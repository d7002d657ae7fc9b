"""Streams: which images a detector meets, and in which order."""

from __future__ import annotations

import operator
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from adaneg_openood.data.feature_set import FeatureSet
from adaneg_openood.evaluation.subsets import Ratio, Subset, check_parts, draw_subset, subset_sizes

ORDERS = {
    "mixed": "ID and OOD images shuffled into one stream per OOD set (AdaNeg's protocol)",
    "id_first": "all ID images in the given order, then the OOD images (OpenOOD's evaluator)",
}
SPLITS = ("near", "far")


class ScoresLike(typing.Protocol):
    """What a detector returns for B images: pred (B,) integers, conf (B,) floats."""

    @property
    def pred(self) -> Tensor: ...

    @property
    def conf(self) -> Tensor: ...


class Detector(typing.Protocol):
    """Anything that scores (B, D) image features and can forget what it saw."""

    def score(self, features: Tensor) -> ScoresLike: ...

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
    _check_order(order)
    for name, value in (("n_ood", n_ood), ("n_id", n_id), ("seed", seed)):
        if value < 0:
            raise ValueError(f"{name} must be >= 0, got {value}")
    n = n_ood + n_id
    if order == "id_first":
        return np.concatenate([np.arange(n_ood, n, dtype=np.int64), np.arange(n_ood, dtype=np.int64)])
    return np.random.default_rng(seed).permutation(n).astype(np.int64, copy=False)


def check_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """The seeds as integers.

    Raises:
        ValueError: none, one that is repeated, negative or no integer.
    """
    try:
        checked = tuple(operator.index(seed) for seed in seeds)
    except TypeError:
        raise ValueError(f"seeds must be integers, got {seeds!r}") from None
    if not checked or len(set(checked)) < len(checked) or min(checked) < 0:
        raise ValueError(f"seeds must be distinct and >= 0, at least one, got {checked}")
    return checked


def keeps_state(detector: Detector) -> bool:
    """Whether a detector's scores depend on the images before; one without ``info`` counts as such."""
    info = getattr(detector, "info", None)
    return bool(getattr(info, "keeps_state", True))


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
        ValueError: a setting out of range.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    batch_size: int = 256
    order: str = "mixed"
    ratio: Ratio | None = None
    n_images: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", check_seeds(self.seeds))
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {self.batch_size}")
        _check_order(self.order)
        check_parts(self.ratio, self.n_images)

    def sizes(self, n_id: int, n_ood: int) -> tuple[int, int]:
        """ID and OOD images that are met, of so many."""
        return subset_sizes(n_id, n_ood, self.ratio, self.n_images)

    def takes_all(self, n_id: int, n_ood: int) -> bool:
        """Whether every image is met, of so many."""
        return self.sizes(n_id, n_ood) == (n_id, n_ood)

    def subset(self, n_id: int, n_ood: int, seed: int) -> Subset:
        """The images that a seed's stream holds."""
        return draw_subset(n_id, n_ood, seed, self.ratio, self.n_images)


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


def streams_of(
    data: FeatureSet, protocol: Protocol, given_orders: Mapping[str, np.ndarray] | None = None
) -> Iterator[Stream]:
    """Every OOD set under every seed, set by set.

    Args:
        data: the sets.
        protocol: seeds, order and images.
        given_orders: OOD set -> an order in place of the seeds'.

    Raises:
        ValueError: the protocol asks for more images than a set has.
    """
    orders = given_orders or {}
    for split in SPLITS:
        for dataset, ood in getattr(data, split).items():
            try:
                protocol.sizes(len(data.id_features), len(ood))
            except ValueError as error:
                raise ValueError(f"{dataset}: {error}") from None
            for seed in protocol.seeds:
                yield Stream(split, dataset, seed, protocol, orders.get(dataset))


def _check_order(order: str) -> None:
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(map(repr, ORDERS))}, got {order!r}")
