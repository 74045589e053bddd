"""Outlines of the connected regions of a label raster: polygons on the pixel edges that share their vertices.

The raster is read twice in bands of rows. The first time finds the pieces of tissue: parts with at least one empty block of
16 x 16 px between them. The second time finds the corners: the points between pixels where a border between labels turns or
where borders meet. Memory grows with the number of corners, not with the size of the raster.

A border runs straight from corner to corner, and neighbours have the corners of their common border in common. Therefore
the polygons are a valid coverage (no overlaps, no gaps, equal vertices), which outlines of GDAL's polygonizer are not: they
lack a vertex where a third region meets the middle of a straight edge.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import cv2
import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, connected_components

from ..errors import IgniteError
from ..extras import import_extra
from ..labels import histogram

BLOCK = 16
"""Side in px of the blocks that separate pieces of tissue."""
OUTSIDE = 255
"""Label of the pixels around a piece."""
_ROWS = 512  # a multiple of BLOCK
_MIN_CORNERS = 200_000  # smaller pieces are traced together
_EAST, _SOUTH, _WEST, _NORTH = range(4)
_RIGHT_PIXEL = np.array([3, 2, 0, 1])  # pixel to the right of a border that leaves a corner to E, S, W, N
_RIGHT_CENTRE = np.array([(0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5), (0.5, -0.5)])


class Raster(Protocol):
    """(H, W) uint8 labels: an array, a memory-mapped array or a :class:`~mmseg_ignite.slides.raster.DiskRaster`."""

    shape: tuple[int, int]

    def __getitem__(self, rows: slice) -> np.ndarray: ...


class Survey(NamedTuple):
    """What the first reading of a raster finds."""

    counts: np.ndarray  # (256,) int64, pixels of each label
    pieces: np.ndarray  # (ceil(H / 16), ceil(W / 16)) int32, number of the piece that a block belongs to, 0 outside


class Corners(NamedTuple):
    """Points where borders turn or meet, by rows and then by columns."""

    y: np.ndarray  # (n,) int32: between the pixel rows y - 1 and y
    x: np.ndarray  # (n,) int32
    around: np.ndarray  # (n, 4) uint8: labels of the pixels to NW, NE, SW, SE


@dataclass
class Outlines:
    """The rings around the connected regions of one or more pieces, as corners in the order of a walk."""

    corners: Corners
    steps: np.ndarray  # (m,) int64, number of the corner at each place of the walk, ring by ring
    sizes: np.ndarray  # (r,) int64, corners of each ring
    region: np.ndarray  # (r,) int64, region of each ring; a region's outer ring comes before its holes
    labels: np.ndarray  # (n,) uint8 label of each region
    pixels: np.ndarray  # (n,) int64 pixels of each region

    def points(self) -> np.ndarray:
        """Return the (x, y) of each place of the walk, (m, 2) float64 in raster px."""
        return np.stack([self.corners.x[self.steps], self.corners.y[self.steps]], axis=1).astype(np.float64)

    def areas(self) -> np.ndarray:
        """Return the area of each region in px2, exact."""
        twice = _cross_sums(self.points(), self.sizes)
        return np.bincount(self.region, twice, len(self.labels)) / 2

    def without(self, corner: np.ndarray) -> 'Outlines':
        """Return the outlines without the corners that a (n,) mask marks; each ring must keep at least 3."""
        kept = ~corner[self.steps]
        sizes = np.add.reduceat(kept, _firsts(self.sizes), dtype=np.int64)
        return replace(self, steps=self.steps[kept], sizes=sizes)

    def polygons(self, points: np.ndarray | None = None) -> np.ndarray:
        """Return a shapely Polygon per region, (n,) object, with the given points in place of :meth:`points`."""
        points = self.points() if points is None else points
        parts = np.append(np.flatnonzero(np.diff(self.region, prepend=-1)), len(self.region))
        return _polygons(points, self.sizes, parts)


def survey(raster: Raster, classes: int, whole: bool = False) -> Survey:
    """Count the labels of a raster and find its pieces of tissue, reading bands of rows.

    Args:
        raster: (H, W) uint8 labels, 0 is Background.
        classes: Number of classes.
        whole: Take the whole raster, with its Background, as one piece.

    Raises:
        IgniteError: The raster is not (H, W) uint8, or holds a label that is not a class.
    """
    if len(raster.shape) != 2 or raster.dtype != np.uint8:
        raise IgniteError(
            f'the labels are {raster.dtype} {tuple(raster.shape)}; uint8 (H, W) was expected: pass train ids.'
        )
    (height, width), counts = raster.shape, np.zeros(256, np.int64)
    tissue = np.zeros((-(-height // BLOCK), -(-width // BLOCK)), np.uint8)
    for top in range(0, height if width else 0, _ROWS):
        band = np.asarray(raster[top : top + _ROWS])
        counts += histogram(band)
        rows = (
            np.pad(band, ((0, -len(band) % BLOCK), (0, -width % BLOCK))) if width % BLOCK or len(band) % BLOCK else band
        )
        rows = rows.reshape(-1, BLOCK, rows.shape[1]).max(axis=1)
        tissue[top // BLOCK :][: len(rows)] = rows.reshape(len(rows), -1, BLOCK).max(axis=2, initial=0) > 0
    if counts[classes:].any():
        wrong = classes + int(np.flatnonzero(counts[classes:])[0])
        raise IgniteError(
            f'the labels hold the value {wrong}; train ids 0 to {classes - 1} were expected: decode them.'
        )
    if whole or not tissue.size:
        return Survey(counts, np.ones(tissue.shape, np.int32))
    # A border of at least one block of Background around the tissue: outlines can be simplified without leaving the piece.
    _, pieces = cv2.connectedComponents(cv2.dilate(tissue, np.ones((3, 3), np.uint8)), connectivity=8)
    return Survey(counts, pieces)


def outlines(raster: Raster, pieces: np.ndarray) -> Iterator[Outlines]:
    """Trace the 4-connected regions of a raster, Background included, one or more pieces at a time.

    Pixels that belong to no piece, which must be 0, have no region. The order of the regions depends only on the labels.

    Args:
        raster: (H, W) uint8 labels below 255.
        pieces: As in :class:`Survey`; pieces must not touch, not even at a corner.
    """
    corners = _find_corners(raster, pieces)
    if not len(corners.y):
        return
    last = np.array(pieces.shape) - 1
    piece = np.zeros(len(corners.y), np.int32)
    for dy, dx in ((-1, -1), (-1, 0), (0, -1), (0, 0)):
        block_y, block_x = ((v + d).clip(0) // BLOCK for v, d in ((corners.y, dy), (corners.x, dx)))
        np.maximum(piece, pieces[block_y.clip(max=last[0]), block_x.clip(max=last[1])], out=piece)
    group = (np.cumsum(np.bincount(piece)) // _MIN_CORNERS)[piece]
    order = np.argsort(group, kind='stable')
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    del piece, group
    for part in np.split(order, starts[1:]):
        yield _trace(Corners(*(values[part] for values in corners)))


def _find_corners(raster: Raster, pieces: np.ndarray) -> Corners:
    """Find the corners of all pieces, reading bands of rows."""
    (height, width), found = raster.shape, []
    above = np.full(width + 2, OUTSIDE, np.uint8)  # the last row of the band above, with a column outside at both ends
    for top in range(0, height + 1, _ROWS):
        band = np.full((_ROWS + 1, width + 2), OUTSIDE, np.uint8)
        band[0] = above
        inside = pieces[top // BLOCK : (top + _ROWS) // BLOCK] > 0
        if inside.any():
            pixels = np.asarray(raster[top : top + _ROWS])
            # Pixels of no piece are 0, so "or" makes them OUTSIDE.
            outside = np.repeat(np.where(inside, 0, OUTSIDE).astype(np.uint8), BLOCK, axis=1)[:, :width]
            for first, row in zip(range(0, len(pixels), BLOCK), outside):
                part = pixels[first : first + BLOCK]
                np.bitwise_or(part, row, out=band[first + 1 : first + 1 + len(part), 1:-1])
        if inside.any() or (above != OUTSIDE).any():
            found.append(_band_corners(band, top))
        above = band[-1].copy()
    if not found:
        return Corners(np.empty(0, np.int32), np.empty(0, np.int32), np.empty((0, 4), np.uint8))
    return Corners(*(np.concatenate(values) for values in zip(*found)))


def _band_corners(band: np.ndarray, top: int) -> Corners:
    """Find the corners between the rows of a band; ``top`` is the raster row of its second row."""
    vertical, horizontal = band[:, :-1] != band[:, 1:], band[:-1] != band[1:]
    corner = (vertical[:-1] | vertical[1:]) & (horizontal[:, :-1] | horizontal[:, 1:])
    y, x = np.divmod(np.flatnonzero(corner), corner.shape[1])
    around = np.stack([band[y, x], band[y, x + 1], band[y + 1, x], band[y + 1, x + 1]], axis=1)
    return Corners((y + top).astype(np.int32), x.astype(np.int32), around)


def _trace(corners: Corners) -> Outlines:
    """Trace the regions around the corners of whole pieces.

    A border is walked in both directions, with a region to its right: outer rings run clockwise as seen on the screen, holes
    run counter-clockwise. A step is a border from one corner to the next one.
    """
    start, heading, following = _steps(corners)
    order, sizes = _rings(following)
    start, heading = start[order], heading[order]
    first = _firsts(sizes)
    points = np.stack([corners.x[start], corners.y[start]], axis=1).astype(np.float64)
    twice = _cross_sums(points, sizes)
    owner = _owners(points, sizes, twice, points[first] + _RIGHT_CENTRE[heading[first]])
    outer = np.flatnonzero(twice > 0)
    region = np.searchsorted(outer, owner)
    labels = corners.around[start[first], _RIGHT_PIXEL[heading[first]]][outer]
    pixels = (np.bincount(region, twice, len(outer)) / 2).astype(np.int64)
    ranked = np.lexsort((twice < 0, region))  # an outer ring, then its holes
    places = np.repeat(first[ranked] - _firsts(sizes[ranked]), sizes[ranked]) + np.arange(len(start))
    return Outlines(corners, start[places], sizes[ranked], region[ranked], labels, pixels)


def _steps(corners: Corners) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the corner where each step starts, its heading (E, S, W, N) and the number of the step that follows it."""
    (nw, ne, sw, se), count = corners.around.T, len(corners.y)
    leaves = np.stack([ne != se, sw != se, nw != sw, nw != ne], axis=1)
    by_column = np.argsort(corners.x, kind='stable')
    target = np.zeros((count, 4), np.int32)
    target[:, _EAST] = np.arange(1, count + 1)
    target[:, _WEST] = np.arange(-1, count - 1)
    target[by_column[:-1], _SOUTH] = by_column[1:]
    target[by_column[1:], _NORTH] = by_column[:-1]
    steps = np.flatnonzero(leaves & (corners.around[:, _RIGHT_PIXEL] != OUTSIDE))
    start, heading = np.divmod(steps, 4)
    target = target.reshape(-1)[steps]
    # Regions are 4-connected: turn right if possible, else go straight on, else turn left.
    right, left = (heading + 1) % 4, (heading + 3) % 4
    turned = np.where(leaves[target, right], right, np.where(leaves[target, heading], heading, left))
    number = np.full(4 * count, -1, np.int32)
    number[steps] = np.arange(len(steps))
    following = number[4 * target + turned]
    _part_touching_rings(corners, leaves.all(axis=1), number, following)
    return start, heading, following


def _part_touching_rings(corners: Corners, crossing: np.ndarray, number: np.ndarray, following: np.ndarray) -> None:
    """Change ``following`` where a ring touches itself: turn left there, so that it becomes a ring and a hole."""
    (nw, ne, sw, se), pairs = corners.around.T, []
    for same, headings in (
        ((ne == sw) & (ne != OUTSIDE), (_NORTH, _SOUTH)),
        ((nw == se) & (nw != OUTSIDE), (_EAST, _WEST)),
    ):
        places = 4 * np.flatnonzero(crossing & same)
        pairs.append(np.stack([number[places + heading] for heading in headings]))
    one, other = np.concatenate(pairs, axis=1)
    if not len(one):
        return
    ring, before = _cycles(following)[1], np.empty_like(following)
    before[following] = np.arange(len(following))
    same = ring[one] == ring[other]
    one, other = one[same], other[same]
    following[before[one]], following[before[other]] = other, one


def _graph(following: np.ndarray, ends: np.ndarray | slice = slice(0, 0)) -> csr_matrix:
    """Return the graph of the steps, without those that follow ``ends``."""
    count = np.ones(len(following), np.int32)
    count[ends] = 0
    rows = np.append(np.int32(0), np.cumsum(count, dtype=np.int32))
    kept = following[count > 0]
    return csr_matrix((np.ones(len(kept), np.int8), kept, rows), shape=(len(following),) * 2)


def _cycles(following: np.ndarray) -> tuple[int, np.ndarray]:
    """Return the number of rings, and the ring of each step."""
    return connected_components(_graph(following), directed=True, connection='weak')


def _rings(following: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps ring by ring, from the first step of each on, and the number of steps of each ring."""
    count, ring = _cycles(following)
    first = np.empty(count, np.int64)
    first[ring[::-1]] = np.arange(len(ring))[::-1]  # the last assignment counts
    rank = np.argsort(first)
    first, sizes = first[rank], np.bincount(ring)[rank]
    # Cut each ring before its first step and tie it to the next ring: one path, which a search follows in linear time.
    before = np.empty_like(following)
    before[following] = np.arange(len(following))
    path = following.copy()
    path[before[first[:-1]]] = first[1:]
    order = breadth_first_order(_graph(path, before[first[-1:]]), first[0], return_predecessors=False)
    return order, sizes


def _firsts(sizes: np.ndarray) -> np.ndarray:
    return np.cumsum(sizes) - sizes


def _cross_sums(points: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return twice the signed area of rings, above 0 for outer rings; exact for integers."""
    after, first = np.arange(1, len(points) + 1), _firsts(sizes)
    after[first + sizes - 1] = first
    x, y = points.T
    return np.add.reduceat(x * y[after] - x[after] * y, first)


def _polygons(points: np.ndarray, sizes: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Build polygons of rings; ``parts`` holds the first ring of each polygon, and the number of rings."""
    shapely, first = import_extra('shapely', 'the outlines of regions'), _firsts(sizes)
    closed = np.insert(points, first + sizes, points[first], axis=0)
    ends = np.append(0, np.cumsum(sizes + 1))
    return shapely.from_ragged_array(shapely.GeometryType.POLYGON, closed, (ends, parts))


def _owners(points: np.ndarray, sizes: np.ndarray, twice: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Return the outer ring that each ring belongs to: for a hole the smallest that contains a point of its region."""
    shapely = import_extra('shapely', 'the outlines of regions')
    owner, holes, outer = np.arange(len(twice)), np.flatnonzero(twice < 0), np.flatnonzero(twice > 0)
    if not len(holes):
        return owner
    rings = _polygons(points, sizes, np.arange(len(sizes) + 1))[outer]
    shapely.prepare(rings)
    around, hole = shapely.STRtree(shapely.points(inner[holes])).query(rings, predicate='contains')
    order = np.lexsort((twice[outer[around]], hole))
    hole, at = np.unique(hole[order], return_index=True)
    owner[holes[hole]] = outer[around[order][at]]
    return owner
