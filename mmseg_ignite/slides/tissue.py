"""Where the tissue of a slide is, at low resolution, so that glass costs no time."""

import os

import cv2
import numpy as np
from PIL import Image

from ..errors import IgniteError
from ..files import printable
from ..images.reading import check_picture
from .reader import Slide
from .view import SlideView

THUMBNAIL_UM_PER_PX = 10.0
"""Coarsest resolution of the picture in which tissue is found; a pyramid usually gives 5 to 10 um/px."""
MARGIN_UM = 16.0
"""Width of glass around tissue that counts as tissue: one or two pixels of the mask. A network may call wider margins
anything, which would add to the areas."""
_WARPED = 16_384  # px; OpenCV transforms less than 32,767 px a side
_GAP_UM = 200.0  # gaps up to this width, such as alveoli, are closed
_HOLE_UM2 = 1e6  # enclosed glass up to this area is tissue
_SPECK_UM2 = 1000.0
_GLASS = 220  # darkest channel of glass, at least
_GLASS_TINT = 14  # difference of its channels, at most
_WHITE = 254  # darkest channel of white, at least: overexposed glass, or pixels without data
_THRESHOLDS = (8, 12)  # limits of the threshold below the glass, in grey levels


def tissue_mask(thumbnail: np.ndarray, um_per_px: float, missing: float = 0) -> np.ndarray:
    """Find tissue in a picture of a slide at low resolution.

    A pixel is tissue if a channel of it is darker than the glass by a threshold: H&E absorbs green above all, so that the
    difference grows with both saturation and darkness. The glass is the 95th percentile of the bright and colourless
    pixels, or white if more pixels are white: overexposed glass, beside which they are pale tissue. The threshold is Otsu's
    (1979), but at most 12 of 255 levels, so that dark tissue does not hide pale tissue, fat and mucus, and at least 8, so
    that glass alone has none. Specks are removed, gaps up to 200 um and holes up to 1 mm2 (alveoli, glands, vessels) are
    filled, and a margin of 16 um is added.

    Args:
        thumbnail: (h, w, 3) uint8 RGB.
        um_per_px: Its resolution, best 5 to 16 um/px.
        missing: Number of its pixels without data, which are white, but no glass.

    Returns:
        (h, w) bool.

    Example:
        >>> with open_slide('slide.svs') as slide:
        ...     view = slide.reduced(10)
        ...     mask = tissue_mask(view[:], view.um_per_px)
    """
    # A median would delete the walls of alveoli and of fat cells, which are a pixel wide.
    picture = cv2.GaussianBlur(thumbnail, (3, 3), 0)
    darker = cv2.subtract(np.full_like(picture, _glass(picture, missing)), picture).max(-1)
    threshold, _ = cv2.threshold(darker, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    mask = darker > np.clip(threshold, *_THRESHOLDS)
    mask &= ~_small(mask, _SPECK_UM2 / um_per_px**2)
    mask = _closed(mask, _GAP_UM / 2 / um_per_px)
    mask |= _small(~mask, _HOLE_UM2 / um_per_px**2, inside=True)
    return _near(mask, MARGIN_UM / um_per_px)


def _glass(picture: np.ndarray, missing: float) -> np.ndarray:
    """Return the colour of glass, (3,) uint8; white if the picture has none, or is overexposed."""
    low = picture.min(-1)
    glass = picture[(low > _GLASS) & (low < _WHITE) & (picture.max(-1) - low <= _GLASS_TINT)]
    white = np.count_nonzero(low >= _WHITE) - missing
    return (
        np.percentile(glass, 95, axis=0).astype(np.uint8) if len(glass) > max(white, 0) else np.full(3, 255, np.uint8)
    )


def _small(mask: np.ndarray, area: float, inside: bool = False) -> np.ndarray:
    """Return the connected parts of a mask under an area in px; with ``inside`` only those that do not touch the edge."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    x, y, width, height = statistics[:, :4].T
    small = statistics[:, cv2.CC_STAT_AREA] < area
    if inside:
        small &= (x > 0) & (y > 0) & (x + width < mask.shape[1]) & (y + height < mask.shape[0])
    small[0] = False
    return small[labels]


def _near(mask: np.ndarray, radius: float) -> np.ndarray:
    """Return the pixels at most ``radius`` px away from a mask."""
    if not mask.any():
        return mask
    return cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5) <= radius


def _closed(mask: np.ndarray, radius: float) -> np.ndarray:
    """Return a mask with its gaps of up to twice ``radius`` px closed; beyond the edge of the picture there is no glass."""
    outside = ~_near(mask, radius)
    return mask | ~_near(outside, radius)


class TissueMask:
    """The tissue of a slide, at the coordinates of a view.

    Args:
        mask: (h, w) bool, tissue.
        shape: (H, W) of the view.
        step: (y, x) px of the view per px of the mask. Defaults to the ratio of their sizes.

    Attributes:
        mask: (h, w) bool.
        shape: (H, W) of the view.
        share: Share of the mask that is tissue, 0..1.

    Example:
        >>> mask = TissueMask(np.array([[True, False]]), (100, 200))
        >>> mask.covers((0, 50), (0, 50)), mask.covers((0, 50), (120, 170))
        (True, False)
    """

    def __init__(self, mask: np.ndarray, shape: tuple[int, int], step: tuple[float, float] | None = None) -> None:
        self.mask, self.shape = np.asarray(mask, bool), tuple(shape[:2])
        self._step = step or tuple(whole / part for whole, part in zip(self.shape, self.mask.shape))
        self._grey = np.where(self.mask, np.uint8(255), np.uint8(0))
        self._sums = cv2.integral(self.mask.astype(np.uint8))
        self.share = float(self.mask.mean())

    def covers(self, rows: tuple[int, int], columns: tuple[int, int]) -> bool:
        """Return whether a window of the view, (first, stop) of its rows and columns, touches tissue or a pixel beside it."""
        spans = zip((rows, columns), self._step, self.mask.shape)
        (top, bottom), (left, right) = (
            (min(max(int(first / step) - 1, 0), side - 1), max(1, min(1 - int(-stop // step), side)))
            for (first, stop), step, side in spans
        )
        sums = self._sums
        return bool(sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left])

    def rows(self, first: int, stop: int) -> np.ndarray:
        """Return which pixels of rows of the view are tissue, (stop - first, W) bool, with the mask's edges smoothed.

        The mask is interpolated bilinearly between the centres of its pixels; more than one half is tissue.
        """
        found = np.empty((stop - first, self.shape[1]), bool)
        for top in range(first, stop, _WARPED):
            for left in range(0, self.shape[1], _WARPED):
                size = min(_WARPED, self.shape[1] - left), min(_WARPED, stop - top)
                (y, x), (height, width) = ((top, left), self._step)
                place = np.array([[1 / width, 0, (x + 0.5) / width - 0.5], [0, 1 / height, (y + 0.5) / height - 0.5]])
                flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
                part = cv2.warpAffine(self._grey, place, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
                found[top - first : top - first + size[1], left : left + size[0]] = part > 127
        return found

    @classmethod
    def from_slide(cls, slide: Slide, view: SlideView) -> 'TissueMask':
        """Find the tissue of a slide by :func:`tissue_mask`, at about 10 um/px or finer.

        A slide without a pyramid is decoded whole, block by block.

        Example:
            >>> with open_slide('slide.svs') as slide:
            ...     view = slide.at(0.5)
            ...     mask = TissueMask.from_slide(slide, view)
        """
        small = slide.reduced(max(THUMBNAIL_UM_PER_PX, slide.um_per_px))
        step = small.downsample / view.downsample
        picture = small[: small.shape[0]]
        missing = small.missing_pixels * (slide.levels[small.level].downsample / small.downsample) ** 2
        return cls(tissue_mask(picture, small.um_per_px, missing), view.shape[:2], (step, step))

    @classmethod
    def from_file(cls, path: str | os.PathLike, view: SlideView) -> 'TissueMask':
        """Read a mask of the whole slide inside its bounds: PNG or TIFF of any size, tissue where a channel is not 0.

        Raises:
            IgniteError: It cannot be read, or its aspect ratio differs from that of the slide by more than 1 % and two px.
        """
        name = printable(path)
        check_picture(path)
        try:
            with Image.open(path) as image:
                image.load()
                mask = (
                    np.asarray(image.convert(image.mode.removesuffix('A')) if image.mode in ('LA', 'RGBA') else image)
                    != 0
                )
        except FileNotFoundError as error:
            raise IgniteError(f'{name} does not exist; a tissue mask was expected: check the path.') from error
        except Exception as error:  # Pillow raises many types on damaged data
            raise IgniteError(
                f'{name} cannot be read as a tissue mask ({error}): give a PNG or TIFF in which tissue is not 0.'
            ) from error
        mask = mask.any(-1) if mask.ndim == 3 else mask
        (height, width), (rows, columns) = mask.shape, view.shape[:2]
        expected = width * rows / columns
        if abs(height - expected) > max(2, 0.01 * expected) and abs(width - height * columns / rows) > 2:
            raise IgniteError(
                f'{name} has {height} x {width} px, an aspect ratio of {width / height:.3f}, and the slide has '
                f'{columns / rows:.3f}: give a mask of the whole slide.'
            )
        return cls(mask, view.shape[:2])
