"""Find JPEGs that end early.

libjpeg, and with it Pillow, fills missing pixels with gray or decodes the following bytes as pixels, without an error if
an end-of-image marker or enough bytes follow. Its warnings do not reach Python.
"""

import io
import re

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from .png import DamagedPicture, check_memory

BAND = 256
"""Rows of an image that are copied at a time."""
MAX_SCANS = 200
"""Progressive JPEGs have about ten; each costs time in proportion to the pixels, however short it is."""

_EOI, _SOS, _DRI = 0xD9, 0xDA, 0xDD
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_SEGMENTS = {*_FRAMES, 0xC4, 0xCC, *range(0xDA, 0xF0), 0xFE}  # markers followed by a length and that many bytes
_MARKER = re.compile(rb'\xff([^\x00\xff])')
_SCAN_END = re.compile(rb'\xff[^\x00\xff\xd0-\xd7]')
_RESTART = re.compile(rb'(?<!\xff)\xff+([\xd0-\xd7])')
_NOISE = np.random.default_rng(0).integers(0, 255, 512).astype(np.uint8).tobytes()  # no FF, so no markers


def check_jpeg(content: bytes, image: Image.Image | None = None) -> int:
    """Check that a JPEG has its end, and the pixels of all scans and restart intervals.

    Noise is appended to the entropy-coded data: decoders skip it after complete data, and decode it as pixels otherwise.
    Bytes of ``content`` after the end-of-image marker are ignored. ``image`` is the decoded image; without it, ``content``
    is decoded. Return the number of pixels.

    Raises:
        DamagedPicture: the end or pixels are missing, or it is too large, see :func:`.png.check_memory`.
    """
    scans, end = _scans(content)
    parts, position = [], 0
    for first, last, restarts in scans:
        data = content[first:last].rstrip(b'\xff')  # any number of FF may precede a marker
        numbers = [code[0] - 0xD0 for code in _RESTART.findall(data)][:restarts]
        if numbers != [i % 8 for i in range(restarts)]:
            raise DamagedPicture('its pixel data are incomplete')
        parts += [content[position:first], _RESTART.sub(lambda marker: _NOISE + marker[0], data), _NOISE]
        position = last
    parts.append(content[position:end])
    image = _decoded(content[:end]) if image is None else image
    if not _equal(_decoded(b''.join(parts)), image):
        raise DamagedPicture('its pixel data are incomplete')
    return image.width * image.height


def _decoded(content: bytes) -> Image.Image:
    with JpegImageFile(io.BytesIO(content)) as image:
        check_memory(image.height, image.width, 4)
        image.load()
    return image


def _equal(first: Image.Image, second: Image.Image) -> bool:
    """Compare two images in bands of rows: copies of the whole pixels would double the memory."""
    width, height = first.size
    boxes = [(0, top, width, min(top + BAND, height)) for top in range(0, height, BAND)]
    same = first.size == second.size and first.mode == second.mode
    return same and all(first.crop(box).tobytes() == second.crop(box).tobytes() for box in boxes)


def _scans(content: bytes) -> tuple[list[tuple[int, int, int]], int]:
    """Return the scans of a JPEG and the end of its end-of-image marker (ISO/IEC 10918-1, annex B).

    A scan is the first byte of its entropy-coded data, the byte after them, and the number of restart markers they need.
    """
    if not content.startswith(b'\xff\xd8'):
        raise DamagedPicture('its pixel data are not a JPEG with a start and an end')
    scans, headers, frame, interval, position = [], [], b'', 0, 2
    while marker := _MARKER.search(content, position):
        code, position = marker[1][0], marker.end()
        if code == _EOI:
            _check_coefficients(frame, headers)
            return scans, position
        if code not in _SEGMENTS:
            raise DamagedPicture(f'the marker FF{code:02X} is in the middle of its data')
        size = int.from_bytes(content[position : position + 2], 'big')
        body, position = content[position + 2 : position + size], position + size
        if code in _FRAMES:
            frame = bytes([code]) + body
        elif code == _DRI:
            interval = int.from_bytes(body[:2], 'big')
        elif code == _SOS:
            end = _SCAN_END.search(content, position)
            if end is None or len(scans) == MAX_SCANS:
                break
            headers.append(body)
            restarts = (_units(frame, body) - 1) // interval if interval else 0
            scans.append((position, end.start(), restarts))
            position = end.start()
    raise DamagedPicture('it is truncated: its end, the marker FFD9, is missing')


def _check_coefficients(frame: bytes, scans: list[bytes]) -> None:
    """Raise DamagedPicture unless the scans with these headers have all bits of all coefficients."""
    missing = {component: [1] * 64 for component in _factors(frame)}
    for scan in scans:
        first, last, bits = scan[-3:] if frame[0] & 3 == 2 else (0, 63, 0)  # 2: progressive
        for component in scan[1 : 1 + 2 * scan[0] : 2]:
            missing[component][first : last + 1] = [bits & 15] * (last + 1 - first)
    if not scans or any(map(any, missing.values())):
        raise DamagedPicture('its pixel data are incomplete')


def _factors(frame: bytes) -> dict[int, tuple[int, int]]:
    """Return the horizontal and vertical sampling factors of each component."""
    return {c[0]: (c[1] >> 4, c[1] & 15) for c in (frame[i : i + 3] for i in range(7, 7 + 3 * frame[6], 3))}


def _units(frame: bytes, scan: bytes) -> int:
    """Return the number of coded units (MCUs) of a scan, from its header and the frame header (marker and body)."""
    height, width = int.from_bytes(frame[2:4], 'big'), int.from_bytes(frame[4:6], 'big')
    factors = _factors(frame)
    across, down = (max(f[i] for f in factors.values()) for i in (0, 1))
    if scan[0] == 1:  # one component: a unit is one block of it
        own = factors[scan[1]]
        width, height = -(-width * own[0] // across), -(-height * own[1] // down)
        across = down = 1
    return -(-width // (8 * across)) * -(-height // (8 * down))
