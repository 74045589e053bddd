"""Connected regions equal those of a reference that works on pixels."""

import tracemalloc

import numpy as np
import pytest
from scipy import ndimage

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.regions import components as module
from mmseg_ignite.regions import find_components


def random_raster(rng, shape=None):
    """Return a raster of noise, or of blobs with some noise."""
    shape = tuple(rng.integers(1, 24, 2)) if shape is None else shape
    noise = rng.integers(0, rng.integers(1, 5), shape)
    blobs = ndimage.zoom(rng.integers(0, 4, [-(-side // 5) for side in shape]), 5, order=0)[: shape[0], : shape[1]]
    return np.where(rng.random(shape) < rng.choice([0, 0.1, 1]), noise, blobs).astype(np.uint8)


def regions_by_pixel(raster):
    """Return the number of the region of each pixel, in the order of the first pixels: the reference."""
    numbers, count = np.zeros(raster.shape, int), 0
    for label in np.unique(raster):
        found, n = ndimage.label(raster == label)
        numbers[found > 0] = found[found > 0] + count
        count += n
    _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].reshape(raster.shape)


def borders_by_pixel(regions):
    """Return {(smaller, larger region): number of pixel edges}."""
    borders = {}
    for before, after in ((regions[:-1], regions[1:]), (regions[:, :-1], regions[:, 1:])):
        for pair in zip(before.ravel().tolist(), after.ravel().tolist()):
            if pair[0] != pair[1]:
                borders[tuple(sorted(pair))] = borders.get(tuple(sorted(pair)), 0) + 1
    return borders


@pytest.mark.parametrize('band', [1, 2, 7, 512])
def test_regions_equal_those_of_a_reference(monkeypatch, band):
    monkeypatch.setattr(module, 'BAND_ROWS', band)
    rng = np.random.default_rng()
    for _ in range(60):
        raster = random_raster(rng)
        found, expected = find_components(raster), regions_by_pixel(raster)
        pixels = np.repeat(found.component, found.stops - found.starts).reshape(raster.shape)
        np.testing.assert_array_equal(pixels, expected)
        np.testing.assert_array_equal(found.labels[pixels], raster)
        np.testing.assert_array_equal(found.pixels, np.bincount(expected.ravel()))
        boxes = [[y.start, x.start, y.stop, x.stop] for y, x in ndimage.find_objects(expected + 1)]
        assert found.boxes.tolist() == boxes and len(found) == len(boxes)
        borders = borders_by_pixel(expected)
        assert dict(zip(map(tuple, found.pairs.tolist()), found.borders.tolist())) == borders
        assert list(map(tuple, found.pairs.tolist())) == sorted(borders)


def test_memory_grows_with_the_runs_not_with_the_pixels():
    class Glass:
        shape, dtype = (40_000, 5000), np.dtype(np.uint8)

        def __getitem__(self, rows):
            return np.zeros((len(range(*rows.indices(self.shape[0]))), self.shape[1]), np.uint8)

    tracemalloc.start()
    try:
        found = find_components(Glass())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.pixels.tolist() == [200_000_000] and len(found.starts) == 40_000 and len(found.pairs) == 0
    assert peak < 20e6  # a band with its borders has 5 MB


@pytest.mark.parametrize('raster', [np.zeros((0, 3), np.uint8), np.zeros((3, 3), np.int32), np.zeros(3, np.uint8)])
def test_other_arrays_are_refused(raster):
    with pytest.raises(IgniteError, match='label raster is .* expected'):
        find_components(raster)
