import colorsys

import numpy as np
import pytest

from mmseg_ignite.labels import CLASSES, IGNORE, PALETTE
from mmseg_ignite.visualization import colour_labels, draw_overlay
from mmseg_ignite.visualization.colours import PALETTES, class_colours
from mmseg_ignite.visualization.overlay import _legend
from mmseg_ignite.visualization.painter import blend, scale_bar_length


def test_label_colours_are_official():
    labels = np.array([[*range(16), IGNORE]], np.uint8)
    assert [tuple(c) for c in colour_labels(labels)[0].tolist()] == [*PALETTE, (0, 0, 0)]


@pytest.mark.parametrize('label', range(16))
def test_blending_over_pink_tissue_keeps_the_hue_of_the_legend(label):
    image = np.full((8, 8, 3), (225, 120, 190), np.uint8)
    mixed = blend(image, np.full((8, 8), label, np.uint8))[4, 4] / 255
    hue, saturation, _ = colorsys.rgb_to_hsv(*np.array(PALETTE[label]) / 255)
    if saturation > 0.2:
        assert abs(colorsys.rgb_to_hsv(*mixed)[0] - hue) < 0.02


def test_unannotated_tissue_is_unchanged():
    image = np.random.default_rng().integers(0, 256, (9, 9, 3)).astype(np.uint8)
    np.testing.assert_array_equal(blend(image, np.full((9, 9), IGNORE, np.uint8)), image)


@pytest.mark.parametrize('shape', [(40, 2000), (700, 700), (3, 5)])
def test_overlay_of_any_shape(shape):
    image = np.full((*shape, 3), 200, np.uint8)
    labels = np.arange(np.prod(shape)).reshape(shape).astype(np.uint8) % len(CLASSES)
    one, two = draw_overlay(image, labels), draw_overlay(image, labels, labels, 'roi', 0.5)
    assert two.width > one.width > 320


@pytest.mark.parametrize('label', range(16))
def test_hatched_classes_have_dark_stripes(label):
    picture = colour_labels(np.full((1, 90), label, np.uint8), PALETTES['colour-blind'])
    colours = class_colours(CLASSES[label], label)
    colour = tuple(bytes.fromhex(colours.safe[1:]))
    expected = {colour, tuple(c // 2 for c in colour)} if colours.hatched else {colour}
    assert {tuple(c) for c in picture[0].tolist()} == expected


def test_legend_lists_predicted_shares_or_unannotated_tissue():
    prediction = np.zeros((10, 100), np.uint8)
    prediction[:, :25] = 3
    prediction[0, 99] = 5
    rows = _legend(prediction, None, 500.0)
    assert rows == [(0, 'Background', '74.9 %'), (3, 'Stroma', '25.0 %'), (5, 'Alveolar tissue', '0.1 %'),
                    (None, 'whole image', '250 mm²')]  # fmt: skip
    assert len(_legend(prediction, None, None)) == 3
    truth = np.full_like(prediction, 4)
    assert [row[1] for row in _legend(prediction, truth, 0.5)][2:] == ['Inflammation', 'Alveolar tissue']
    truth[0] = IGNORE
    assert _legend(prediction, truth, 0.5)[-1][1] == 'not annotated, stain kept'


@pytest.mark.parametrize('um_per_px', [0.1, 0.25, 0.5, 2.0])
def test_scale_bar_has_the_stated_length(um_per_px):
    image = np.full((1200, 1600, 3), 200, np.uint8)
    labels = np.zeros((1200, 1600), np.uint8)
    with_bar, without = (np.array(draw_overlay(image, labels, um_per_px=um)) for um in (um_per_px, None))
    black = (with_bar[60:, :1012] == 0).all(-1)
    row = black.sum(1).argmax()  # of the panel of 1000 x 750 px
    length = scale_bar_length(um_per_px * 1.6, 1000)
    assert black.sum(1)[row] == pytest.approx(length / um_per_px / 1.6, abs=2) and length * 3 < 1600 * um_per_px
    assert not (without[60:, :1012] == 0).all(-1).any()
