"""Building blocks of all pictures of tissue and labels: coloured label maps, blending, panels, text, scale bars."""

from functools import lru_cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageFont, ImageOps

from ..labels import CLASSES
from .colours import OFFICIAL, Colours

_STRIPE_PERIOD, _STRIPE_WIDTH = 9, 3  # px


def colour_labels(labels: np.ndarray, colours: Colours = OFFICIAL) -> np.ndarray:
    """Return the colours of a label map as (H, W, 3) uint8 RGB; ignored pixels are black, hatched classes are striped.

    Args:
        labels: (H, W) uint8 train ids.
    """
    picture = colours.rgb[labels]
    if colours.hatched.any():
        y, x = np.ogrid[: labels.shape[0], : labels.shape[1]]
        dark = ((y + x) % _STRIPE_PERIOD < _STRIPE_WIDTH) & colours.hatched[labels]
        picture[dark] = picture[dark] // 2
    return picture


def blend(image: np.ndarray, labels: np.ndarray, opacity: float = 0.55, colours: Colours = OFFICIAL) -> np.ndarray:
    """Paint class colours over an image, (H, W, 3) uint8 RGB, with dark class borders; ignored pixels keep the tissue.

    Tissue under a colour is converted to gray: the pink of eosin would turn the yellow of stroma into the orange of
    inflammation.

    Args:
        labels: (H, W) uint8 train ids.
        opacity: weight of the colours, 0..1.
    """
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
    mixed = gray * (1 - opacity) + colour_labels(labels, colours) * opacity
    border = np.zeros(labels.shape, bool)
    border[1:] |= labels[1:] != labels[:-1]
    border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    mixed[border] = 0.35 * mixed[border]
    mixed[labels >= len(CLASSES)] = image[labels >= len(CLASSES)]
    return mixed.astype(np.uint8)


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
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf')), size)


def paste_framed(sheet: Image.Image, picture: np.ndarray, left: int, top: int, frame: str = 'gray') -> None:
    """Paste an RGB array into a sheet, with a frame of 1 px around it."""
    sheet.paste(ImageOps.expand(Image.fromarray(picture), 1, frame), (left - 1, top - 1))


def scale_bar_length(um_per_px: float, width: int) -> int:
    """Return the longest round length (um) of less than a third of ``width`` px, or 1."""
    return next((n for n in (5000, 2000, 1000, 500, 200, 100, 50, 20, 10, 5, 2) if n / um_per_px < width / 3), 1)
