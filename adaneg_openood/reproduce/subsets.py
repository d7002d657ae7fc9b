"""Which images a smaller or uneven stream uses."""

from __future__ import annotations

from math import gcd

import numpy as np

from adaneg_openood.evaluation.subsets import nested_draw
from adaneg_openood.reproduce.trials import Draw


def ratio_counts(n_id: int, n_ood: int, ratio_id: int, ratio_ood: int) -> tuple[int, int]:
    """The largest (ID, OOD) counts in a ratio; at least one image of each side.

    Example:
        >>> ratio_counts(300, 150, 100, 1), ratio_counts(300, 150, 1, 1), ratio_counts(300, 150, 1, 100)
        ((300, 3), (150, 150), (1, 100))
    """
    divisor = gcd(ratio_id, ratio_ood)
    a, b = ratio_id // divisor, ratio_ood // divisor
    parts = min(n_id // a, n_ood // b)
    if parts >= 1:
        return parts * a, parts * b
    # too few of one side for the exact ratio: all there are, and one of the other
    return (n_id, 1) if a > b else (1, n_ood)


def draw_ratio(ratio_id: int, ratio_ood: int) -> Draw:
    """Random images of both sides in a ratio, other ones for every seed."""

    def draw(n_id: int, n_ood: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        keep_id, keep_ood = ratio_counts(n_id, n_ood, ratio_id, ratio_ood)
        return nested_draw(n_id, keep_id, [seed, 0]), nested_draw(n_ood, keep_ood, [seed, 1])

    return draw


def draw_total(total: int, ratio_id: int = 5, ratio_ood: int = 4) -> Draw:
    """``total`` random images in a ratio, or as many as there are; other ones for every seed."""

    def draw(n_id: int, n_ood: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        parts = total // (ratio_id + ratio_ood)
        most_id, most_ood = ratio_counts(n_id, n_ood, ratio_id, ratio_ood)
        keep_id, keep_ood = min(most_id, parts * ratio_id), min(most_ood, parts * ratio_ood)
        return nested_draw(n_id, keep_id, [seed, 0]), nested_draw(n_ood, keep_ood, [seed, 1])

    return draw


def totals(n_id: int, n_ood: int) -> list[int]:
    """Stream lengths at 5:4 that this many images allow, 90 and upwards, the largest one last.

    Example:
        >>> totals(300, 150)
        [90, 180, 333]
    """
    most = sum(ratio_counts(n_id, n_ood, 5, 4))
    sizes = [90, 180, 450, 900, 1_800, 4_500, 9_000, 18_000, 45_000, 90_000]
    return [*(size for size in sizes if size < most), most]
