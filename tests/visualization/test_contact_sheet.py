import cv2
import numpy as np
import pytest
from PIL import ImageDraw, ImageFont

from mmseg_ignite.labels import CLASSES, IGNORE, PALETTE
from mmseg_ignite.visualization.contact_sheet import Crop, draw_contact_sheet


def noise(height, width):
    return np.random.default_rng().integers(0, 256, (height, width, 3)).astype(np.uint8)


def crop(image, labels=0, roi='patient1_he_roi1', number=0, train_id=-1):
    if np.isscalar(labels):
        labels = np.full(image.shape[:2], labels, np.uint8)
    return Crop(image, labels, roi, 0.5, number, train_id)


def occurrences(sheet, picture):
    """Count exact occurrences of a picture in the sheet."""
    distance = cv2.matchTemplate(np.array(sheet), np.ascontiguousarray(picture), cv2.TM_SQDIFF)
    positions = np.argwhere(distance <= distance.min() + 1000)  # FFT noise; equality is checked below
    height, width = picture.shape[:2]
    return sum(np.array_equal(np.array(sheet)[y : y + height, x : x + width], picture) for y, x in positions)


@pytest.fixture
def written(monkeypatch):
    """Record the texts of a sheet: (x, y, text, right edge in px)."""
    texts, draw = [], ImageDraw.ImageDraw.text

    def text(self, xy, text, fill, font: ImageFont.FreeTypeFont, **kwargs):
        texts.append((*xy, text, xy[0] + font.getlength(text)))
        return draw(self, xy, text, fill, font, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, 'text', text)
    return texts


def test_small_crops_keep_their_pixels():
    images = [noise(64, 64) for _ in range(6)]
    sheet = draw_contact_sheet([crop(image, number=n) for n, image in enumerate(images)], 'six')
    for image in images:
        assert occurrences(sheet, image.repeat(5, 0).repeat(5, 1)) == 1


def test_unannotated_crop_is_unchanged_in_its_overlay():
    image = noise(32, 64)
    assert occurrences(draw_contact_sheet([crop(image, IGNORE)], ''), image.repeat(5, 0).repeat(5, 1)) == 2


def test_large_crop_is_averaged():
    image = noise(640, 320)
    sheet = np.array(draw_contact_sheet([crop(image)], '')).astype(int)
    expected = image.reshape(320, 2, 160, 2, 3).mean((1, 3))
    distance = cv2.matchTemplate(sheet.astype(np.uint8), expected.round().astype(np.uint8), cv2.TM_SQDIFF)
    y, x = np.unravel_index(distance.argmin(), distance.shape)
    assert np.abs(sheet[y : y + 320, x : x + 160] - expected).max() <= 1


def test_legend_lists_only_classes_on_the_sheet(written):
    labels = np.full((64, 64), 3, np.uint8)
    labels[:, :2], labels[0, 0] = 15, IGNORE
    sheet = draw_contact_sheet([crop(noise(64, 64), labels), crop(noise(64, 64), 8)], '')
    names = {f'{i + 1} {name}' for i, name in enumerate(CLASSES)}
    positions = {text: (x, y) for x, y, text, _ in written}
    assert names & positions.keys() == {'4 Stroma', '9 Erythrocytes', '16 Keratinization'}
    assert any('not annotated' in text for text in positions)
    for train_id in (3, 8, 15):  # the swatch left of the name has the official colour
        x, y = positions[f'{train_id + 1} {CLASSES[train_id]}']
        assert sheet.getpixel((x - 20, y + 15)) == PALETTE[train_id]


def test_legend_omits_unannotated_tissue_if_there_is_none(written):
    draw_contact_sheet([crop(noise(64, 64))], '')
    assert not any('not annotated' in text for *_, text, _ in written)


def test_numbers_are_inside_regions_of_their_class(written):
    labels = np.zeros((320, 320), np.uint8)
    labels[:, 200:], labels[150:160] = 12, 4  # the band of class 4 is too narrow for a number
    draw_contact_sheet([crop(noise(320, 320), labels)], '')
    overlay_left, top = 24 + 320 + 2, 60
    found = {int(text): (x - overlay_left, y - top) for x, y, text, _ in written if text.isdecimal()}
    assert found.keys() == {1, 13}
    for raw_id, (x, y) in found.items():
        assert (labels[y - 10 : y + 10, x - 10 : x + 10] == raw_id - 1).all()


def test_captions_name_roi_number_class_and_resolution(written):
    draw_contact_sheet([crop(noise(64, 64), roi='a_roi', number=7, train_id=t) for t in (5, -1, None)], 'the title')
    texts = [text for *_, text, _ in written]
    assert texts.count('a_roi') == 3 and texts.count('0.500 µm/px, 32 µm wide') == 3 and 'the title' in texts
    assert {'n = 7, around Alveolar tissue', 'n = 7, uniform', 'n = 7'} <= set(texts)


def test_texts_stay_in_their_cells_and_lines(written):
    every = np.arange(64 * 64).reshape(64, 64).astype(np.uint8) % 17
    every[every == 16] = IGNORE
    crops = [crop(noise(64, 64), every, roi='W' * 300 + '\nsecond') for _ in range(2)]
    sheet = draw_contact_sheet(crops, 'T' * 500)
    assert all('\n' not in text for *_, text, _ in written)
    assert all(right <= sheet.width for *_, right in written)
    assert all(right - x <= 640 for x, _, text, right in written if 'WW' in text)
