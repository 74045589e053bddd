"""Levels of a pyramid: their downsamples, and the ratio that brings one to a resolution."""

import math
from fractions import Fraction
from typing import NamedTuple

EQUAL = 0.05
"""Resolutions within 5 % count as equal."""
MAX_DENOMINATOR = 16
_TOLERANCE = 0.01


class Level(NamedTuple):
    """A level of a slide's pyramid."""

    size: tuple[int, int]  # (H, W) in level px
    downsample: float  # level-0 px per level px


def downsample(full: tuple[int, int], size: tuple[int, int]) -> float | None:
    """Return the downsample of a level whose size was rounded, or None if the size fits none.

    Whole numbers come first, and among them powers of two; 3,003 x 4,007 px and 750 x 1,001 px are 4 and not 4.0035.

    Args:
        full: (H, W) of level 0.
        size: (h, w) of the level.

    Example:
        >>> downsample((3003, 4007), (750, 1001))
        4.0
    """
    low = max(whole / (part + 1) for whole, part in zip(full, size))
    high = min(whole / (part - 1) if part > 1 else math.inf for whole, part in zip(full, size))
    mean = math.sqrt(math.prod(full) / math.prod(size))
    if not low < high:
        return None
    powers = (2.0 ** (round(math.log2(mean)) + step) for step in (0, -1, 1))
    for value in (*powers, float(round(mean)), float(math.floor(mean)), float(math.ceil(mean)), mean):
        if low < value < high and value >= 1:
            return value
    return None


def approximate(ratio: float) -> Fraction:
    """Return p/q near a ratio of resolutions: a whole number within 5 %, else the smallest q <= 16 within 1 %.

    Between 1.47 and 1.5 no such q exists, and the nearest is 1.1 % off.

    Example:
        >>> approximate(2.04), approximate(1.74)
        (Fraction(2, 1), Fraction(7, 4))
    """
    whole = max(1, round(ratio))
    if abs(ratio / whole - 1) <= EQUAL:
        return Fraction(whole)
    near = [Fraction(max(1, round(ratio * q)), q) for q in range(2, MAX_DENOMINATOR + 1)]
    fitting = (value for value in near if abs(ratio / value - 1) <= _TOLERANCE)
    return next(fitting, None) or min(near, key=lambda value: abs(ratio - value))


def nearest_level(levels: list[Level], um_per_px: float, target: float) -> int:
    """Return the number of the coarsest level that is at most 5 % coarser than ``target``; 0 if all are coarser."""
    fine = [i for i, level in enumerate(levels) if um_per_px * level.downsample <= target * (1 + EQUAL)]
    return max(fine, key=lambda i: levels[i].downsample, default=0)
