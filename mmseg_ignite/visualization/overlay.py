"""Label maps in the official colours, over the tissue, with a legend."""

from functools import lru_cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..labels import CLASSES, PALETTE, UNANNOTATED

_COLOURS = np.zeros((256, 3), np.uint8)
_COLOURS[: len(PALETTE)] = PALETTE
_COLOURS[len(PALETTE) :] = UNANNOTATED.colour
_GAP, _TITLE, _LEGEND = 12, 30, 220


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / 'fonts' / 'ttf' / 'DejaVuSans.ttf'), size)


def colour_labels(labels: np.ndarray) -> np.ndarray:
    """Train ids (H, W) to official colours (H, W, 3) uint8 RGB; ignored pixels are black."""
    return _COLOURS[labels]


def blend(image: np.ndarray, labels: np.ndarray, opacity: float = 0.55) -> np.ndarray:
    """Colours laid over an RGB image; ignored pixels keep the bare tissue, class borders are drawn dark.

    The tissue under a colour is shown in gray: eosin's pink would turn the yellow of stroma into the orange of
    inflammation.
    """
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB).astype(np.float32)
    mixed = gray * (1 - opacity) + colour_labels(labels) * opacity
    border = np.zeros(labels.shape, bool)
    border[1:] |= labels[1:] != labels[:-1]
    border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    mixed[border] = 0.35 * mixed[border]
    mixed[labels >= len(CLASSES)] = image[labels >= len(CLASSES)]
    return mixed.astype(np.uint8)


def _fit(picture: np.ndarray, scale: float) -> Image.Image:
    """Scale a panel; down to at most 1000 px or up to at least 320 px, so that it can be read."""
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    return Image.fromarray(picture).resize(size, Image.LANCZOS if scale < 1 else Image.BICUBIC)


def draw_overlay(
    image: np.ndarray,
    prediction: np.ndarray,
    truth: 'np.ndarray | None' = None,
    title: str = '',
    um_per_px: 'float | None' = None,
) -> Image.Image:
    """Image, ground truth (if given) and prediction side by side, with a legend of the classes seen.

    Args:
        image: (H, W, 3) uint8 RGB.
        prediction: (H, W) uint8 train ids.
        truth: (H, W) uint8 train ids, 255 unannotated.
        title: e.g. the name of the ROI.
        um_per_px: for the scale bar; none is drawn without it.
    """
    panels = [('image', image)]
    panels += [('ground truth', blend(image, truth))] if truth is not None else []
    panels += [('prediction', blend(image, prediction))]
    scale = min(1000 / max(image.shape[:2]), max(1.0, 320 / min(image.shape[:2])))
    pictures = [(name, _fit(picture, scale)) for name, picture in panels]
    width, height = pictures[0][1].size
    seen = [i for i in range(len(CLASSES)) if (prediction == i).any() or (truth is not None and (truth == i).any())]
    total = max(height, 24 * (len(seen) + 1)) + 2 * _TITLE + _GAP
    sheet = Image.new('RGB', (_GAP + len(pictures) * (width + _GAP) + _LEGEND, total), 'white')
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 6), title, 'black', font(16))
    for number, (name, picture) in enumerate(pictures):
        left = _GAP + number * (width + _GAP)
        draw.text((left, _TITLE), name, 'black', font(14))
        sheet.paste(picture, (left, 2 * _TITLE - 6))
        draw.rectangle((left - 1, 2 * _TITLE - 7, left + width, 2 * _TITLE - 6 + height), outline='gray')
    if um_per_px:
        _scale_bar(draw, um_per_px / scale, _GAP, 2 * _TITLE - 6, width, height)
    left, top = _GAP + len(pictures) * (width + _GAP) + 4, 2 * _TITLE - 6
    for number, label in enumerate(seen):
        y = top + 24 * number
        draw.rectangle((left, y, left + 18, y + 16), PALETTE[label], outline='black')
        draw.text((left + 26, y), CLASSES[label], 'black', font(13))
    return sheet


def scale_bar_length(um_per_px: float, width: int) -> int:
    """The longest round length in um that takes less than a third of ``width`` px, 1 if none does."""
    return next((n for n in (5000, 2000, 1000, 500, 200, 100, 50, 20, 10, 5, 2) if n / um_per_px < width / 3), 1)


def _scale_bar(draw: ImageDraw.ImageDraw, um_per_px: float, left: int, top: int, width: int, height: int) -> None:
    length = scale_bar_length(um_per_px, width)
    pixels, y = length / um_per_px, top + height - 12
    draw.rectangle((left + 6, y - 20, left + 18 + pixels, y + 8), 'white')
    draw.rectangle((left + 12, y, left + 12 + pixels, y + 3), 'black')
    draw.text((left + 12, y - 18), f'{length} µm', 'black', font(12))
