"""Connected regions of a label raster of any size, found from runs instead of pixels.

A run is a maximal stretch of one label in a row; a row of glass is one run. Two runs of consecutive rows touch if they share
a column. The regions are the connected components of the graph of touching runs of equal label (connectivity 4), so memory
and most of the time grow with the number of runs: with the length of the borders, not with the area.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..errors import IgniteError

BAND_ROWS = 512
"""Rows of a raster that are read at once."""
Pair = tuple[np.ndarray, np.ndarray]


class Raster(Protocol):
    """A (H, W) array of pixels: a NumPy array, a memory-mapped one, or a :class:`mmseg_ignite.slides.raster.DiskRaster`."""

    shape: tuple[int, int]
    dtype: np.dtype

    def __getitem__(self, index: slice | tuple[slice, slice]) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class Components:
    """The connected regions of a label raster, numbered from 0 in the order of their first pixel (row by row).

    Attributes:
        shape: (H, W) of the raster in pixels.
        row_starts: (H + 1,) int64, the number of the first run of each row, and the number of runs.
        starts: (runs,) int32, first column of each run. Runs are in the order of the pixels.
        stops: (runs,) int32, the column after the last one of each run.
        component: (runs,) int32, the region of each run.
        labels: (n,) uint8, the label of each region.
        pixels: (n,) int64, the area of each region in pixels.
        pairs: (m, 2) int32, the pairs of regions that share a border, the smaller number first, sorted.
        borders: (m,) int64, the length of the border of each pair in pixel edges. The edge of the raster is no border.
    """

    shape: tuple[int, int]
    row_starts: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    component: np.ndarray
    labels: np.ndarray
    pixels: np.ndarray
    pairs: np.ndarray
    borders: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def rows(self) -> np.ndarray:
        """The row of each run, (runs,) int32."""
        return np.repeat(np.arange(self.shape[0], dtype=np.int32), np.diff(self.row_starts))

    @cached_property
    def boxes(self) -> np.ndarray:
        """The bounding box (y0, x0, y1, x1) of each region, (n, 4) int32, without y1 and x1: ``raster[y0:y1, x0:x1]``."""
        boxes = np.zeros((len(self), 4), np.int32)
        boxes[:, :2] = self.shape
        for column, values in enumerate((self.rows, self.starts)):
            np.minimum.at(boxes[:, column], self.component, values)
        for column, values in enumerate((self.rows + 1, self.stops), 2):
            np.maximum.at(boxes[:, column], self.component, values)
        return boxes


def find_components(raster: Raster) -> Components:
    """Find the regions of a label raster whose pixels have one label and are connected by edges (connectivity 4).

    The raster is read once, in bands of rows; the result does not depend on the bands.

    Args:
        raster: (H, W) uint8 labels. All values are labels like others, 0 (Background) too.

    Raises:
        IgniteError: It is not a raster of uint8 with at least one pixel.

    Example:
        >>> found = find_components(np.array([[1, 1, 2], [2, 1, 2]], np.uint8))
        >>> found.labels, found.pixels
        (array([1, 2, 2], dtype=uint8), array([3, 2, 1]))
        >>> found.pairs.tolist(), found.borders.tolist()
        ([[0, 1], [0, 2]], [2, 2])
    """
    check_raster(raster)
    row_starts, starts, stops, labels = _runs(raster)
    same = [_of_equal_label(*pair, labels) for pair in _contacts(row_starts, starts)]
    count, component = connect(len(starts), *(np.concatenate(side) for side in zip(*same)))
    pairs, borders = _borders(row_starts, starts, stops, component, count)
    pixels = np.bincount(component, stops - starts, count).astype(np.int64)
    of_component = np.empty(count, np.uint8)
    of_component[component] = labels
    shape = tuple(map(int, raster.shape))
    return Components(shape, row_starts, starts, stops, component, of_component, pixels, pairs, borders)


def check_raster(raster: Raster, what: str = 'the label raster') -> None:
    """Raise IgniteError unless it is a (H, W) raster of uint8 with at least one pixel."""
    shape = tuple(raster.shape)
    if len(shape) != 2 or 0 in shape or raster.dtype != np.uint8:
        raise IgniteError(f'{what} is {raster.dtype} of shape {shape}; uint8 of shape (H, W) was expected.')


def connect(count: int, first: np.ndarray, second: np.ndarray) -> tuple[int, np.ndarray]:
    """Return the connected components of a graph, numbered in the order of their first node.

    Args:
        count: Number of nodes, n.
        first: (edges,) one node of each edge.
        second: (edges,) the other node.

    Returns:
        The number of components, and that of each node, (n,) int32.
    """
    graph = coo_array((np.ones(len(first), np.int8), (first, second)), shape=(count, count)).tocsr()
    return connected_components(graph, directed=False)


def merged_pairs(first: np.ndarray, second: np.ndarray, lengths: np.ndarray, count: int) -> Pair:
    """Merge equal pairs of numbers below ``count``, in either order, and add their lengths.

    Returns:
        (m, 2) int32 pairs, the smaller number first, sorted; and their (m,) int64 lengths.
    """
    keys = np.minimum(first, second).astype(np.int64) * count + np.maximum(first, second)
    keys, places = np.unique(keys, return_inverse=True)
    lengths = np.bincount(places, lengths, len(keys)).astype(np.int64)
    return np.stack(np.divmod(keys, count), axis=1).astype(np.int32), lengths


def _runs(raster: Raster) -> tuple[np.ndarray, ...]:
    """Return ``row_starts``, ``starts`` and ``stops`` of :class:`Components`, and the label of each run."""
    height, width = raster.shape
    starts, labels, counts = [], [], [np.zeros(1, np.int64)]
    for top in range(0, height, BAND_ROWS):
        band = np.ascontiguousarray(raster[top : top + BAND_ROWS])
        first = np.ones(band.shape, bool)
        np.not_equal(band[:, 1:], band[:, :-1], out=first[:, 1:])
        places = np.flatnonzero(first)
        rows, columns = np.divmod(places, width)
        starts.append(columns.astype(np.int32))
        labels.append(band.reshape(-1)[places])
        counts.append(np.bincount(rows, minlength=len(band)))
    row_starts, starts = np.cumsum(np.concatenate(counts)), np.concatenate(starts)
    stops = np.empty_like(starts)
    stops[:-1] = starts[1:]
    stops[row_starts[1:] - 1] = width
    return row_starts, starts, stops, np.concatenate(labels)


def _contacts(row_starts: np.ndarray, starts: np.ndarray) -> Iterator[Pair]:
    """Yield the pairs (upper run, lower run) of consecutive rows that share a column, each once, for bands of rows."""
    height, width = len(row_starts) - 1, int(starts.max()) + 1
    for top in range(0, height, BAND_ROWS):
        bottom = min(top + BAND_ROWS, height - 1)  # rows top..bottom
        counts = np.diff(row_starts[top : bottom + 2])
        places = starts[row_starts[top] : row_starts[bottom + 1]] + np.repeat(np.arange(len(counts)) * width, counts)
        # The places of the lower runs are moved up by a row, so that runs which begin at one column are equal.
        upper, lower = places[: len(places) - counts[-1]], places[counts[0] :] - width
        below = np.searchsorted(lower, upper, 'right') - 1  # the lower run under the start of each upper one
        above = np.searchsorted(upper, lower, 'right') - 1
        new = np.flatnonzero(upper[above] != lower) if len(upper) else above  # the others are already in ``below``
        yield (
            np.concatenate((np.arange(len(upper)), above[new])) + row_starts[top],
            np.concatenate((below, new)) + row_starts[top] + counts[0],
        )


def _of_equal_label(upper: np.ndarray, lower: np.ndarray, labels: np.ndarray) -> Pair:
    """Return the contacts of runs of one label, as int32."""
    equal = labels[upper] == labels[lower]
    return upper[equal].astype(np.int32), lower[equal].astype(np.int32)


def _borders(row_starts: np.ndarray, starts: np.ndarray, stops: np.ndarray, component: np.ndarray, count: int) -> Pair:
    """Return ``pairs`` and ``borders`` of :class:`Components`; they are merged band by band, then all together."""
    parts = []
    for band, (upper, lower) in enumerate(_contacts(row_starts, starts)):
        differ = component[upper] != component[lower]
        upper, lower = upper[differ], lower[differ]
        lengths = np.minimum(stops[upper], stops[lower]) - np.maximum(starts[upper], starts[lower])
        first, end = row_starts[[band * BAND_ROWS, min((band + 1) * BAND_ROWS, len(row_starts) - 1)]]
        left = np.arange(first, end - 1)
        left = left[starts[left + 1] > 0]  # the next run is in the same row
        parts.append(
            merged_pairs(
                np.concatenate((component[upper], component[left])),
                np.concatenate((component[lower], component[left + 1])),
                np.concatenate((lengths, np.ones(len(left), lengths.dtype))),
                count,
            )
        )
    pairs, lengths = (np.concatenate(side) for side in zip(*parts))
    return merged_pairs(pairs[:, 0], pairs[:, 1], lengths, count)
