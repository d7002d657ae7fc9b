"""Parts of a benchmark: another ratio of ID to OOD images, or fewer images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Ratio = tuple[int, int]


class Subset(NamedTuple):
    """Rows of the ID and the OOD features, each in ascending order."""

    ids: np.ndarray
    oods: np.ndarray


def subset_sizes(
    n_id: int, n_ood: int, ratio: Ratio | None = None, n_images: int | None = None
) -> tuple[int, int]:
    """How many ID and OOD images to take.

    Args:
        n_id: ID images there are.
        n_ood: OOD images there are.
        ratio: ID to OOD; None keeps the one there is.
        n_images: both together; None takes as many as the ratio allows.

    Returns:
        (ID, OOD), at least one of each.

    Raises:
        ValueError: there are not so many images.

    Example:
        >>> subset_sizes(100, 300, ratio=(1, 1))
        (100, 100)
        >>> subset_sizes(100, 300, ratio=(1, 10), n_images=22)
        (2, 20)
        >>> subset_sizes(100, 300, n_images=40)
        (10, 30)
    """
    check_parts(ratio, n_images)
    of_id, of_ood = (n_id, n_ood) if ratio is None else ratio
    if n_images is None:
        # whole-number arithmetic: no rounding can ask for an image too many
        fits_id = n_id * of_ood <= n_ood * of_id
        ids = n_id if fits_id else max(1, n_ood * of_id // of_ood)
        oods = max(1, n_id * of_ood // of_id) if fits_id else n_ood
        return min(ids, n_id), min(oods, n_ood)
    ids = min(max(1, round(n_images * of_id / (of_id + of_ood))), n_images - 1)
    oods = n_images - ids
    if ids > n_id or oods > n_ood:
        raise ValueError(
            f"{n_images} images at {of_id}:{of_ood} need {ids} ID and {oods} OOD images, there are "
            f"{n_id} and {n_ood}"
        )
    return ids, oods


def check_parts(ratio: Ratio | None, n_images: int | None) -> None:
    """Raise a ValueError unless both can be met by some benchmark."""
    if ratio is not None and min(ratio) < 1:
        raise ValueError(f"ratio must be two whole numbers of at least 1, got {ratio[0]}:{ratio[1]}")
    if n_images is not None and n_images < 2:
        raise ValueError(f"n_images must be at least 2, one ID and one OOD image, got {n_images}")


def draw_subset(
    n_id: int,
    n_ood: int,
    seed: int,
    ratio: Ratio | None = None,
    n_images: int | None = None,
) -> Subset:
    """Draw images without replacement; a smaller part lies in a larger one of the same seed.

    Args:
        n_id, n_ood, ratio, n_images: see :func:`subset_sizes`.
        seed: of the draw; the global generator is not touched.

    Raises:
        ValueError: there are not so many images.
    """
    sizes = subset_sizes(n_id, n_ood, ratio, n_images)
    # streams of their own, so that the choice says nothing of the order
    ids, oods = (
        nested_draw(n, keep, [seed, 1 + side])
        for side, (n, keep) in enumerate(zip((n_id, n_ood), sizes))
    )
    return Subset(ids, oods)


def nested_draw(n: int, keep: int, seed: Sequence[int]) -> np.ndarray:
    """``keep`` of n rows in ascending order; a smaller draw lies in a larger one of the same seed."""
    if keep >= n:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).permutation(n)[:keep])


def parse_ratio(text: str) -> Ratio:
    """``"1:10"`` -> ``(1, 10)``, ID to OOD.

    Raises:
        ValueError: it is none.
    """
    left, colon, right = text.partition(":")
    if not colon or not left.strip().isdigit() or not right.strip().isdigit():
        raise ValueError(f"a ratio is ID:OOD, such as 1:10, got {text!r}")
    ratio = int(left), int(right)
    if min(ratio) < 1:
        raise ValueError(f"both sides of a ratio must be at least 1, got {text!r}")
    return ratio
