"""Reading the bytes of a picture with suspicion: what decoders silently repair is found here.

Source of the layout: PNG specification, third edition (W3C, 2025), sections 5 and 11.
"""

import io
import struct
import zlib
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

SIGNATURE = b'\x89PNG\r\n\x1a\n'
MAX_SIDE = 65535
"""px; the points of crops are stored as 16-bit coordinates, and the largest ROI known has 2,900."""
MAX_PIXELS = 1 << 27
ORIENTATION = 0x0112
"""The EXIF tag."""
COLOUR_TYPES = {0: 'grayscale', 2: 'RGB', 3: 'palette', 4: 'grayscale with alpha', 6: 'RGBA'}


class DamagedPicture(Exception):
    """The bytes are not a complete picture; the message says why."""


class PngHeader(NamedTuple):
    """What a PNG says of its pixels.

    Attributes:
        height, width: px, as stored.
        bits: a channel.
        colour: one of COLOUR_TYPES.
        orientation: 1..8 as in EXIF, 1 unless an eXIf chunk says otherwise; decoders differ in applying it.
        transparent: whether single colours are marked transparent (tRNS chunk).
    """

    height: int
    width: int
    bits: int
    colour: str
    orientation: int = 1
    transparent: bool = False


def check_png(content: bytes, max_side: int = MAX_SIDE, max_pixels: int = MAX_PIXELS) -> PngHeader:
    """Walk the chunks of a PNG: every checksum right, the end there. ``max_side`` and ``max_pixels`` bound its size.

    Raises:
        DamagedPicture: not a PNG, truncated, a wrong checksum, or an impossible size.
    """
    header = check_header(content[:33], max_side, max_pixels)
    view, position, data = memoryview(content), len(SIGNATURE), False
    orientation, transparent = 1, False
    while True:
        if position + 12 > len(content):
            raise DamagedPicture(f'it is truncated after {len(content)} bytes')
        length, kind = struct.unpack_from('>I4s', content, position)
        end = position + 12 + length
        if end > len(content):
            raise DamagedPicture(f'it is truncated after {len(content)} bytes')
        if zlib.crc32(view[position + 4 : end - 4]) != struct.unpack_from('>I', content, end - 4)[0]:
            raise DamagedPicture(f'a checksum is wrong at byte {position}')
        data |= kind == b'IDAT'
        transparent |= kind == b'tRNS'
        if kind == b'eXIf':
            orientation = exif_orientation(content[position + 8 : end - 4])
        if kind == b'IEND':
            break
        position = end
    if not data:
        raise DamagedPicture('it holds no pixels')
    return header._replace(orientation=orientation, transparent=transparent)


def exif_orientation(exif: bytes) -> int:
    """The orientation of EXIF data, 1..8; 1 (as stored) where they hold none that can be read."""
    try:
        tags = Image.Exif()
        tags.load(exif)
        value = tags.get(ORIENTATION, 1)
    except Exception:  # Pillow raises many types on damaged data
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def check_header(content: bytes, max_side: int = MAX_SIDE, max_pixels: int = MAX_PIXELS) -> PngHeader:
    """The header of a PNG from its first 33 bytes.

    Raises:
        DamagedPicture: not a PNG, or an impossible size.
    """
    if not content.startswith(SIGNATURE):
        raise DamagedPicture('it does not begin as a PNG' if content else 'it is empty')
    if len(content) < 33 or content[8:16] != b'\0\0\0\rIHDR':
        raise DamagedPicture('it is truncated in its header, or has none')
    width, height, bits, colour = struct.unpack_from('>IIBB', content, 16)
    if colour not in COLOUR_TYPES or not 0 < width <= max_side or not 0 < height <= max_side:
        raise DamagedPicture(f'its header is impossible ({height} x {width} px, colour type {colour})')
    if width * height > max_pixels:
        raise DamagedPicture(f'it claims {height} x {width} px; at most {max_pixels:,} pixels are read')
    return PngHeader(height, width, bits, COLOUR_TYPES[colour])


def decode(content: bytes, header: PngHeader) -> np.ndarray:
    """The pixels of a checked PNG as they are stored, (H, W) or (H, W, C); palette PNGs give indices.

    Raises:
        DamagedPicture: the pixel data do not inflate to the size of the header.
    """
    if header.colour == 'RGB' and header.bits == 8:  # OpenCV decodes these about twice as fast as Pillow
        try:
            pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        except cv2.error as error:
            raise DamagedPicture(f'its pixel data cannot be decoded ({error.err})') from error
        if pixels is None or pixels.shape[:2] != (header.height, header.width):
            raise DamagedPicture('its pixel data are damaged')
        if pixels.shape[2] == 4:  # a colour marked transparent
            pixels = pixels[..., :3]
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return np.array(picture)
    except Exception as error:  # Pillow raises many types on damaged data
        raise DamagedPicture(f'its pixel data are damaged ({error})') from error
