"""Read H&E images from other sources: refuse damage, and report everything that changes the pixels.

Python reads the files and Pillow decodes them in memory, so that any file name works.
"""

import contextlib
import html
import io
import re
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from ..errors import IgniteError
from ..files import printable
from ..untrusted import check_decoded_size, max_decoded_bytes
from .jpeg import BAND, check_jpeg
from .png import DamagedPicture, check_png

SUFFIXES = ('.png', '.jpg', '.jpeg', '.tif', '.tiff', '.bmp')
MAX_PIXELS = 1 << 28
"""Default limit of pixels to decode; :func:`mmseg_ignite.untrusted.max_decoded_bytes` limits the memory."""
PIXEL_BYTES = 4
"""Memory of a decoded pixel; Pillow stores RGB with a fourth byte."""
MIN_UM_PER_PX, MAX_UM_PER_PX = 0.05, 5.0
"""Plausible resolutions of microscopes; coarser values (72, 96, 300 dpi) are defaults of cameras or editors."""
_FORMATS = ('PNG', 'JPEG', 'TIFF', 'BMP')
_BLOCKS = ((273, 279), (324, 325))  # TIFF tags: offsets and byte counts of strips, and of tiles
_TIFF_JPEG = {6: ((513, 514),), 7: _BLOCKS}  # tags of the JPEGs by compression; the obsolete 6 has a single one
_UNITS = {'um': 1.0, 'micron': 1.0, 'microns': 1.0, 'nm': 1e-3, 'mm': 1e3, 'cm': 1e4, 'm': 1e6}


class ReadImage(NamedTuple):
    """An image file, ready for the network."""

    pixels: np.ndarray  # (H, W, 3) uint8 RGB, upright, transparent areas white
    um_per_px: float | None  # resolution in the file; None if missing or implausible
    resolution_source: str  # its position in the file, or why it is unknown
    transparent: float  # share of pixels, 0..1, that were at least partly transparent
    orientation: int  # EXIF orientation, 1..8, that was undone; 1 for none
    pages: int  # number of pages in the file; the first was read
    blank: np.ndarray | None  # (H, W) bool, the fully transparent pixels; None if there are none


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> ReadImage:
    """Read an 8-bit RGB image: PNG, JPEG, TIFF or BMP with any suffix; palettes are converted.

    Transparent pixels, which are outside the scan, are composited on white. An EXIF or TIFF orientation is undone, as in
    viewers. Only the first page is read. Images of more than ``max_pixels``, or of more memory than
    :func:`mmseg_ignite.untrusted.max_decoded_bytes`, are refused before decoding.

    Raises:
        IgniteError: missing, empty, damaged or of another format; too many pixels; grayscale, CMYK, float or 16 bits.

    Example:
        >>> read_image('slide.png').pixels.shape
        (1024, 1024, 3)
    """
    name = printable(path)
    try:
        content = _content(Path(path), name, max_pixels)
        with _strict(), Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            _check_size(image, name, max_pixels)
            _check_kind(image, content, name)
            pages = getattr(image, 'n_frames', 1)
            resolution = _resolution(image)
            _check_strips(image, len(content))
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            image.load()
            _check_scan(image, content)
            ImageOps.exif_transpose(image, in_place=True)
            pixels, transparent, blank = _rgb(image)
    except FileNotFoundError as error:
        raise IgniteError(f'{name} does not exist; an image was expected: check the path.') from error
    except OSError as error:  # Pillow reports damage as OSError too
        unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = 'it is damaged, or not a PNG, JPEG, TIFF or BMP' if unknown else error.strerror or error
        raise IgniteError(f'{name} cannot be read ({reason}): export or copy it again.') from error
    except DamagedPicture as error:
        raise IgniteError(f'{name} is damaged ({error}): export or copy it again.') from error
    except IgniteError:
        raise
    except Exception as error:  # decoders raise many types on damaged data: SyntaxError, struct.error, Warning, ...
        raise IgniteError(
            f'{name} cannot be decoded ({type(error).__name__}: {error}): it may be damaged; export or copy it again.'
        ) from error
    return ReadImage(pixels, *resolution, transparent, orientation if 1 <= orientation <= 8 else 1, pages, blank)


def _content(path: Path, name: str, max_pixels: int) -> bytes:
    """Read a regular file, unless its header states too many pixels."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = 'a folder' if stat.S_ISDIR(status.st_mode) else 'not a regular file'
        raise IgniteError(f'{name} is {kind}; an image file was expected: check the path.')
    if not status.st_size:
        raise IgniteError(f'{name} is empty; an image was expected: export or copy it again.')
    with path.open('rb') as stream:
        with _strict(), contextlib.suppress(Image.UnidentifiedImageError, SyntaxError):
            _check_size(Image.open(stream, formats=_FORMATS), name, max_pixels)
        check_decoded_size(name, status.st_size, f'{status.st_size:,} bytes')
        stream.seek(0)
        return stream.read()


@contextlib.contextmanager
def _strict() -> Iterator[None]:
    """Turn Pillow's warnings of damage into errors, and disable its limit of pixels."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', module='PIL')
            warnings.filterwarnings('error', '(?i).*(truncated|corrupt)', module='PIL')
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise IgniteError(
            f'{name} has {height} x {width} px according to its header; at most {max_pixels:,} pixels are read: split it, '
            'or raise the limit with --max-pixels if there is enough memory.'
        )
    check_decoded_size(name, PIXEL_BYTES * width * height, f'{height} x {width} px according to its header')
    if image.format == 'TIFF':  # a tile may be larger than the image
        tile = [int(image.tag_v2.get(tag, 1)) for tag in (323, 322)]
        check_decoded_size(name, PIXEL_BYTES * tile[0] * tile[1], f'tiles of {tile[0]} x {tile[1]} px')


def check_picture(path: str | Path) -> None:
    """Check the size in the header of an image file before another library decodes it.

    Files that Pillow does not know are left to that library.

    Raises:
        IgniteError: it would take more memory than :func:`mmseg_ignite.untrusted.max_decoded_bytes`.
    """
    try:
        with _strict(), Image.open(path) as image:
            _check_size(image, printable(path), 2**62)
    except IgniteError:
        raise
    except Exception:  # Pillow raises many types on damaged data; the library that decodes it reports the damage
        return


def _check_kind(image: Image.Image, content: bytes, name: str) -> None:
    """Raise IgniteError unless an image is 8-bit RGB or a palette; Pillow converts 16 bits silently."""
    bits, mode = 8, image.mode
    if image.format == 'PNG':
        bits = check_png(content, 2**31, 2**62).bits
    elif image.format == 'TIFF':
        bits = max(image.tag_v2.get(258, (1,)))
    if mode in ('RGB', 'RGBA', 'RGBX', 'YCbCr') and bits == 8 or mode in ('P', 'PA'):
        return
    kind = {'L': 'grayscale', 'LA': 'grayscale', '1': 'black and white', 'F': 'float', 'I': 'grayscale'}
    bits = 16 if mode.startswith('I;16') else bits
    found = kind.get(mode.split(';')[0], mode)
    raise IgniteError(f'{name} is {bits}-bit {found}; an 8-bit RGB image was expected: convert it.')


def _check_strips(image: Image.Image, size: int) -> None:
    """Raise DamagedPicture if pixel data of a TIFF are beyond the end of the file."""
    if image.format != 'TIFF':
        return
    end = max((start + count for tags in _BLOCKS for start, count in _blocks(image, tags)), default=0)
    if end > size:
        raise DamagedPicture(f'it is truncated: its pixel data end at byte {end}, the file at {size}')


def _check_scan(image: Image.Image, content: bytes) -> None:
    """Raise DamagedPicture if a JPEG, or a JPEG in a TIFF, is incomplete; see :func:`check_jpeg`."""
    if image.format in ('JPEG', 'MPO'):
        check_jpeg(content, image)
    elif image.format == 'TIFF' and image.tag_v2.get(259) in _TIFF_JPEG:
        tables, left = image.tag_v2.get(347, b'\xff\xd8\xff\xd9')[:-2], 2 * max_decoded_bytes() // PIXEL_BYTES
        # The tables are shared by the strips or tiles.
        for tags in _TIFF_JPEG[image.tag_v2[259]]:
            for start, size in _blocks(image, tags):
                block = content[start : start + size]
                left -= check_jpeg(tables + block[2:] if block.startswith(b'\xff\xd8') else block)
                if left < 0:
                    raise DamagedPicture('its parts have more pixels than the image may have')


def _blocks(image: Image.Image, tags: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Return the values of two TIFF tags in pairs; Pillow returns some single values without a tuple."""
    values = (image.tag_v2.get(tag, ()) for tag in tags)
    return zip(*(value if isinstance(value, tuple) else (value,) for value in values))


def _rgb(image: Image.Image) -> tuple[np.ndarray, float, np.ndarray | None]:
    """Return (H, W, 3) uint8 RGB on white, the share of non-opaque pixels, and a mask of the fully transparent ones.

    Bands of rows are converted, since intermediate results of the whole image would take several times its memory.
    """
    width, height = image.size
    clear, opaque = 0, image.mode not in ('RGBA', 'PA') and 'transparency' not in image.info
    pixels, blank = np.empty((height, width, 3), np.uint8), None
    for top in range(0, height, BAND):
        rows = slice(top, min(top + BAND, height))
        band = np.asarray(image.crop((0, rows.start, width, rows.stop)).convert('RGB' if opaque else 'RGBA'))
        pixels[rows] = band[..., :3]
        if opaque or (band[..., 3] == 255).all():
            continue
        alpha = band[..., 3:].astype(np.uint16)
        pixels[rows] = (band[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
        clear += int((alpha < 255).sum())
        if (alpha == 0).any():
            blank = np.zeros((height, width), bool) if blank is None else blank
            blank[rows] = alpha[..., 0] == 0
    return pixels, clear / (height * width), blank


def _resolution(image: Image.Image) -> tuple[float | None, str]:
    """Return um/px and its position in the file, or None and why it is unknown."""
    dots = [25400.0 / dpi if dpi > 0 else 0.0 for dpi in map(float, image.info.get('dpi') or (0, 0))]
    density = {'PNG': 'pHYs of the PNG', 'TIFF': 'XResolution of the TIFF'}.get(image.format, 'density of the file')
    x, y, source = _described_resolution(image) or (*dots, density)
    if not (x > 0 and y > 0):
        return None, 'the file states none'
    if not 0.99 < x / y < 1.01:
        return None, f'the file states pixels that are not square ({source})'
    if not MIN_UM_PER_PX <= x <= MAX_UM_PER_PX:
        return None, f'the file states {x:.3g} um/px, which is not plausible'
    return x, source


def _described_resolution(image: Image.Image) -> tuple[float, float, str] | None:
    if image.format != 'TIFF':
        return None
    text = str(image.tag_v2.get(270, ''))
    return described_resolution(text, *(float(image.tag_v2.get(tag, 0)) for tag in (282, 283)))


def described_resolution(text: str, across: float = 0, down: float = 0) -> tuple[float, float, str] | None:
    """Return horizontal and vertical um/px of OME, ImageJ or Aperio, which write them into the TIFF description.

    Args:
        text: ImageDescription of the TIFF.
        across: XResolution of the TIFF, pixels per unit; only ImageJ's description needs it.
        down: YResolution.

    Returns:
        (um/px, um/px, position in the file), or None if the description states none.
    """
    text = html.unescape(text)
    if (x := _ome_size(text, 'X')) is not None:
        y = _ome_size(text, 'Y')
        return x, x if y is None else y, 'PhysicalSizeX of OME'
    if aperio := re.search(r'\bMPP\s*=\s*([\d.]+)', text):
        return float(aperio[1]), float(aperio[1]), 'MPP of Aperio'
    if text.startswith('ImageJ') and (unit := re.search(r'^unit=(.*)$', text, re.M)):
        scale = _unit(unit[1])
        return (scale / across, scale / down, 'ImageJ') if scale and min(across, down) > 0 else None
    return None


def _ome_size(text: str, axis: str) -> float | None:
    """Return the pixel size along an axis in um from OME XML; None if it is missing or has an unknown unit."""
    size = re.search(rf'\bPhysicalSize{axis}="([\d.eE+-]+)"', text)
    unit = re.search(rf'\bPhysicalSize{axis}Unit="([^"]*)"', text)
    scale = _unit(unit[1] if unit else 'um')
    return float(size[1]) * scale if size and scale else None


def _unit(spelled: str) -> float | None:
    """Return a unit of length in um; None if unknown. Any non-ASCII prefix counts as the often garbled micro sign."""
    return _UNITS.get(re.sub(r'^(\\u00B5|\?|[^\x00-\x7f]+)m$', 'um', spelled.strip()))
