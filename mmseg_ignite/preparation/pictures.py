"""Decode the images and masks of a release, and report every doubt about their pixels.

Pixels are used as stored: an EXIF orientation is reported but not applied, in images and masks alike.

Masks that were scaled with interpolation or compressed lossily pass every range check: between the classes 2 and 9 they hold
3..8, which are valid ids. They are found by the positions of these values; see docs/data.md for the measurements.
"""

import io
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from ..images.png import MAX_PIXELS, DamagedPicture, check_memory, check_png, decode, exif_orientation
from ..labels import DecodedMask, decode_mask, histogram

MAX_BETWEEN = 0.05  # largest share_between of an annotated mask
MIN_STEPS = 200  # boundary positions below which no share is computed
MAX_FRINGE = 0.01  # largest share of fringe_classes in an annotated mask, relative to its boundary pixels
MIN_FRINGE = 50  # pixels; a few stray pixels are another finding
_INSIDE = 0.1

Report = Callable[[str, str], None]
"""Callback for the kind and the detail of a finding."""


def read_image(content: bytes, report: Report) -> np.ndarray | None:
    """Decode (H, W, 3) uint8 RGB; None, with a report, if the format would change the colours.

    Raise DamagedPicture if the bytes are not a complete PNG or JPEG.
    """
    if content[:3] == b'\xff\xd8\xff':
        image, colour, orientation = _decode_jpeg(content)
        bits = 8
        report('image-lossy', 'it is a JPEG with the suffix .png')
    else:
        header = check_png(content)
        colour, bits, orientation, mode = header.colour, header.bits, header.orientation, None
        if colour == 'palette':
            mode, colour, bits = 'RGBA' if header.transparent else 'RGB', 'RGB', 8
            report('image-palette', 'it is a palette PNG')
        elif header.transparent and colour == 'RGB' and bits == 8:
            mode = 'RGBA'
        image = decode(content, header, mode)
    _report_orientation(orientation, report)
    if bits == 8 and image.shape[2:] == (4,):
        colour = 'RGBA'
        if (image[..., 3] == 255).all():
            report('image-opaque-alpha', 'it is RGBA')
            return np.ascontiguousarray(image[..., :3])
    if colour != 'RGB' or bits != 8:
        clear = ' with transparent pixels' if colour == 'RGBA' and bits == 8 else ''
        report('image-format', f'it is {bits}-bit {colour}{clear}; 8-bit RGB was expected')
        return None
    return image


def read_mask(content: bytes, report: Report, ids: dict[int, int] | None = None) -> DecodedMask | None:
    """Decode a mask to train ids; None, with a report, if it cannot be trusted.

    For ``ids`` see :func:`mmseg_ignite.labels.decode_mask`.

    Raises:
        DamagedPicture: the bytes are not a complete PNG.
        MaskError: its values are not classes.
    """
    header = check_png(content)
    # Fewer bits of grayscale are refused too: decoders stretch them to 0..255.
    if header.colour not in ('grayscale', 'palette') or (header.colour == 'grayscale' and header.bits != 8):
        report('mask-format', f'it is {header.bits}-bit {header.colour}; 8-bit grayscale or palette was expected')
        return None
    _report_orientation(header.orientation, report)
    stored = decode(content, header)
    share = share_between(stored)
    if share > MAX_BETWEEN:
        report(
            'mask-interpolated',
            f'{share:.1%} of its class boundaries hold a value between the two classes, at most {MAX_BETWEEN:.0%} was '
            'expected: it was scaled with interpolation or compressed lossily',
        )
        return None
    mask = decode_mask(stored, ids=ids)
    if header.colour == 'palette':
        report('mask-palette', 'it is a palette PNG')
    if mask.stray:
        report('mask-stray', f'{mask.stray} pixel(s) ({mask.stray / mask.labels.size:.4%}) are not a class')
    fringes, pixels = fringe_classes(stored)
    if fringes:
        values = ', '.join(map(str, fringes))
        report('mask-fringes', f'the value(s) {values} occur only as fringes of other classes ({pixels} pixels)')
    return mask


def _report_orientation(orientation: int, report: Report) -> None:
    if orientation != 1:
        report('picture-turned', f'its EXIF orientation is {orientation}, which viewers apply')


def _decode_jpeg(content: bytes) -> tuple[np.ndarray, str, int]:
    """Return the pixels as stored, their colour and the EXIF orientation."""
    if not content.rstrip(b'\0').endswith(b'\xff\xd9'):
        raise DamagedPicture('it is a truncated JPEG with the suffix .png')
    try:
        with Image.open(io.BytesIO(content), formats=['JPEG']) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise ValueError(f'it claims {height} x {width} px; at most {MAX_PIXELS:,} are read')
            check_memory(height, width, 4)
            colour = {'L': 'grayscale'}.get(picture.mode, picture.mode)
            return np.array(picture), colour, exif_orientation(picture.info.get('exif', b''))
    except Exception as error:  # Pillow raises many types on damaged data
        raise DamagedPicture(f'it is a damaged JPEG with the suffix .png ({error})') from error


def share_between(mask: np.ndarray) -> float:
    """Return the share of class boundaries whose pixels have a value between the two classes.

    A boundary position is a pixel whose left and right (or upper and lower) neighbours differ by more than 1. In an
    annotated mask its value is one of the two, except where three classes meet. Interpolation and lossy compression
    write values strictly between them. Both mask encodings work, as they keep or reverse the order of the classes.

    ``mask`` is (H, W) uint8 as stored. The share is 0..1; 0 for fewer than MIN_STEPS boundary positions.
    """
    between = steps = 0
    for first, pixel, second in ((mask[:, :-2], mask[:, 1:-1], mask[:, 2:]), (mask[:-2], mask[1:-1], mask[2:])):
        far = cv2.absdiff(first, second) > 1 if first.size else np.zeros(0, bool)
        a, b, c = first[far], pixel[far], second[far]
        steps += len(b)
        between += int(((a < b) & (b < c) | (a > b) & (b > c)).sum())
    return between / steps if steps >= MIN_STEPS else 0.0


def fringe_classes(mask: np.ndarray) -> tuple[list[int], int]:
    """Return the values that occur only as fringes, which JPEG leaves beside boundaries of neighbouring ids.

    ``mask`` is (H, W) uint8 as stored. Return the values other than 0 with less than a tenth of their pixels inside a uniform
    3 x 3 square, and the number of all their pixels; ([], 0) if these are fewer than MIN_FRINGE or than MAX_FRINGE of the
    boundary pixels.
    """
    square = np.ones((3, 3), np.uint8)
    inside = cv2.erode(mask, square) == cv2.dilate(mask, square)
    counts, inner = histogram(mask), histogram(mask * inside)
    fringes = np.flatnonzero((counts > 0) & (inner < _INSIDE * counts))
    fringes = fringes[fringes > 0]
    pixels = int(counts[fringes].sum())
    boundary = np.count_nonzero(mask[:, 1:] != mask[:, :-1]) + np.count_nonzero(mask[1:] != mask[:-1])
    return ([], 0) if pixels < max(MIN_FRINGE, MAX_FRINGE * boundary) else (fringes.tolist(), pixels)
