"""Outlines are the regions of GDAL's polygonizer, share their corners, and stay true when they are simplified."""

import cv2
import numpy as np
import pytest
import shapely
from rasterio.features import rasterize, shapes

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.regions import polygons as polygons_module
from mmseg_ignite.regions import simplify as simplify_module
from mmseg_ignite.regions.geojson import labels_to_geojson
from mmseg_ignite.regions.polygons import outlines, survey
from mmseg_ignite.regions.qupath import qupath_faults
from mmseg_ignite.regions.simplify import simplify
from mmseg_ignite.slides.raster import DiskRaster


def smooth_map(rng, shape, size, classes=16, glass=0.3):
    """Return random labels with smooth borders, holes, lines, a checkerboard and touching corners."""

    def field(step):
        coarse = rng.standard_normal([side // step + 3 for side in shape]).astype(np.float32)
        return cv2.resize(coarse, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)[: shape[0], : shape[1]]

    labels = 1 + np.argmax([field(size) for _ in range(classes - 1)], axis=0).astype(np.uint8)
    labels[field(size * 3) < np.quantile(field(size * 3), glass)] = 0
    for _ in range(4):
        top, left = rng.integers(0, shape[0] - 20), rng.integers(0, shape[1] - 20)
        labels[top : top + rng.integers(1, 3), :] = rng.integers(0, classes)
        labels[:, left] = rng.integers(0, classes)
        labels[top : top + 20, left : left + 20] = np.indices((20, 20)).sum(0) // rng.integers(1, 4) % 2 * 3
    return labels


def random_map(rng):
    kind, shape = rng.integers(3), rng.integers(1, 90, 2)
    if kind == 0:
        return rng.integers(0, rng.integers(2, 5), shape, dtype=np.uint8)
    return smooth_map(rng, tuple(shape + 40), int(rng.integers(4, 20)), int(rng.integers(2, 8)))


def place(points):
    return points


def unfit(polygons):
    return ~shapely.is_valid(polygons)


def simplified(labels, tolerance):
    """Return the labels, the pixels and the simplified polygons of all regions; pieces are checked as coverages."""
    found = []
    for piece in outlines(labels, survey(labels, 16).pieces):
        polygons = simplify(piece, tolerance, place, unfit)
        assert shapely.is_valid(polygons).all() and shapely.coverage_is_valid(polygons)
        found += zip(piece.labels, piece.pixels, polygons)
    return found


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(polygons_module, '_MIN_CORNERS', 1)
    monkeypatch.setattr(polygons_module, '_ROWS', 32)


def test_regions_are_those_of_gdal():
    rng = np.random.default_rng()
    for _ in range(15):
        labels = random_map(rng)
        whole = survey(labels, 16, whole=True).pieces
        found = [
            item for piece in outlines(labels, whole) for item in zip(piece.labels, piece.pixels, piece.polygons())
        ]
        expected = [(value, shapely.geometry.shape(geometry)) for geometry, value in shapes(labels, connectivity=4)]
        assert len(found) == len(expected)
        known = {shapely.normalize(shapely.simplify(shape, 0)).wkb: value for value, shape in expected}
        for label, pixels, polygon in found:
            assert known[shapely.normalize(shapely.simplify(polygon, 0)).wkb] == label
            assert polygon.is_valid and polygon.area == pixels


def test_pieces_cover_the_tissue_and_do_not_depend_on_their_size_or_the_kind_of_raster(
    tmp_path, small_pieces, monkeypatch
):
    rng = np.random.default_rng()
    labels = np.zeros((300, 280), np.uint8)
    for _ in range(12):
        centre = tuple(map(int, rng.integers(0, 300, 2)))
        cv2.circle(labels, centre, int(rng.integers(1, 40)), int(rng.integers(1, 16)), int(rng.integers(-1, 4)) or 1)
    pieces = survey(labels, 16).pieces
    found = list(outlines(labels, pieces))
    assert sum(piece.pixels[piece.labels > 0].sum() for piece in found) == (labels > 0).sum()
    assert len(found) == pieces.max()
    with DiskRaster(tmp_path / 'labels.raw', labels.shape) as raster:
        raster[:] = labels
        monkeypatch.setattr(polygons_module, '_ROWS', 512)
        again = list(outlines(raster, survey(raster, 16).pieces))
    shapes_of = [[p.wkb for piece in run for p in piece.polygons()] for run in (found, again)]
    assert shapes_of[0] == shapes_of[1]


@pytest.mark.parametrize('tolerance', [1.0, 2.0, 5.0])
def test_simplified_regions_are_a_partition_with_true_areas(tolerance):
    rng = np.random.default_rng()
    for _ in range(4):
        labels = smooth_map(rng, tuple(rng.integers(150, 350, 2)), int(rng.integers(10, 40)))
        found = simplified(labels, tolerance)
        tissue = [(label, pixels, polygon) for label, pixels, polygon in found if label]
        kinds, pixels, polygons = map(np.array, zip(*tissue))
        areas = shapely.area(polygons)
        assert np.isclose(areas.sum(), shapely.union_all(polygons).area, rtol=1e-9)
        assert (np.abs(areas - pixels) <= 0.1 * pixels + 1e-6).all()
        expected = np.bincount(labels.reshape(-1), minlength=16)
        np.testing.assert_allclose(np.bincount(kinds, areas, 16)[1:], expected[1:], rtol=0.01)
        # The whole piece, Background included, is still covered.
        everything = np.array([polygon for *_, polygon in found])
        assert shapely.area(everything).sum() == pytest.approx(sum(pixels for _, pixels, _ in found), rel=1e-9)


def test_simplification_removes_the_steps_of_the_pixels():
    y, x = np.mgrid[:400, :400]
    labels = (np.hypot(y - 200, x - 200) < 150).astype(np.uint8)
    [(_, _, disc)] = [item for item in simplified(labels, 2.0) if item[0]]
    assert 12 < shapely.get_num_coordinates(disc) < 120
    radius = np.hypot(*(shapely.get_coordinates(disc.segmentize(1)) - 200).T)
    assert np.abs(radius - 150).max() < 2.5


def test_stages_remove_ever_more_corners_that_only_two_regions_have():
    labels = smooth_map(np.random.default_rng(), (120, 140), 12, 6)
    for piece in outlines(labels, survey(labels, 16).pieces):
        uses, before = np.bincount(piece.steps, minlength=len(piece.corners.y)), np.zeros(len(piece.corners.y), bool)
        for removed in simplify_module._removed(piece, np.full(len(piece.labels), 8.0)):
            assert removed.sum() > before.sum() and not (before & ~removed).any()
            assert (uses[removed] == 2).all()
            assert not (piece.corners.around[removed] == polygons_module.OUTSIDE).any()
            polygons, before = piece.without(removed).polygons(), removed
            assert shapely.is_valid(polygons).all() and shapely.coverage_is_valid(polygons)


@pytest.mark.parametrize('area', [1.0, 4.0])
def test_corners_that_stay_have_large_triangles_or_a_reason(area):
    """On one smooth island in glass there is no other corner near: GEOS finds nothing more to remove."""
    y, x = np.mgrid[:300, :300]
    radius = 100 + 20 * np.sin(5 * np.arctan2(y - 150, x - 150) + np.random.default_rng().uniform(0, 6))
    labels = (np.hypot(y - 150, x - 150) < radius).astype(np.uint8)
    [piece] = outlines(labels, survey(labels, 16).pieces)
    removed = simplify_module._removed(piece, np.full(len(piece.labels), area))[-1]
    [polygon] = piece.without(removed).polygons()[piece.labels == 1]
    points = shapely.get_coordinates(polygon)[:-1]
    (ax, ay), (bx, by), (cx, cy) = np.roll(points, 1, axis=0).T, points.T, np.roll(points, -1, axis=0).T
    assert (np.abs((bx - ax) * (cy - ay) - (cx - ax) * (by - ay)) / 2 > area).all()


def test_regions_that_change_too_much_get_their_corners_back(monkeypatch):
    labels = smooth_map(np.random.default_rng(), (200, 200), 25)
    monkeypatch.setattr(simplify_module, 'MAX_CLASS_CHANGE', 1e-9)
    monkeypatch.setattr(simplify_module, 'MAX_REGION_CHANGE', 1e-9)
    for label, pixels, polygon in simplified(labels, 2.0):
        assert not label or polygon.area == pixels


def test_a_region_lost_by_its_neighbours_gets_its_corners_back():
    """Polygons that the caller cannot use are given back; their neighbours stay valid."""
    labels = smooth_map(np.random.default_rng(), (200, 200), 25, glass=0)
    [piece] = outlines(labels, survey(labels, 16).pieces)
    exact = piece.polygons()

    def picky(polygons):
        changed = np.array([not a.equals(b) for a, b in zip(polygons, exact)])
        return (changed & (piece.labels % 5 == 1)) | ~shapely.is_valid(polygons)

    result = simplify(piece, 2.0, place, picky)
    assert shapely.is_valid(result).all() and shapely.coverage_is_valid(result)
    assert all(a.equals(b) for a, b, label in zip(result, exact, piece.labels) if label % 5 == 1)
    assert sum(shapely.get_num_coordinates(result)) < sum(shapely.get_num_coordinates(exact))


def test_corners_that_come_back_touch_no_line_of_others(monkeypatch):
    """A map in which a corner that comes back would lie on the line of a neighbour, whose polygon then splits in QuPath."""
    monkeypatch.setattr(simplify_module, '_MIN_PIXELS', 0)
    monkeypatch.setattr(simplify_module, '_TRIANGLE_SHARE', 1)
    pixels = (
        '001000101101011000010101010101111111001110100' '010101111111011101000010011001011100101011111'
        '010110101011110010101110100111110110100010110' '110100011110001011100011100100001000010010100'
        '111011011100111110010000111100100001010010100' '000001111000010111000001011011101101101111110'
        '101100001011001001100110011110000010011010011' '111010011101000101100111111100110011100010000'
        '011001110110110010100110110011111101011000111'
    )  # fmt: skip
    labels = np.array([*map(int, pixels)], np.uint8).reshape(9, 45)
    assert qupath_faults(labels_to_geojson(labels, 0.5, tolerance_um=5.0, downsample=16.7)) == []


def test_rasterised_outlines_give_the_labels_back():
    rng = np.random.default_rng()
    for _ in range(10):
        labels = random_map(rng)
        found = [(polygon, int(label)) for label, _, polygon in simplified(labels, 0) if label]
        if found:
            np.testing.assert_array_equal(rasterize(found, labels.shape, fill=0, dtype=np.uint8), labels)


@pytest.mark.parametrize('shape', [(0, 0), (0, 5), (5, 0), (7, 9)])
def test_glass_has_no_regions(shape):
    labels = np.zeros(shape, np.uint8)
    assert list(outlines(labels, survey(labels, 16).pieces)) == []


@pytest.mark.parametrize(
    'labels, part',
    [
        (np.full((4, 4), 16, np.uint8), 'hold the value 16; train ids 0 to 15 were expected'),
        (np.zeros((4, 4), np.int64), 'uint8 (H, W) was expected'),
        (np.zeros((4, 4, 3), np.uint8), 'uint8 (H, W) was expected'),
    ],
)
def test_wrong_labels_are_refused(labels, part):
    with pytest.raises(IgniteError) as error:
        survey(labels, 16)
    assert part in str(error.value)
