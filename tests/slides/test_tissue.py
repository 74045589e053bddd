"""Finding tissue: nothing that a pathologist would label is lost, and glass is left out."""

import cv2
import numpy as np
import pytest
from conftest import REAL_RELEASE
from PIL import Image
from scipy.ndimage import map_coordinates
from slide_example import GLASS, write_slide

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.labels import decode_mask
from mmseg_ignite.slides import TissueMask, open_slide, tissue_mask
from mmseg_ignite.slides import tissue as tissue_module

UM = 8.0


def _glass(rng, size=(200, 300), colour=GLASS, noise=1.0):
    return (np.array(colour) + rng.normal(0, noise, (*size, 3))).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize('colour', [(255, 255, 255), GLASS, (228, 230, 232), (240, 238, 230)])
def test_glass_alone_has_no_tissue(colour):
    assert not tissue_mask(_glass(np.random.default_rng(), colour=colour), UM).any()


@pytest.mark.parametrize('colour', [(235, 222, 230), (225, 222, 232), (230, 190, 210), (110, 70, 150), (90, 90, 90)])
def test_pale_and_dark_tissue_are_found_together_with_a_margin(colour):
    picture = _glass(np.random.default_rng())
    picture[60:120, 80:140], picture[60:120, 200:260] = colour, (120, 60, 140)
    mask = tissue_mask(picture, UM)
    assert mask[60:120, 79:141].all() and mask[59:121, 200:260].all()
    assert not mask[:50].any() and not mask[:, :70].any()


@pytest.mark.parametrize('colour', [(235, 228, 232), (238, 230, 236), (240, 232, 238)])
def test_pale_tissue_beside_overexposed_glass_is_not_taken_for_glass(colour):
    picture = np.full((200, 300, 3), 255, np.uint8)
    picture[60:140, 80:180] = _glass(np.random.default_rng(), (80, 100), colour)
    mask = tissue_mask(picture, UM)
    assert mask[60:140, 80:180].all() and not mask[:40].any()


def test_pixels_without_data_do_not_hide_the_colour_of_glass():
    picture = np.full((200, 300, 3), 255, np.uint8)
    picture[:, :100] = _glass(np.random.default_rng(), (200, 100))
    assert not tissue_mask(picture, UM, missing=200 * 200).any()


def test_thin_walls_and_the_gaps_between_them_are_tissue_and_specks_are_not():
    picture = _glass(np.random.default_rng())
    picture[50:150:20, 50:250], picture[50:150, 50:250:20] = (220, 185, 205), (220, 185, 205)  # walls of one pixel
    picture[20, 20] = 60
    mask = tissue_mask(picture, UM)
    assert mask[50:131, 50:231].all() and not mask[:36, :36].any()


def test_open_gaps_between_tissue_are_closed():
    picture = _glass(np.random.default_rng())
    picture[40:160, 100:110] = picture[40:160, 132:142] = (150, 90, 160)  # 176 um apart
    assert tissue_mask(picture, UM)[55:145, 100:142].all()


def test_pale_tissue_without_glass_is_not_taken_for_glass():
    picture = np.full((100, 100, 3), (238, 221, 232), np.uint8)
    picture[::25, ::25] = (110, 70, 150)
    assert tissue_mask(picture, UM).all()


def test_holes_are_filled_up_to_an_area():
    picture = np.full((400, 400, 3), (210, 150, 190), np.uint8)
    cv2.circle(picture, (100, 100), 60, GLASS, -1)  # 0.72 mm2
    cv2.circle(picture, (270, 270), 120, GLASS, -1)  # 2.9 mm2
    mask = tissue_mask(picture, UM)
    assert mask[:160, :160].all() and not mask[200:340, 200:340].any()


def test_picture_without_glass_is_kept_whole():
    rng = np.random.default_rng()
    picture = np.where(rng.random((100, 100, 1)) < 0.5, np.array([130, 80, 160]), np.array([230, 205, 222])).astype(
        np.uint8
    )
    assert tissue_mask(picture, UM).all()


@pytest.mark.skipif(not REAL_RELEASE.exists(), reason='the real tissue is not here')
@pytest.mark.parametrize('factor', [16, 32])
def test_real_tissue_is_not_dropped(factor):
    """At most 0.1 % of the labelled tissue; the colon images label open glass as stroma, too, which does not count."""
    annotated = dropped = worst = 0
    for path in sorted((REAL_RELEASE / 'annotations' / 'he').glob('*_with_context.png')):
        image = np.asarray(Image.open(REAL_RELEASE / 'images' / 'he' / path.name).convert('RGB'))
        labels = decode_mask(np.asarray(Image.open(path))).labels
        padding = [-side % factor for side in labels.shape]
        padded = cv2.copyMakeBorder(image, 0, padding[0], 0, padding[1], cv2.BORDER_REPLICATE)
        small = cv2.resize(padded, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
        mask = TissueMask(tissue_mask(small, 0.5 * factor), labels.shape, (factor, factor))
        tissue = (labels != 0) & (labels != 255)
        if int(path.name.split('_')[0].removeprefix('patient')) > 31:
            tissue &= (labels != 3) | (image.min(-1) < 235)
        lost = int((tissue & ~mask.rows(0, labels.shape[0])).sum())
        annotated, dropped = annotated + int(tissue.sum()), dropped + lost
        worst = max(worst, lost / max(1, int(tissue.sum())))
    assert annotated > 10**6 and dropped / annotated < 1e-4 and worst < 1e-3


@pytest.mark.parametrize('layout', ['aperio', 'ome'])
def test_mask_of_a_slide_covers_its_tissue_and_little_else(tmp_path, layout):
    truth = write_slide(
        tmp_path / 's.tif', (6000, 8000), tissue_share=0.25, tile=512, levels=(1, 8), layout=layout, um_per_px=0.5
    )
    with open_slide(tmp_path / 's.tif') as slide:
        view = slide.at(2.0)
        mask = TissueMask.from_slide(slide, view)
        pixels = np.kron(truth, np.ones((128, 128), bool))[:1500, :2000]
        assert mask.shape == (1500, 2000) and mask.rows(0, 1500)[pixels].all()
        near = cv2.distanceTransform(1 - pixels.astype(np.uint8), cv2.DIST_L2, 5) < 200  # the margin, and closed gaps
        assert not mask.rows(0, 1500)[~near].any() and pixels.mean() < mask.share < 1


def test_rows_are_the_interpolated_mask_and_windows_cover_them(monkeypatch):
    """Compared with bilinear interpolation by SciPy; parts of the picture that OpenCV transforms at once leave no seam."""
    monkeypatch.setattr(tissue_module, '_WARPED', 200)
    rng = np.random.default_rng()
    mask = rng.random((23, 31)) < 0.2
    tissue = TissueMask(mask, (230 * 3 + 7, 310 * 3 + 11), (30.0, 31.5))
    ys, xs = (
        ((np.arange(side) + 0.5) / step - 0.5).clip(0, last)
        for side, step, last in zip(tissue.shape, (30, 31.5), (22, 30))
    )
    exact = map_coordinates(mask.astype(float), np.meshgrid(ys, xs, indexing='ij'), order=1)
    full, sure = exact > 0.5, np.abs(exact - 0.5) > 0.03
    for _ in range(100):
        (top, bottom), (left, right) = (sorted(rng.choice(side + 1, 2, replace=False)) for side in tissue.shape)
        found = tissue.rows(top, bottom)
        np.testing.assert_array_equal(found[sure[top:bottom]], full[top:bottom][sure[top:bottom]])
        assert tissue.covers((top, bottom), (left, right)) or not found[:, left:right].any()
    assert tissue.share == pytest.approx(mask.mean())
    assert not TissueMask(np.pad([[True]], 5), (110, 110)).covers((0, 40), (0, 110))


def test_mask_files(tmp_path):
    class View:
        shape = (3000, 4000, 3)

    mask = np.zeros((300, 400), np.uint8)
    mask[:150] = 3
    for name, image in (
        ('grey.png', Image.fromarray(mask)),
        ('bool.tif', Image.fromarray(mask > 0)),
        ('rgba.png', Image.fromarray(np.dstack([mask, mask, mask, np.full_like(mask, 255)]))),
        ('near.png', Image.fromarray(mask).resize((399, 301))),
    ):
        image.save(tmp_path / name)
        tissue = TissueMask.from_file(tmp_path / name, View())
        assert tissue.rows(0, 1490).all() and not tissue.rows(1510, 3000).any() and tissue.shape == (3000, 4000)
    Image.fromarray(mask[:, :300]).save(tmp_path / 'square.png')
    (tmp_path / 'text.png').write_text('no picture')
    for name, message in (
        ('square.png', '300 x 300 px'),
        ('text.png', 'cannot be read'),
        ('none.png', 'does not exist'),
    ):
        with pytest.raises(IgniteError, match=message):
            TissueMask.from_file(tmp_path / name, View())
