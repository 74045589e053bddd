"""Check PNG files strictly: find damage that decoders repair silently.

Source of the layout: PNG specification, third edition (W3C, 2025), sections 5 and 11.
"""

import io
import struct
import zlib
from typing import NamedTuple

import cv2
import numpy as np
from PIL import ExifTags, Image

from ..untrusted import MAX_GB_VARIABLE, max_decoded_bytes

SIGNATURE = b'\x89PNG\r\n\x1a\n'
MAX_SIDE = 65535  # px; points of crops are stored as 16-bit coordinates, and the largest known ROI has 2,900 px
MAX_PIXELS = 1 << 27
COLOUR_TYPES = {0: 'grayscale', 2: 'RGB', 3: 'palette', 4: 'grayscale with alpha', 6: 'RGBA'}
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


class DamagedPicture(Exception):
    """The bytes are not a complete image; the message gives the reason."""


class PngHeader(NamedTuple):
    """Pixel format of a PNG."""

    height: int  # px, as stored
    width: int
    bits: int  # per channel
    colour: str  # one of the COLOUR_TYPES
    orientation: int = 1  # EXIF orientation 1..8 from the eXIf chunk, 1 without one; decoders differ in applying it
    transparent: bool = False  # whether single colours are transparent (tRNS chunk)


def check_png(content: bytes, max_side: int = MAX_SIDE, max_pixels: int = MAX_PIXELS) -> PngHeader:
    """Check the chunks of a PNG: all checksums are right, and the end exists.

    Bytes of ``content`` after the end are ignored. ``max_side`` limits height and width in px.

    Raises:
        DamagedPicture: not a PNG, truncated, a wrong checksum, or an impossible size.
    """
    # Pillow is not enough. Its load() ignores the checksums of the pixels and a missing end; its verify() ignores the
    # checksum of the end, also if it is cut off, and cannot be followed by load(). It reports 16-bit RGB as RGB, finds an
    # eXIf chunk after the pixels only by decoding them, and refuses long texts.
    header = check_header(content[:33], max_side, max_pixels)
    chunks, kind, position = {}, b'', len(SIGNATURE)
    while kind != b'IEND':
        length, kind = struct.unpack_from('>I4s', content, position) if position + 12 <= len(content) else (2**32, b'')
        end = position + 12 + length
        if end > len(content):
            raise DamagedPicture(f'it is truncated after {len(content)} bytes')
        chunk = memoryview(content)[position + 4 : end - 4]
        if zlib.crc32(chunk) != int.from_bytes(content[end - 4 : end], 'big'):
            raise DamagedPicture(f'a checksum is wrong at byte {position}')
        chunks[kind] = chunk[4:]
        position = end
    if b'IDAT' not in chunks:
        raise DamagedPicture('it has no pixels')
    return header._replace(orientation=exif_orientation(bytes(chunks.get(b'eXIf', b''))), transparent=b'tRNS' in chunks)


def exif_orientation(exif: bytes) -> int:
    """Return the orientation in EXIF data, 1..8; 1 (as stored) if it is missing or unreadable."""
    try:
        tags = Image.Exif()
        tags.load(exif)
        value = tags.get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises many types on damaged data
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def check_header(content: bytes, max_side: int = MAX_SIDE, max_pixels: int = MAX_PIXELS) -> PngHeader:
    """Read the header of a PNG from its first 33 bytes; raise DamagedPicture if it is not one or has an impossible size."""
    if not content.startswith(SIGNATURE):
        raise DamagedPicture('it does not start like a PNG' if content else 'it is empty')
    if len(content) < 33 or content[8:16] != b'\0\0\0\rIHDR':
        raise DamagedPicture('it is truncated in its header, or has none')
    width, height, bits, colour = struct.unpack_from('>IIBB', content, 16)
    if colour not in COLOUR_TYPES or not 0 < width <= max_side or not 0 < height <= max_side:
        raise DamagedPicture(f'its header is impossible ({height} x {width} px, colour type {colour})')
    if width * height > max_pixels:
        raise DamagedPicture(f'it claims {height} x {width} px; at most {max_pixels:,} pixels are read')
    check_memory(height, width, _CHANNELS[colour] * max(1, bits // 8))
    return PngHeader(height, width, bits, COLOUR_TYPES[colour])


def check_memory(height: int, width: int, pixel_bytes: int) -> None:
    """Raise DamagedPicture if an image of this size is larger when decoded than a file may be.

    See :func:`mmseg_ignite.untrusted.max_decoded_bytes`; call it before decoding.
    """
    size = height * width * pixel_bytes
    if size > (limit := max_decoded_bytes()):
        raise DamagedPicture(
            f'it claims {height} x {width} px, {size / 1e9:.3g} GB when decoded; at most {limit / 1e9:g} GB are read, which '
            f'{MAX_GB_VARIABLE} sets'
        )


def decode(content: bytes, header: PngHeader, mode: str | None = None) -> np.ndarray:
    """Decode a checked PNG as stored, to (H, W) or (H, W, C); palette PNGs give indices.

    ``header`` is from :func:`check_png`; ``mode`` is a mode of Pillow to convert to, e.g. 'RGBA'. Raise DamagedPicture if
    the pixel data do not have the size in the header.
    """
    if mode is None and header.colour == 'RGB' and header.bits == 8:  # OpenCV is about twice as fast as Pillow
        try:
            pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        except cv2.error as error:
            raise DamagedPicture(f'its pixel data cannot be decoded ({error.err})') from error
        if pixels is None or pixels.shape[:2] != (header.height, header.width):
            raise DamagedPicture('its pixel data are damaged')
        return cv2.cvtColor(pixels[..., :3], cv2.COLOR_BGR2RGB)  # of a fourth channel if a colour is transparent
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return np.array(picture.convert(mode) if mode else picture)
    except Exception as error:  # Pillow raises many types on damaged data
        raise DamagedPicture(f'its pixel data are damaged ({error})') from error
