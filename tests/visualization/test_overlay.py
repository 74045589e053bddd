import colorsys

import numpy as np
import pytest

from mmseg_ignite.labels import CLASSES, IGNORE, PALETTE
from mmseg_ignite.visualization import colour_labels, draw_overlay
from mmseg_ignite.visualization.overlay import blend


def test_colours_are_the_official_ones():
    labels = np.array([[*range(16), IGNORE]], np.uint8)
    assert [tuple(c) for c in colour_labels(labels)[0].tolist()] == [*PALETTE, (0, 0, 0)]


@pytest.mark.parametrize('label', range(16))
def test_colour_over_pink_tissue_keeps_the_hue_of_the_legend(label):
    image = np.full((8, 8, 3), (225, 120, 190), np.uint8)
    mixed = blend(image, np.full((8, 8), label, np.uint8))[4, 4] / 255
    hue, saturation, _ = colorsys.rgb_to_hsv(*np.array(PALETTE[label]) / 255)
    if saturation > 0.2:
        assert abs(colorsys.rgb_to_hsv(*mixed)[0] - hue) < 0.02


def test_unannotated_tissue_stays_bare():
    image = np.random.default_rng().integers(0, 256, (9, 9, 3)).astype(np.uint8)
    np.testing.assert_array_equal(blend(image, np.full((9, 9), IGNORE, np.uint8)), image)


@pytest.mark.parametrize('shape', [(40, 2000), (700, 700), (3, 5)])
def test_overlay_of_any_shape(shape):
    image = np.full((*shape, 3), 200, np.uint8)
    labels = np.arange(np.prod(shape)).reshape(shape).astype(np.uint8) % len(CLASSES)
    one, two = draw_overlay(image, labels), draw_overlay(image, labels, labels, 'roi', 0.5)
    assert two.width > one.width > 320
