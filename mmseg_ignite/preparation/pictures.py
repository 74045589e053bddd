"""Decode the images and masks of a release, and report every doubt about their pixels.

Pixels are used as stored: an EXIF orientation is reported but not applied, in images and masks alike.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from ..images.png import MAX_PIXELS, DamagedPicture, check_png, decode, exif_orientation
from ..labels import DecodedMask, decode_mask
from .interpolation import MAX_BETWEEN, fringe_classes, share_between

Report = Callable[[str, str], None]
"""Callback for the kind and the detail of a finding."""


def read_image(content: bytes, report: Report) -> np.ndarray | None:
    """Decode (H, W, 3) uint8 RGB; None, with a report, if the format would change the colours.

    Raises:
        DamagedPicture: the bytes are not a complete PNG or JPEG.
    """
    if content[:3] == b'\xff\xd8\xff':
        image, colour, orientation = _decode_jpeg(content)
        bits = 8
        report('image-lossy', 'it is a JPEG with the suffix .png')
    else:
        header = check_png(content)
        colour, bits, orientation = header.colour, header.bits, header.orientation
        if colour == 'palette':
            image, colour, bits = decode(content, header, 'RGBA' if header.transparent else 'RGB'), 'RGB', 8
            report('image-palette', 'it is a palette PNG')
        elif header.transparent and colour == 'RGB' and bits == 8:
            image = decode(content, header, 'RGBA')
        else:
            image = decode(content, header)
    _report_orientation(orientation, report)
    if bits == 8 and image.shape[2:] == (4,):
        colour = 'RGBA'
    if colour == 'RGBA' and bits == 8 and (image[..., 3] == 255).all():
        report('image-opaque-alpha', 'it is RGBA')
        return np.ascontiguousarray(image[..., :3])
    if colour != 'RGB' or bits != 8:
        clear = ' with transparent pixels' if colour == 'RGBA' and bits == 8 else ''
        report('image-format', f'it is {bits}-bit {colour}{clear}; 8-bit RGB was expected')
        return None
    return image


def read_mask(content: bytes, report: Report, ids: dict[int, int] | None = None) -> DecodedMask | None:
    """Decode a mask to train ids; None, with a report, if it cannot be trusted.

    Args:
        content: bytes of the file.
        report: see Report.
        ids: see :func:`mmseg_ignite.labels.decode_mask`.

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
            if picture.width * picture.height > MAX_PIXELS:
                raise DamagedPicture(
                    f'it claims {picture.height} x {picture.width} px; at most {MAX_PIXELS:,} are read'
                )
            colour = {'L': 'grayscale'}.get(picture.mode, picture.mode)
            return np.array(picture), colour, exif_orientation(picture.info.get('exif', b''))
    except DamagedPicture:
        raise
    except Exception as error:  # Pillow raises many types on damaged data
        raise DamagedPicture(f'it is a damaged JPEG with the suffix .png ({error})') from error
