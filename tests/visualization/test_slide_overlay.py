"""Pictures of whole slides: sampling, preview, overlay, legend and scale bar."""

import numpy as np
import pytest
from PIL import Image

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.files import is_ours
from mmseg_ignite.labels import CLASSES, NUM_CLASSES, PALETTE
from mmseg_ignite.slides.raster import DiskRaster
from mmseg_ignite.visualization import colour_labels
from mmseg_ignite.visualization.colours import OFFICIAL, PALETTES
from mmseg_ignite.visualization.painter import length_text, resize, scale_bar_length
from mmseg_ignite.visualization.slide_overlay import (
    LegendRow,
    _legend,
    draw_slide_overlay,
    labels_thumbnail,
    write_label_preview,
)


def _random_labels(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng().integers(0, NUM_CLASSES, shape, np.uint8)


@pytest.mark.parametrize(
    'shape, max_side', [((900, 1201), 400), ((1201, 37), 100), ((1, 1), 5), ((3, 4000), 10), ((50, 60), 60)]
)
def test_thumbnail_samples_the_centres_of_pixels(tmp_path, shape, max_side):
    labels = _random_labels(shape)
    with DiskRaster(tmp_path / 'r.raw', shape) as raster:
        raster[:] = labels
        small = labels_thumbnail(raster, max_side)
    assert max(small.shape) == min(max_side, max(shape)) and small.dtype == np.uint8
    np.testing.assert_array_equal(small, labels_thumbnail(labels, max_side))
    steps = [side / count for side, count in zip(shape, small.shape)]
    for y, x in np.random.default_rng().integers(0, small.shape, (50, 2)):
        assert small[y, x] == labels[int((y + 0.5) * steps[0] + 1e-9), int((x + 0.5) * steps[1] + 1e-9)]


@pytest.mark.parametrize('palette', PALETTES)
def test_preview_has_the_colours_of_the_labels(tmp_path, palette):
    labels = np.kron(_random_labels((20, 30)), np.ones((10, 10), np.uint8))
    path = tmp_path / 'preview.png'
    write_label_preview(path, labels, 150, PALETTES[palette])
    with Image.open(path) as picture:
        assert picture.size == (150, 100)
        expected = colour_labels(labels_thumbnail(labels, 150), PALETTES[palette])
        np.testing.assert_array_equal(np.array(picture.convert('RGB')), expected)
    assert is_ours(path)


def test_glass_stays_as_in_the_slide_and_classes_are_painted():
    image = np.full((400, 600, 3), (225, 120, 190), np.uint8)
    labels = np.zeros((200, 300), np.uint8)  # half the size
    labels[:, 150:] = 3
    picture = np.array(draw_slide_overlay(image, labels, 2.0, [LegendRow(3, 0.24, 1.0)]))
    top, left = np.argwhere((picture == (225, 120, 190)).all(-1)).min(0)
    panel = picture[top : top + 350, left : left + 600]  # above the scale bar
    assert (panel[:, :300] == (225, 120, 190)).all()
    gray = 0.299 * 225 + 0.587 * 120 + 0.114 * 190
    expected = 0.45 * gray + 0.55 * np.array(PALETTE[3])
    assert np.abs(panel[:, 300:] - expected).max() <= 2
    assert (picture == PALETTE[3]).all(-1).sum() > 100  # the swatch


@pytest.mark.parametrize('palette', PALETTES)
def test_bands_do_not_show(palette):
    rng = np.random.default_rng()
    image, labels = rng.integers(0, 256, (700, 90, 3), np.uint8), _random_labels((700, 90))
    colours = PALETTES[palette]
    picture = np.array(draw_slide_overlay(image, labels, 1.0, [], colours=colours, opacity=1.0))
    expected = np.where((labels == 0)[..., None], image, colour_labels(labels, colours))
    found = [
        (y, x)
        for y in range(30, 50)
        for x in range(5, 20)
        if (picture[y : y + 600, x : x + 90] == expected[:600]).all()
    ]
    assert len(found) == 1


@pytest.mark.parametrize('um_per_px', [0.5, 2.0, 8.0, 30.0])
def test_scale_bar_has_the_stated_length_after_scaling_down(um_per_px):
    image, labels = np.full((1000, 4000, 3), 200, np.uint8), np.zeros((500, 2000), np.uint8)
    picture = draw_slide_overlay(image, labels, um_per_px, [])
    black = (np.array(picture)[400:, :3000] == 0).all(-1)
    length = scale_bar_length(um_per_px * 4 / 3, 3000)
    assert black.sum(1).max() == pytest.approx(length / (um_per_px * 4 / 3), abs=1)
    assert 4000 * um_per_px / 9 < length < 4000 * um_per_px / 3 + 1


def test_scale_bars_name_millimetres():
    assert [length_text(um) for um in (1, 500, 1000, 20000)] == ['1 µm', '500 µm', '1 mm', '20 mm']


def test_legend_repeats_the_areas_table():
    areas = [LegendRow(0, 210.04, None), LegendRow(1, 12.345, 0.5), LegendRow(3, 0.0004, 0.00002), LegendRow(5, 0, 0.0)]
    assert _legend(areas) == [
        (None, '', 'mm²', '% of tissue'),
        (None, 'Background (not painted)', '210.0', ''),
        (1, 'Tumor epithelium', '12.3', '50.0'),
        (3, 'Stroma', '< 0.001', '< 0.1'),
        (5, 'Alveolar tissue', '0.000', '0.0'),
        (None, 'Tissue', '12.3', '100.0'),
    ]
    assert _legend([])[-1] == (None, 'Tissue', '0.000', '')


@pytest.mark.parametrize('shape', [(1, 1), (3, 2000), (2000, 3), (60, 90)])
def test_overlay_of_any_shape(shape):
    areas = [LegendRow(i, i / 3, i / 120) for i in range(1, len(CLASSES))]
    image = np.full((*shape, 3), 240, np.uint8)
    assert draw_slide_overlay(image, _random_labels((50, 40)), 8.0, areas, 'name ' * 100).height > 300


def test_wrong_arrays_are_refused():
    image, labels = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)
    for picture, ids in ((image[..., 0], labels), (image.astype(float), labels), (image, labels.astype(int))):
        with pytest.raises(IgniteError, match='were expected'):
            draw_slide_overlay(picture, ids, 1.0, [])


def test_resize_of_labels_samples_like_the_thumbnail():
    labels = _random_labels((123, 457))
    small = labels_thumbnail(labels, 100)
    np.testing.assert_array_equal(resize(labels, small.shape[::-1]), small)
    assert OFFICIAL.rgb[1].tolist() == list(PALETTE[1])
