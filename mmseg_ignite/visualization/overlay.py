"""Label maps in colours, over the tissue, with a legend."""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..labels import CLASSES, PALETTE, UNANNOTATED, count_classes

_GAP, _TITLE, _LEGEND, _ROW = 12, 30, 250, 24
_STRIPES = 9
"""px from one stripe of a hatched class to the next."""


class Colours(NamedTuple):
    """How classes are drawn.

    Attributes:
        rgb: (256, 3) uint8, colour of each train id; black for what is not one.
        hatched: (256,) bool, whether dark stripes lie over the colour.
    """

    rgb: np.ndarray
    hatched: np.ndarray


def colours_of(rgb: list[tuple[int, int, int]], hatched: list[bool] | None = None) -> Colours:
    """The colours of the 16 classes, in their order, as tables."""
    table, stripes = np.zeros((256, 3), np.uint8), np.zeros(256, bool)
    table[:] = UNANNOTATED.colour
    table[: len(rgb)] = rgb
    stripes[: len(rgb)] = hatched or [False] * len(rgb)
    return Colours(table, stripes)


OFFICIAL = colours_of(PALETTE)
"""The colours of the release."""


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / 'fonts' / 'ttf' / 'DejaVuSans.ttf'), size)


def colour_labels(labels: np.ndarray, colours: Colours = OFFICIAL) -> np.ndarray:
    """Train ids (H, W) to colours (H, W, 3) uint8 RGB, striped where a class is; ignored pixels are black."""
    picture = colours.rgb[labels]
    if colours.hatched.any():
        y, x = np.ogrid[: labels.shape[0], : labels.shape[1]]
        dark = ((y + x) % _STRIPES < 3) & colours.hatched[labels]
        picture[dark] = picture[dark] // 2
    return picture


def blend(image: np.ndarray, labels: np.ndarray, opacity: float = 0.55, colours: Colours = OFFICIAL) -> np.ndarray:
    """Colours laid over an RGB image; ignored pixels keep the bare tissue, class borders are drawn dark.

    The tissue under a colour is shown in gray: eosin's pink would turn the yellow of stroma into the orange of
    inflammation.
    """
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB).astype(np.float32)
    mixed = gray * (1 - opacity) + colour_labels(labels, colours) * opacity
    border = np.zeros(labels.shape, bool)
    border[1:] |= labels[1:] != labels[:-1]
    border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    mixed[border] = 0.35 * mixed[border]
    mixed[labels >= len(CLASSES)] = image[labels >= len(CLASSES)]
    return mixed.astype(np.uint8)


def _scaled(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image or a label map at (width, height) px."""
    if array.ndim == 2:
        return cv2.resize(array, size, interpolation=cv2.INTER_NEAREST_EXACT)
    shrinks = size[0] < array.shape[1]
    return cv2.resize(np.asarray(array), size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def draw_overlay(
    image: np.ndarray,
    prediction: np.ndarray,
    truth: np.ndarray | None = None,
    title: str = '',
    um_per_px: float | None = None,
    colours: Colours = OFFICIAL,
) -> Image.Image:
    """Image, ground truth (if given) and prediction side by side, with a legend of the classes seen.

    Panels are scaled down to at most 1000 px or up to at least 320 px a side, so that they can be read. Without a ground
    truth the legend says what share of the image each class was predicted for.

    Args:
        image: (H, W, 3) uint8 RGB.
        prediction: (H, W) uint8 train ids.
        truth: (H, W) uint8 train ids, 255 unannotated.
        title: e.g. the name of the ROI.
        um_per_px: for the scale bar and the area; they are left out without it.
        colours: of the classes.
    """
    scale = min(1000 / max(image.shape[:2]), max(1.0, 320 / min(image.shape[:2])))
    width, height = (max(1, round(side * scale)) for side in image.shape[1::-1])
    tissue = _scaled(image, (width, height))
    panels = [('image', tissue)]
    for name, labels in (('ground truth', truth), ('prediction', prediction)):
        if labels is not None:
            panels.append((name, blend(tissue, _scaled(labels, (width, height)), colours=colours)))
    entries = _legend(prediction, truth, um_per_px)
    rows = max(height, _ROW * (len(entries) + 1))
    sheet = Image.new('RGB', (_GAP + len(panels) * (width + _GAP) + _LEGEND, rows + 2 * _TITLE + _GAP), 'white')
    draw, top = ImageDraw.Draw(sheet), 2 * _TITLE - 6
    draw.text((_GAP, 6), title, 'black', font(16))
    for number, (name, picture) in enumerate(panels):
        left = _GAP + number * (width + _GAP)
        draw.text((left, _TITLE), name, 'black', font(14))
        sheet.paste(Image.fromarray(picture), (left, top))
        draw.rectangle((left - 1, top - 1, left + width, top + height), outline='gray')
    if um_per_px:
        _scale_bar(draw, um_per_px / scale, _GAP, top, width, height)
    left = _GAP + len(panels) * (width + _GAP) + 4
    for number, (label, text, value) in enumerate(entries):
        y = top + _ROW * number
        if label is not None:
            swatch = colour_labels(np.full((16, 18), label, np.uint8), colours)
            sheet.paste(Image.fromarray(swatch), (left, y))
            draw.rectangle((left - 1, y - 1, left + 18, y + 16), outline='black')
        draw.text((left + (26 if label is not None else 0), y), text, 'black', font(13))
        draw.text((left + _LEGEND - _GAP - 8, y), value, 'black', font(13), anchor='ra')
    return sheet


def _legend(
    prediction: np.ndarray, truth: np.ndarray | None, um_per_px: float | None
) -> list[tuple[int | None, str, str]]:
    """Rows of the legend: train id of the swatch, text, and what stands at the right."""
    predicted = count_classes(prediction)
    if truth is not None:
        seen = np.flatnonzero(predicted + count_classes(truth))
        bare = [(None, 'not annotated, stain kept', '')] if (truth >= len(CLASSES)).any() else []
        return [(int(i), CLASSES[i], '') for i in seen] + bare
    seen = np.flatnonzero(predicted)
    rows = [(int(i), CLASSES[i], _percent(predicted[i] / prediction.size)) for i in seen]
    if um_per_px:
        rows.append((None, 'whole image', f'{prediction.size * um_per_px**2 / 1e6:.3g} mm²'))
    return rows


def _percent(share: float) -> str:
    return '< 0.1 %' if share < 0.001 else f'{100 * share:.1f} %'


def scale_bar_length(um_per_px: float, width: int) -> int:
    """The longest round length in um that takes less than a third of ``width`` px, 1 if none does."""
    return next((n for n in (5000, 2000, 1000, 500, 200, 100, 50, 20, 10, 5, 2) if n / um_per_px < width / 3), 1)


def _scale_bar(draw: ImageDraw.ImageDraw, um_per_px: float, left: int, top: int, width: int, height: int) -> None:
    length = scale_bar_length(um_per_px, width)
    pixels, y = length / um_per_px, top + height - 12
    text = f'{length} µm'
    right = left + 18 + max(pixels, font(12).getlength(text))
    draw.rectangle((left + 6, y - 22, right, y + 8), 'white')
    draw.rectangle((left + 12, y, left + 12 + pixels, y + 3), 'black')
    draw.text((left + 12, y - 18), text, 'black', font(12))
