"""Rasters on disk behave like arrays."""

import numpy as np
import pytest

from mmseg_ignite.slides.raster import DiskRaster


@pytest.mark.parametrize('dtype', [np.uint8, np.int32])
def test_raster_equals_an_array_after_random_writes(tmp_path, dtype):
    rng = np.random.default_rng()
    expected = np.zeros((37, 53), dtype)
    with DiskRaster(tmp_path / 'r.raw', expected.shape, dtype) as raster:
        for _ in range(40):
            (top, bottom), (left, right) = (sorted(rng.integers(0, side + 1, 2)) for side in expected.shape)
            rows = slice(top, bottom)
            index = rows if rng.random() < 0.5 else (rows, slice(left, right))
            values = rng.integers(0, 250, expected[index].shape)
            raster[index] = values
            expected[index] = values
            (top, bottom), (left, right) = (sorted(rng.integers(0, side + 1, 2)) for side in expected.shape)
            np.testing.assert_array_equal(raster[top:bottom, left:right], expected[top:bottom, left:right])
        np.testing.assert_array_equal(raster[:], expected)
        assert raster[:].dtype == dtype and raster.shape == (37, 53)
    assert not (tmp_path / 'r.raw').exists()
