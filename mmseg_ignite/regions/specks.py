"""Merging of specks: regions of a label raster that are too small to be reported take the label of a neighbour."""

import math
from numbers import Real

import numpy as np

from ..errors import IgniteError
from .components import BAND_ROWS, Components, Raster, check_raster, connect, find_components, merged_pairs


def minimum_pixels(min_area_um2: float, um_per_px: float) -> int:
    """Convert the smallest area of a region to pixels, rounded up.

    Args:
        min_area_um2: Smallest area in um2, 0 or more; 0 keeps all regions.
        um_per_px: Side of a pixel in um, > 0.

    Raises:
        IgniteError: A value is out of range.

    Example:
        >>> minimum_pixels(100, 0.5)
        400
    """
    if not (isinstance(min_area_um2, Real) and 0 <= min_area_um2 < math.inf):
        raise IgniteError(
            f'the smallest area of a region is {min_area_um2!r}; um2 of 0 or more were expected: use 0 to keep all regions.'
        )
    check_um_per_px(um_per_px)
    return math.ceil(round(min_area_um2 / um_per_px**2, 6))  # 400.0000000001 is 400


def check_um_per_px(um_per_px: float) -> None:
    """Raise IgniteError unless the side of a pixel is a finite number above 0."""
    if not (isinstance(um_per_px, Real) and 0 < um_per_px < math.inf):
        raise IgniteError(f'um/px is {um_per_px!r}; a number above 0 was expected: give the resolution of the raster.')


def merge_specks(raster: Raster, min_pixels: int, out: Raster | None = None) -> int:
    """Merge the regions of fewer than ``min_pixels`` pixels into their largest neighbours.

    A region is a set of pixels of one label connected by edges (connectivity 4). A speck is a region of fewer than
    ``min_pixels`` pixels; specks of Background, such as holes in tissue, are specks too. The largest of some regions has the
    most pixels and, among equals, the first pixel (row by row). The specks are merged in rounds:

    1. Every speck finds the largest of its neighbours. If that is larger than the speck itself, the speck takes the label
       that this neighbour has after the round, so that a chain of specks takes the label of its end. If not, the speck keeps
       its label in this round: its neighbours are smaller specks, and those that have no larger neighbour join it.
    2. The regions are found anew, since regions that now have one label and touch are one. Rounds are repeated until no
       speck is left, or the raster is one region.

    Each round with a speck lowers the number of regions, so the rounds end. Regions of at least ``min_pixels`` pixels never
    lose a pixel, and a second call changes nothing. The raster is read once; the rounds work on the graph of the regions.

    Args:
        raster: (H, W) uint8 labels. Also written, unless ``out`` is given: only the rows that change.
        min_pixels: Smallest number of pixels of a region that is kept; with 0 or 1 nothing is merged.
        out: (H, W) uint8 raster that receives all labels instead.

    Returns:
        The number of regions of the raster that have another label now.

    Raises:
        IgniteError: ``min_pixels`` is negative or not an integer, or a raster is not uint8 of shape (H, W).

    Example:
        >>> raster = np.array([[3, 3, 3], [3, 1, 3], [3, 3, 2]], np.uint8)
        >>> merge_specks(raster, min_pixels=2)
        2
        >>> raster
        array([[3, 3, 3],
               [3, 3, 3],
               [3, 3, 3]], dtype=uint8)
    """
    if isinstance(min_pixels, bool) or not isinstance(min_pixels, int | np.integer) or min_pixels < 0:
        raise IgniteError(
            f'min_pixels is {min_pixels!r}; an integer of 0 or more was expected: use 0 to keep all regions.'
        )
    check_raster(raster)
    out = raster if out is None else out
    if tuple(out.shape) != tuple(raster.shape) or out.dtype != np.uint8:
        raise IgniteError(f'out is {out.dtype} {tuple(out.shape)}; uint8 {tuple(raster.shape)} was expected.')
    if min_pixels <= 1 and out is raster:
        return 0
    found = find_components(raster)
    labels = _merged_labels(found, min_pixels)
    _write(raster, out, found, labels)
    return int(np.count_nonzero(labels != found.labels))


def _merged_labels(found: Components, min_pixels: int) -> np.ndarray:
    """Return the label of each region after merging, (n,) uint8."""
    labels, pixels, pairs = found.labels, found.pixels, found.pairs
    region = np.arange(len(found))  # what each region of the raster has become part of
    while len(labels) > 1 and (small := pixels < min_pixels).any():
        labels = labels[_targets(pixels, pairs, small)]
        equal = labels[pairs[:, 0]] == labels[pairs[:, 1]]
        count, joined = connect(len(labels), *pairs[equal].T)
        region, pixels = joined[region], np.bincount(joined, pixels, count).astype(np.int64)
        joined_labels = np.empty(count, np.uint8)
        joined_labels[joined] = labels
        labels = joined_labels
        pairs, _ = merged_pairs(*joined[pairs[~equal]].T, np.ones(len(pairs) - np.count_nonzero(equal)), count)
    return labels[region]


def _targets(pixels: np.ndarray, pairs: np.ndarray, small: np.ndarray) -> np.ndarray:
    """Return the region whose label each region takes in a round, (n,) integers: itself if it keeps its label."""
    order = np.lexsort((-np.arange(len(pixels)), pixels))  # from the smallest to the largest region
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    largest = rank.copy()
    for first, second in (pairs.T, pairs[:, ::-1].T):
        chosen = small[first]
        np.maximum.at(largest, first[chosen], rank[second[chosen]])
    target = order[largest]  # its own place if no neighbour is larger
    while not np.array_equal(further := target[target], target):
        target = further
    return target


def _write(raster: Raster, out: Raster, found: Components, labels: np.ndarray) -> None:
    """Write the new labels: of the rows that change if ``out`` is the raster, else all."""
    runs = np.flatnonzero((labels != found.labels)[found.component])
    rows, height, width = found.rows[runs], *found.shape
    for top in range(0, height, BAND_ROWS):
        first, end = np.searchsorted(rows, (top, min(top + BAND_ROWS, height)))
        bottom = min(top + BAND_ROWS, height)
        if out is raster:
            if first == end:
                continue
            top, bottom = rows[first], rows[end - 1] + 1
        band = np.array(raster[top:bottom])
        chosen = runs[first:end]
        lengths = (found.stops[chosen] - found.starts[chosen]).astype(np.int64)
        # The places of all pixels of the runs: each run's first place, counted on.
        places = (rows[first:end] - np.int64(top)) * width + found.starts[chosen] - (np.cumsum(lengths) - lengths)
        places = np.repeat(places, lengths) + np.arange(lengths.sum())
        band.reshape(-1)[places] = np.repeat(labels[found.component[chosen]], lengths)
        out[top:bottom] = band
