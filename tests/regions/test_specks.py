"""Merging of specks equals a reference written from the definition."""

import numpy as np
import pytest
from test_components import random_raster, regions_by_pixel

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.regions import components, merge_specks, minimum_pixels, specks
from mmseg_ignite.slides.raster import DiskRaster


def merge_by_pixel(raster, min_pixels):
    """Merge by the definition in the docstring of merge_specks, with loops over regions and pixels."""
    raster = raster.copy()
    while True:
        regions = regions_by_pixel(raster)
        sizes = np.bincount(regions.ravel()).tolist()
        if len(sizes) == 1 or min(sizes) >= min_pixels:
            return raster
        neighbours = {i: set() for i in range(len(sizes))}
        for before, after in ((regions[:-1], regions[1:]), (regions[:, :-1], regions[:, 1:])):
            for one, other in zip(before.ravel().tolist(), after.ravel().tolist()):
                if one != other:
                    neighbours[one].add(other)
                    neighbours[other].add(one)
        labels = {i: raster[regions == i][0] for i in range(len(sizes))}
        for i in sorted(labels, key=lambda i: (-sizes[i], i)):  # the largest first, so that its neighbours are final
            largest = min(neighbours[i], key=lambda j: (-sizes[j], j))
            if sizes[i] < min_pixels and (-sizes[largest], largest) < (-sizes[i], i):
                labels[i] = labels[largest]
        raster = np.array([labels[i] for i in regions.ravel()], np.uint8).reshape(raster.shape)


@pytest.mark.parametrize('band', [1, 3, 512])
def test_merging_equals_a_reference(monkeypatch, band):
    monkeypatch.setattr(components, 'BAND_ROWS', band)
    monkeypatch.setattr(specks, 'BAND_ROWS', band)
    rng = np.random.default_rng()
    for _ in range(50):
        raster, least = random_raster(rng), int(rng.integers(0, 40))
        before, out = raster.copy(), np.full(raster.shape, 99, np.uint8)
        regions, expected = regions_by_pixel(raster), merge_by_pixel(raster, least)
        changed = len(np.unique(regions[raster != expected]))
        assert merge_specks(raster, least, out) == changed
        np.testing.assert_array_equal(out, expected)
        np.testing.assert_array_equal(raster, before)
        assert merge_specks(raster, least) == changed
        np.testing.assert_array_equal(raster, expected)


def test_no_speck_is_left_large_regions_lose_nothing_and_a_second_call_changes_nothing(tmp_path):
    rng = np.random.default_rng()
    array, least = random_raster(rng, (300, 401)), int(rng.integers(2, 200))
    with DiskRaster(tmp_path / 'r.raw', array.shape) as raster:
        raster[:] = array
        merge_specks(raster, least)
        merged = raster[:]
        assert merge_specks(raster, least) == 0
        np.testing.assert_array_equal(raster[:], merged)
    regions = regions_by_pixel(array)
    large = np.bincount(regions.ravel())[regions] >= least
    np.testing.assert_array_equal(merged[large], array[large])
    sizes = np.bincount(regions_by_pixel(merged).ravel())
    assert sizes.min() >= least or len(sizes) == 1


def test_a_raster_smaller_than_the_minimum_becomes_one_region():
    raster = np.random.default_rng().integers(0, 16, (9, 9), np.uint8)
    merge_specks(raster, 1000)
    assert len(np.unique(raster)) == 1
    assert merge_specks(raster, 1000) == 0


def test_chains_end_at_a_large_region_and_holes_of_glass_are_filled():
    row = np.repeat([5, 4, 3, 2, 1], [1, 2, 3, 4, 50]).astype(np.uint8)[None]
    assert merge_specks(row, 10) == 4
    assert (row == 1).all()
    tissue = np.full((9, 9), 3, np.uint8)
    tissue[4, 4] = 0
    assert merge_specks(tissue, 2) == 1
    assert (tissue == 3).all()


def test_only_rows_that_change_are_written():
    class Recorder:
        def __init__(self, array):
            self.array, self.shape, self.dtype, self.written = array, array.shape, array.dtype, []

        def __getitem__(self, index):
            return self.array[index]

        def __setitem__(self, index, values):
            self.written.append((index.start, index.stop))
            self.array[index] = values

    array = np.zeros((2000, 30), np.uint8)
    array[700:702, 5] = 1
    raster = Recorder(array)
    assert merge_specks(raster, 3) == 1
    assert raster.written == [(700, 702)] and not array.any()


def test_areas_become_pixels():
    rng = np.random.default_rng()
    assert minimum_pixels(0, 0.5) == 0 and minimum_pixels(100, 0.5) == 400 and minimum_pixels(100.1, 0.5) == 401
    for um_per_px in (0.1, 0.2, 0.7, 1.1):  # whole numbers of pixels, whatever the rounding of floats
        pixels = int(rng.integers(1, 10_000))
        assert minimum_pixels(pixels * um_per_px**2, um_per_px) == pixels
        assert minimum_pixels(pixels * um_per_px * um_per_px, um_per_px) == pixels


@pytest.mark.parametrize('values', [(-1, 0.5), (float('nan'), 0.5), ('1', 0.5), (1, 0), (1, float('inf')), (1, None)])
def test_impossible_areas_and_resolutions_are_refused(values):
    with pytest.raises(IgniteError, match='expected'):
        minimum_pixels(*values)


def test_wrong_arguments_are_refused():
    raster = np.zeros((4, 5), np.uint8)
    for least in (-1, 2.0, True, None):
        with pytest.raises(IgniteError, match='min_pixels'):
            merge_specks(raster, least)
    with pytest.raises(IgniteError, match='out is'):
        merge_specks(raster, 3, np.zeros((5, 4), np.uint8))
