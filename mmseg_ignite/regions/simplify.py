"""Smooth outlines of regions without tearing them apart: Visvalingam-Whyatt on the corners that neighbours share.

Visvalingam and Whyatt (1993) remove, again and again, the corner whose triangle with its two neighbours is the smallest. Here
all corners whose triangle is smaller than those of their neighbours go at once, in rounds of NumPy operations. A corner
belongs to the outlines on both sides of a border, so both lose it and the partition keeps no gap and no overlap. Corners
where borders meet stay. A corner also stays if another corner lies in its triangle, because outlines would cross, or if the
ring would collapse. ``shapely.coverage_simplify`` follows the same rules; it needs several times the time and memory, and
has one tolerance for all regions.
"""

from collections.abc import Callable

import numpy as np

from ..extras import import_extra
from .polygons import OUTSIDE, Outlines

MAX_CLASS_CHANGE = 0.01
"""Largest relative change of the area of a class in a piece."""
MAX_REGION_CHANGE = 0.1
"""Largest relative change of the area of a region."""
_TRIANGLE_SHARE = 0.01
"""Largest share of a region that one triangle may take."""
_MIN_PIXELS = 100  # smaller regions keep all corners
_STAGES = (1 / 16, 1 / 4, 1)  # of the area of triangles
_MAX_ROWS = 64  # triangles that are higher stay


def simplify(
    outlines: Outlines,
    tolerance: float,
    place: Callable[[np.ndarray], np.ndarray],
    unfit: Callable[[np.ndarray], np.ndarray],
    background: bool = False,
) -> np.ndarray:
    """Remove corners of outlines as far as areas stay true and all polygons stay fit for use.

    Corners are removed in stages of 1/4, 1/2 and the whole of the tolerance. A region goes back by a stage, at last to the
    edges of the pixels, where the areas change too much: that of a class by more than 1 % (the regions that change most go
    back), or that of a region by more than 10 %. So does a region whose polygon is unfit.

    Args:
        outlines: The outlines of whole pieces.
        tolerance: Square root of the area of the largest triangle that goes, in px; at most 0.1 times the square root of
            the area of the region.
        place: Function that turns (m, 2) points in raster px into output coordinates.
        unfit: Function that marks polygons that cannot be used, (k,) bool.
        background: Also hold the area of Background, label 0.

    Returns:
        A Polygon in output coordinates per region, (n,) object.
    """
    limits = np.where(outlines.pixels < _MIN_PIXELS, 0, np.minimum(tolerance**2, _TRIANGLE_SHARE * outlines.pixels))
    stages = [np.zeros(len(outlines.corners.y), bool), *(_removed(outlines, limits) if limits.any() else ())]
    stage = np.full(len(outlines.labels), len(stages) - 1)
    while True:
        removed = stages[-1].copy()
        for number, mask in enumerate(stages[:-1]):
            rough = np.repeat(stage[outlines.region] <= number, outlines.sizes)
            removed[outlines.steps[rough]] &= mask[outlines.steps[rough]]
        result = outlines.without(removed)
        wrong = _astray(outlines, result.areas() - outlines.pixels, background) & (stage > 0)
        wrong |= _touched(result, stages[-1] & ~removed) & (stage > 0)
        if not wrong.any():
            polygons = result.polygons(place(result.points()))
            wrong = unfit(polygons) & (stage > 0)
        if not wrong.any():
            return polygons
        # Corners that come back may lie beyond the simplified border of a neighbour, whose polygon is then not valid: unfit.
        stage[wrong] -= 1


def _touched(result: Outlines, returned: np.ndarray) -> np.ndarray:
    """Return which regions have a line through one of the corners that came back, (n,) bool."""
    touched = np.zeros(len(result.labels), bool)
    corners = np.flatnonzero(returned)
    if not len(corners):
        return touched
    shapely, stop = import_extra('shapely', 'the outlines of regions'), np.cumsum(result.sizes)
    after = np.arange(1, len(result.steps) + 1)
    after[stop - 1] = stop - result.sizes
    ends = np.stack([result.steps, result.steps[after]], axis=1)
    x, y = result.corners.x, result.corners.y
    through = np.flatnonzero(np.gcd(np.ptp(x[ends], axis=1), np.ptp(y[ends], axis=1)) > 1)  # other points of the raster
    lines = shapely.linestrings(np.stack([x[ends[through]], y[ends[through]]], axis=2))
    line, corner = shapely.STRtree(shapely.points(x[corners], y[corners])).query(lines, predicate='intersects')
    inside = (ends[through[line]] != corners[corner][:, None]).all(axis=1)
    touched[np.repeat(result.region, result.sizes)[through[line[inside]]]] = True
    return touched


def _astray(outlines: Outlines, change: np.ndarray, background: bool) -> np.ndarray:
    """Return which regions have changed too much, (n,) bool; ``change`` is that of their areas in px2."""
    labels = outlines.labels
    astray = np.abs(change) > MAX_REGION_CHANGE * outlines.pixels
    totals, changes = (np.bincount(labels, values) for values in (outlines.pixels, change))
    for label in np.flatnonzero(np.abs(changes) > MAX_CLASS_CHANGE * totals):
        if label or background:
            members = np.flatnonzero(labels == label)
            loss = np.sign(changes[label]) * change[members]
            members = members[np.argsort(-loss, kind='stable')]
            left = np.abs(changes[label]) - np.cumsum(np.sort(loss)[::-1])
            astray[members[: 1 + np.argmax(left <= MAX_CLASS_CHANGE * totals[label])]] = True
    return astray


class _Walk:
    """The walks around all regions as a linked list of places; each removable corner has two places, one per side."""

    def __init__(self, outlines: Outlines) -> None:
        corners, self.corner = outlines.corners, outlines.steps
        self.x, self.y = corners.x.astype(np.int64), corners.y.astype(np.int64)
        count, first = len(self.corner), np.cumsum(outlines.sizes) - outlines.sizes
        last = first + outlines.sizes - 1
        self.after, self.before = np.arange(1, count + 1), np.arange(-1, count - 1)
        self.after[last], self.before[first] = first, last
        order = np.argsort(self.corner, kind='stable')
        uses = np.bincount(self.corner, minlength=len(self.x))
        removable = (uses == 2) & (corners.around != OUTSIDE).all(axis=1)
        self.place = order[(np.cumsum(uses) - uses)[removable]]
        self.other = np.zeros(count, np.int64)
        self.other[self.place] = order[(np.cumsum(uses) - 1)[removable]]
        self.removable = removable
        self.keys = self.y * (self.x.max() + 2) + self.x  # sorted, since corners are
        self.removed = np.zeros(len(self.x), bool)

    def triangles(self, place: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the corners before, at and after places."""
        return self.corner[self.before[place]], self.corner[place], self.corner[self.after[place]]

    def twice_areas(self, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        """Return twice the areas of triangles, int64 px2."""
        x, y = self.x, self.y
        return np.abs((x[b] - x[a]) * (y[c] - y[a]) - (x[c] - x[a]) * (y[b] - y[a]))

    def keeps_rings(self, place: np.ndarray) -> np.ndarray:
        """Return whether the line from the corner before to the one after is new, also if other corners go as well."""
        before, after = self.before[place], self.after[place]
        a, c = self.corner[before], self.corner[after]
        back, ahead = self.before[before], self.after[after]
        new_behind = (self.corner[back] != c) & (self.corner[self.before[back]] != c)
        new_ahead = (self.corner[ahead] != a) & (self.corner[self.after[ahead]] != a)
        return (self.removable[a] & new_behind) | (self.removable[c] & new_ahead)

    def empty(self, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        """Return whether triangles hold no corner but their own three."""
        x, y = np.stack([self.x[a], self.x[b], self.x[c]]), np.stack([self.y[a], self.y[b], self.y[c]])
        on_sides = np.gcd(x - np.roll(x, 1, axis=0), y - np.roll(y, 1, axis=0))  # lattice points on c-a, a-b, b-c
        twice = np.abs((x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0]))
        # By Pick's theorem no lattice point is inside. Corners on the sides at b do not exist: these are borders.
        result = (twice + 2 == on_sides.sum(axis=0)) & (on_sides[0] == 1)
        result[~result] = self._hold_none(x[:, ~result], y[:, ~result])
        return result

    def _hold_none(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Count the corners in triangles, (3, n) coordinates, row by row; return whether there are only three."""
        top, rows = y.min(axis=0), np.ptp(y, axis=0) + 1
        low = rows <= _MAX_ROWS
        rows = np.where(low, rows, 0)
        which = np.repeat(np.arange(len(rows)), rows)
        row = np.arange(len(which)) - np.repeat(np.cumsum(rows) - rows, rows) + top[which]
        left, right = np.full(len(which), np.inf), np.full(len(which), -np.inf)
        for i, j in ((0, 1), (1, 2), (2, 0)):
            xi, yi, xj, yj = x[i, which], y[i, which], x[j, which], y[j, which]
            share = (row - yi) / np.where(yi == yj, 1, yj - yi)
            at = np.where((share >= 0) & (share <= 1), xi + share * (xj - xi), np.nan)
            left, right = np.fmin(left, at), np.fmax(right, at)
        present = np.append(0, np.cumsum(~self.removed))
        width = self.x.max() + 2
        first = np.searchsorted(self.keys, row * width + np.ceil(left - 1e-9).astype(np.int64))
        stop = np.searchsorted(self.keys, row * width + np.floor(right + 1e-9).astype(np.int64), side='right')
        return low & (np.bincount(which, present[stop] - present[first], len(rows)) == 3)

    def remove(self, place: np.ndarray) -> None:
        """Remove corners, none of them neighbours."""
        self.removed[self.corner[place]] = True
        for places in (place, self.other[place]):
            before, after = self.before[places], self.after[places]
            self.after[before], self.before[after] = after, before


def _removed(outlines: Outlines, limits: np.ndarray) -> list[np.ndarray]:
    """Return the corners to remove in each stage, (n,) bool, with those of the stages before.

    Args:
        outlines: The outlines.
        limits: Area in px2 of the largest triangle at each region in the last stage.
    """
    walk, stages = _Walk(outlines), []
    limit = np.full(len(walk.x), np.inf)
    np.minimum.at(limit, outlines.steps, np.repeat(limits[outlines.region], outlines.sizes))
    for share in _STAGES:
        _remove_up_to(walk, share * limit)
        stages.append(walk.removed.copy())
    return stages


def _remove_up_to(walk: _Walk, limit: np.ndarray) -> None:
    """Remove corners, smallest triangles first, as long as their triangles are at most ``limit``, (n,) px2."""
    highest = np.iinfo(np.int64).max
    key = np.full(len(walk.x), highest)
    place, waiting = walk.place[~walk.removed[walk.corner[walk.place]]], np.empty(0, np.int64)
    while len(place):
        a, b, c = walk.triangles(place)
        twice = walk.twice_areas(a, b, c)
        small = twice <= 2 * limit[b]
        key[b] = highest
        waiting, place = np.append(waiting, place[~small]), place[small]
        a, b, c, twice = a[small], b[small], c[small], twice[small]
        # Every second corner of a staircase first; a fixed shuffle of the numbers breaks other ties.
        key[b] = (twice << 33) + ((walk.x[b] + walk.y[b]) % 2 << 32) + b * 2654435761 % 2**32
        least = (key[b] < key[a]) & (key[b] < key[c])
        chosen = place[least]
        free = walk.keeps_rings(chosen)
        free[free] = walk.empty(a[least][free], b[least][free], c[least][free])
        blocked, chosen = chosen[~free], chosen[free]
        key[walk.corner[blocked]] = highest
        touched = np.zeros(len(walk.x), bool)
        touched[walk.corner[walk.before[chosen]]] = touched[walk.corner[walk.after[chosen]]] = True
        walk.remove(chosen)
        waiting = np.append(waiting, blocked)
        again = touched[walk.corner[waiting]]
        place, waiting = np.append(place[~least], waiting[again]), waiting[~again]
