"""Building blocks of all pictures of tissue and labels: coloured label maps, blending, panels, text, legends, scale bars."""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..labels import CLASSES
from .colours import OFFICIAL, Colours

_STRIPE_PERIOD, _STRIPE_WIDTH = 9, 3  # px
_LENGTHS = (20000, 10000, 5000, 2000, 1000, 500, 200, 100, 50, 20, 10, 5, 2)  # um


def colour_labels(labels: np.ndarray, colours: Colours = OFFICIAL) -> np.ndarray:
    """Return the colours of a label map as (H, W, 3) uint8 RGB; ignored pixels are black, hatched classes are striped.

    Args:
        labels: (H, W) uint8 train ids.
    """
    picture = colours.rgb[labels]
    dark = stripes(labels, colours)
    picture[dark] = picture[dark] // 2
    return picture


def stripes(labels: np.ndarray, colours: Colours) -> np.ndarray:
    """Return where the dark stripes of hatched classes are: (H, W) bool."""
    if not colours.hatched.any():
        return np.zeros(labels.shape, bool)
    y, x = np.ogrid[: labels.shape[0], : labels.shape[1]]
    return ((y + x) % _STRIPE_PERIOD < _STRIPE_WIDTH) & colours.hatched[labels]


def blend(
    image: np.ndarray, labels: np.ndarray, opacity: float = 0.55, colours: Colours = OFFICIAL, border: float = 0.35
) -> np.ndarray:
    """Paint class colours over an image, (H, W, 3) uint8 RGB, with dark class borders; ignored pixels keep the tissue.

    Tissue under a colour is converted to gray: the pink of eosin would turn the yellow of stroma into the orange of
    inflammation.

    Args:
        labels: (H, W) uint8 train ids.
        opacity: weight of the colours, 0..1.
        border: brightness of class borders, 0..1; 1 leaves them out.
    """
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    mixed = cv2.addWeighted(gray, 1 - opacity, colour_labels(labels, colours), opacity, 0)
    edges = np.zeros(labels.shape, bool)
    edges[1:] |= labels[1:] != labels[:-1]
    edges[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    mixed[edges] = border * mixed[edges]
    mixed[labels >= len(CLASSES)] = image[labels >= len(CLASSES)]
    return mixed


def resize(array: np.ndarray, size: tuple[int, int], enlarge: int = cv2.INTER_CUBIC) -> np.ndarray:
    """Resize an image (averaging when it shrinks, ``enlarge`` of OpenCV when it grows) or a label map (nearest neighbour).

    Args:
        array: (H, W, 3) uint8 image or (H, W) uint8 label map.
        size: (width, height) in px.
    """
    shrinks = size[0] * size[1] < array.shape[0] * array.shape[1]
    method = cv2.INTER_NEAREST_EXACT if array.ndim == 2 else cv2.INTER_AREA if shrinks else enlarge
    return cv2.resize(np.asarray(array), size, interpolation=method)


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which comes with matplotlib, at a size in px."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf')), size)


def paste_framed(sheet: Image.Image, picture: np.ndarray, left: int, top: int, frame: str = 'gray') -> None:
    """Paste an RGB array into a sheet, with a frame of 1 px around it."""
    sheet.paste(ImageOps.expand(Image.fromarray(picture), 1, frame), (left - 1, top - 1))


def draw_line(
    draw: ImageDraw.ImageDraw, position: tuple[int, int], text: str, width: int, size: int, anchor: str | None = None
) -> None:
    """Write one line of text in black, truncated to ``width`` px, at a font size in px."""
    text, ending = ' '.join(text.split())[:200], ''
    while text and font(size).getlength(text + ending) > width:
        text, ending = text[:-1], '…'
    draw.text(position, text + ending, 'black', font(size), anchor=anchor)


def legend_row(size: int) -> int:
    """Return the height (px) of a row of a legend at a font size (px)."""
    return round(size * 24 / 13)


def draw_legend(
    sheet: Image.Image,
    entries: Iterable[tuple],
    position: tuple[int, int],
    width: int,
    colours: Colours = OFFICIAL,
    size: int = 13,
) -> None:
    """Draw the rows of a legend from ``position`` (left, top) on.

    Args:
        sheet: Picture to draw on.
        entries: (train id of the swatch or None, text, value, ...) of each row; values are right-aligned columns.
        position: (left, top) in px.
        width: Width of the legend in px.
        colours: Colours of the swatches.
        size: Font size in px.
    """
    draw, (left, top) = ImageDraw.Draw(sheet), position
    for label, text, *values in entries:
        if label is not None:
            swatch = np.full((round(size * 16 / 13), round(size * 18 / 13)), label, np.uint8)
            paste_framed(sheet, colour_labels(swatch, colours), left, top, 'black')
        draw.text((left + (2 * size if label is not None else 0), top), text, 'black', font(size))
        for column, value in enumerate(reversed(values)):
            draw.text((left + width - column * 6 * size, top), value, 'black', font(size), anchor='ra')
        top += legend_row(size)


def scale_bar_length(um_per_px: float, width: int) -> int:
    """Return the longest round length (um) of less than a third of ``width`` px, or 1."""
    return next((n for n in _LENGTHS if n / um_per_px < width / 3), 1)


def length_text(um: int) -> str:
    """Return the text of a scale bar.

    Example:
        >>> length_text(500), length_text(2000)
        ('500 µm', '2 mm')
    """
    return f'{um} µm' if um < 1000 else f'{um // 1000} mm'


def draw_scale_bar(draw: ImageDraw.ImageDraw, um_per_px: float, box: tuple[int, int, int, int], size: int = 12) -> None:
    """Draw a scale bar on white into the bottom left corner of a panel; none if it would be shorter than half a pixel.

    Args:
        draw: Of the sheet.
        um_per_px: Resolution of the panel.
        box: (left, top, width, height) of the panel in px.
        size: Font size in px.
    """
    left, top, width, height = box
    length, unit = scale_bar_length(um_per_px, width), size / 12
    pixels, y, text = round(length / um_per_px), top + height - size, length_text(length)
    if not pixels:
        return
    x, thick = left + size, round(4 * unit)
    right = x + max(pixels, font(size).getlength(text)) + size / 2
    draw.rectangle((left + size / 2, y - 22 * unit, right, y + 8 * unit), 'white')
    draw.rectangle((x, y, x + pixels - 1, y + thick - 1), 'black')
    draw.text((x, y - 18 * unit), text, 'black', font(size))
