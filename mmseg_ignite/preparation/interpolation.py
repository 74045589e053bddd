"""Masks whose values were computed instead of drawn: scaled with interpolation, or compressed with loss.

Ids 1..16 are all valid, so such a mask passes every check of its values: between the classes 2 and 9 interpolation writes
3..8. It is found by where these values stand.
"""

import cv2
import numpy as np

from ..labels import histogram

MAX_BETWEEN = 0.05
"""Largest share of :func:`share_between` in a drawn mask; docs/data.md has the measurements."""
MIN_STEPS = 200
"""Fewer boundary positions than these say nothing."""
MAX_FRINGE = 0.01
"""Largest share of :func:`fringe_classes` in a drawn mask, relative to its boundaries."""
MIN_FRINGE = 50
"""px; a few stray pixels are reported otherwise."""
_INSIDE = 0.1


def share_between(mask: np.ndarray) -> float:
    """Share of the class boundaries whose pixels hold a value between the two classes.

    A boundary position is a pixel whose left and right (or upper and lower) neighbours differ by more than 1. In a drawn
    mask its own value is one of the two, except where three classes meet. Interpolation and lossy compression put values
    strictly between them. Works on either encoding of masks, since both keep the order of the classes or reverse it.

    Args:
        mask: (H, W) uint8 as stored.

    Returns:
        0..1; 0 for fewer than MIN_STEPS boundary positions.
    """
    between = steps = 0
    for first, pixel, second in (
        (mask[:, :-2], mask[:, 1:-1], mask[:, 2:]),
        (mask[:-2], mask[1:-1], mask[2:]),
    ):
        far = cv2.absdiff(first, second) > 1 if first.size else np.zeros(0, bool)
        a, b, c = first[far], pixel[far], second[far]
        steps += len(b)
        between += int(((a < b) & (b < c) | (a > b) & (b > c)).sum())
    return between / steps if steps >= MIN_STEPS else 0.0


def fringe_classes(mask: np.ndarray) -> tuple[list[int], int]:
    """Values that occur as fringes only, as JPEG leaves them beside boundaries of neighbouring ids.

    Args:
        mask: (H, W) uint8 as stored.

    Returns:
        The values other than 0 of which less than a tenth of the pixels has all eight neighbours alike, and the number of
        their pixels; ([], 0) where these are fewer than MIN_FRINGE or than MAX_FRINGE of the boundary pixels.
    """
    square = np.ones((3, 3), np.uint8)
    inside = cv2.erode(mask, square) == cv2.dilate(mask, square)
    counts, inner = histogram(mask), histogram(mask * inside)  # what becomes 0 is not looked at
    fringes = np.flatnonzero((counts > 0) & (inner < _INSIDE * counts))
    fringes = fringes[fringes > 0]
    pixels = int(counts[fringes].sum())
    boundary = np.count_nonzero(mask[:, 1:] != mask[:, :-1]) + np.count_nonzero(mask[1:] != mask[:-1])
    if pixels < max(MIN_FRINGE, MAX_FRINGE * boundary):
        return [], 0
    return fringes.tolist(), pixels
