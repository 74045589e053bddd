"""Find masks that were scaled with interpolation or compressed lossily.

Their values pass every range check: between the classes 2 and 9 interpolation writes 3..8, which are valid ids. They are
found by the positions of these values.
"""

import cv2
import numpy as np

from ..labels import histogram

MAX_BETWEEN = 0.05
"""Largest :func:`share_between` of an annotated mask; see docs/data.md for the measurements."""
MIN_STEPS = 200
"""Boundary positions below which no share is computed."""
MAX_FRINGE = 0.01
"""Largest share of :func:`fringe_classes` in an annotated mask, relative to its boundary pixels."""
MIN_FRINGE = 50
"""Pixels; a few stray pixels are another finding."""
_INSIDE = 0.1


def share_between(mask: np.ndarray) -> float:
    """Return the share of class boundaries whose pixels have a value between the two classes.

    A boundary position is a pixel whose left and right (or upper and lower) neighbours differ by more than 1. In an
    annotated mask its value is one of the two, except where three classes meet. Interpolation and lossy compression
    write values strictly between them. Both mask encodings work, as they keep or reverse the order of the classes.

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
    """Return the values that occur only as fringes, which JPEG leaves beside boundaries of neighbouring ids.

    Args:
        mask: (H, W) uint8 as stored.

    Returns:
        The values other than 0 with less than a tenth of their pixels inside a uniform 3 x 3 square, and the number of all
        their pixels; ([], 0) if these are fewer than MIN_FRINGE or than MAX_FRINGE of the boundary pixels.
    """
    square = np.ones((3, 3), np.uint8)
    inside = cv2.erode(mask, square) == cv2.dilate(mask, square)
    counts, inner = histogram(mask), histogram(mask * inside)
    fringes = np.flatnonzero((counts > 0) & (inner < _INSIDE * counts))
    fringes = fringes[fringes > 0]
    pixels = int(counts[fringes].sum())
    boundary = np.count_nonzero(mask[:, 1:] != mask[:, :-1]) + np.count_nonzero(mask[1:] != mask[:-1])
    if pixels < max(MIN_FRINGE, MAX_FRINGE * boundary):
        return [], 0
    return fringes.tolist(), pixels
