"""Open whole slides: their resolution, the part that was scanned, and views of them at a resolution."""

import io
import math
import os
import stat
import struct
import threading
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageCms

from ..errors import IgniteError
from ..files import printable
from ..images.reading import MAX_UM_PER_PX, MIN_UM_PER_PX
from .levels import EQUAL, approximate, nearest_level
from .openslide_source import OpenSlideSource, openslide_package, vendor
from .tiff_tiles import TiffTiles, Unreadable
from .view import SlideView

SLIDE_SUFFIXES = ('.svs', '.ndpi', '.mrxs', '.scn', '.vms', '.vmu', '.bif', '.svslide', '.dcm')
_MAYBE_SLIDES = ('.zvi', '.czi')
_TILE_WIDTH, _FIRST_PAGES = 322, 16
_MAX_ENLARGEMENT = 2
_SERIES = b'\x20\x00\x0e\x00UI'  # DICOM: SeriesInstanceUID, little endian, explicit
_SLIDE_KINDS = 'a file of a scanner that OpenSlide knows, or a tiled 8-bit RGB TIFF'


class Slide:
    """An open whole slide; see :func:`open_slide`.

    Coordinates begin at the upper left of the scanned part ("bounds") if the file states one, as in QuPath.

    Attributes:
        path: The file.
        format: OpenSlide's name of the format, e.g. 'aperio', or 'ome-tiff' or 'tiff'.
        um_per_px: Resolution of level 0.
        um_per_px_source: Where it stands in the file, or 'option'.
        stated_um_per_px: (x, y) um/px in the file, or None; it may be implausible if an option overrides it.
        size: (H, W) of level 0 inside the bounds.
        offset: (y, x) of the bounds in level-0 px, (0, 0) without.
        full_size: (H, W) of level 0.
        levels: The levels of the pyramid that can be used, from fine to coarse, of the full slide.
        icc: ICC profile, or None.
        notes: What was ignored in the file, as sentences.
    """

    def __init__(
        self, path: str | os.PathLike, source: OpenSlideSource | TiffTiles, um_per_px: float | None = None
    ) -> None:
        self.path, self.name, self._source = Path(path), printable(path), source
        self.format, self.icc, self.notes, self.levels = source.format, source.icc, source.notes, source.levels
        self.full_size = self.levels[0].size
        self.stated_um_per_px = source.resolution and source.resolution[:2]
        self.um_per_px, self.um_per_px_source = _um_per_px(self.name, source.resolution, um_per_px)
        bounds = getattr(source, 'bounds', None) or (0, 0, *self.full_size)
        self.offset, self.size = _cropped(self.name, bounds, self.full_size)
        self._convert, self._icc_lock = None, threading.Lock()

    def at(self, um_per_px: float, icc: bool = False) -> SlideView:
        """Return the slide at a resolution.

        The coarsest level that is not coarser is reduced by area; resolutions within 5 % count as equal, so that pixels are
        not resampled for it. Up to twice the resolution of level 0 is interpolated.

        Args:
            um_per_px: Resolution in um/px.
            icc: Convert the colours from the slide's ICC profile to sRGB.

        Raises:
            IgniteError: The slide is more than twice as coarse, smaller than a pixel at this resolution, or has no profile
                although ``icc`` is set.

        Example:
            >>> open_slide('slide.svs').at(0.5).shape
            (15000, 20000, 3)
        """
        if not (math.isfinite(um_per_px) and um_per_px > 0):
            raise IgniteError(f'the resolution is {um_per_px} um/px; a positive number was expected.')
        if um_per_px * (1 + EQUAL) * _MAX_ENLARGEMENT < self.um_per_px:
            raise IgniteError(
                f'{self.name} has {self.um_per_px:.4g} um/px, and {um_per_px:.4g} um/px is needed; at most '
                f'{_MAX_ENLARGEMENT} times coarser was expected: use a scan of a higher magnification.'
            )
        level = nearest_level(self.levels, self.um_per_px, um_per_px)
        found = self.um_per_px * self.levels[level].downsample
        return self._view(
            level, approximate(um_per_px / found) if um_per_px > found * (1 - EQUAL) else _finer(um_per_px / found), icc
        )

    def _view(self, level: int, ratio: Fraction, icc: bool = False) -> SlideView:
        size, downsample = self.levels[level]
        limits = (part - math.floor(start / downsample) for part, start in zip(size, self.offset))
        inside = [min(math.floor(side / downsample), limit) for side, limit in zip(self.size, limits)]
        step, read = downsample * float(ratio), partial(self._source.read, level)
        if not all(side // ratio for side in inside):
            raise IgniteError(
                f'{self.name} has {self.size[0]} x {self.size[1]} px of {self.um_per_px:.4g} um; it is smaller than one '
                f'pixel of {self.um_per_px * step:.4g} um: choose a finer resolution.'
            )
        if self.offset != (0, 0):
            read = partial(read, offset=self.offset)
        convert = self._srgb() if icc else None
        return SlideView(read, inside, ratio, self.um_per_px * step, level, step, convert)

    def reduced(self, um_per_px: float) -> SlideView:
        """Return the slide at about a coarse resolution: a level reduced by a whole number, or not at all.

        Used for pictures of the whole slide, which fit the memory. Its exact resolution is never coarser.
        """
        level = nearest_level(self.levels, self.um_per_px, um_per_px)
        side = self.um_per_px * self.levels[level].downsample
        smallest = min(self.size) / self.levels[level].downsample
        return self._view(level, Fraction(max(1, min(math.floor(um_per_px / side), math.floor(smallest)))))

    def thumbnail(self, max_side: int) -> np.ndarray:
        """Return the slide inside its bounds, (h, w, 3) uint8 RGB, reduced by area so that its longer side has at most
        ``max_side`` px."""
        factor = max(1.0, max(self.size) / max_side)
        view = self.reduced(self.um_per_px * factor)
        pixels = view[: view.shape[0]]
        height, width = (max(1, round(side / factor)) for side in self.size)
        return (
            pixels
            if pixels.shape[:2] == (height, width)
            else cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
        )

    def _srgb(self) -> Callable[[np.ndarray], np.ndarray]:
        """Return the conversion of (h, w, 3) uint8 pixels from the slide's colour profile to sRGB."""
        if self.icc is None:
            raise IgniteError(f'{self.name} has no ICC profile to convert its colours with: leave --icc out for it.')
        with self._icc_lock:
            if self._convert is None:
                self._convert = _conversion(self.icc, self.name, self._icc_lock)
        return self._convert

    def close(self) -> None:
        """Close the file."""
        self._source.close()

    def __enter__(self) -> 'Slide':
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_slide(path: str | os.PathLike, um_per_px: float | None = None) -> Slide:
    """Open a whole slide.

    OpenSlide reads the formats of scanners, DICOM included. The tiles of Aperio files, of tiled TIFF and of OME-TIFF are
    decoded directly, which is faster; OpenSlide does not see pyramids in SubIFDs.

    Args:
        path: File of a slide. For DICOM any file of its series; see :func:`dicom_slides`.
        um_per_px: Resolution of level 0, instead of the one in the file.

    Raises:
        IgniteError: The file is missing, empty, truncated or no slide; it states no resolution of 0.05 to 5 um/px with square
            pixels and ``um_per_px`` is not given; or a package is not installed.

    Example:
        >>> with open_slide('slide.svs') as slide:
        ...     view = slide.at(0.5)
        ...     window = view[0:512, 0:512]  # (512, 512, 3) uint8 RGB
    """
    path, name = Path(path), printable(path)
    head, tiles, reason = _head(path, name), None, 'is no file of a slide'
    found = vendor(path)
    if head.startswith((b'II', b'MM')):
        try:
            tiles = TiffTiles(path)
        except Unreadable as error:
            reason = str(error)
    direct = tiles is not None and found in (None, 'generic-tiff')
    if not direct and found is None:
        raise IgniteError(f'{name} {reason}; {_SLIDE_KINDS}, was expected: check the file, or copy it again.')
    try:
        source = tiles if direct else OpenSlideSource(path, tiles)
        return Slide(path, source, um_per_px)
    except BaseException:
        if tiles is not None:
            tiles.close()
        raise


def is_slide(path: str | os.PathLike) -> bool:
    """Return whether a file is to be read as a whole slide, and not as an image.

    Slides are files with the suffix of a scanner, DICOM, and tiled TIFF whatever their suffix. PNG, JPEG, BMP and TIFF
    without tiles are images. A damaged file with the suffix of a scanner counts as a slide, whose opening reports it.

    Example:
        >>> is_slide('slide.svs'), is_slide('roi.png')
        (True, False)
    """
    path = Path(path)
    if not path.is_file():
        return False
    if path.suffix.lower() in SLIDE_SUFFIXES:
        return True
    with path.open('rb') as stream:
        if stream.read(2) in (b'II', b'MM'):
            return _is_tiled(path)
        if _is_dicom(path):
            return True
    return path.suffix.lower() in _MAYBE_SLIDES and vendor(path) is not None


def dicom_slides(folder: str | os.PathLike) -> list[Path]:
    """Return one file of each DICOM series in a folder, sorted: each series is a slide.

    Raises:
        IgniteError: The folder cannot be read.

    Example:
        >>> [open_slide(path) for path in dicom_slides('case_7')]
    """
    folder, found = Path(folder), {}
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise IgniteError(f'{printable(folder)} cannot be read ({error.strerror}): check the path.') from error
    for path in files:
        if _is_dicom(path) and vendor(path) == 'dicom':
            found.setdefault(_series(path), path)
    return list(found.values())


def _series(path: Path) -> str:
    """Return the SeriesInstanceUID of a DICOM file."""
    with path.open('rb') as stream:
        head = stream.read(1 << 16)
    if (place := head.find(_SERIES, 128)) >= 0:
        start = place + len(_SERIES) + 2
        return (
            head[start : start + struct.unpack_from('<H', head, start - 2)[0]].rstrip(b'\0 ').decode('ascii', 'replace')
        )
    with openslide_package().OpenSlide(path) as slide:
        return slide.properties['dicom.SeriesInstanceUID']


def _is_dicom(path: Path) -> bool:
    with path.open('rb') as stream:
        return stream.read(132)[128:] == b'DICM'


def _is_tiled(path: Path) -> bool:
    """Return whether one of the first pages of a TIFF or BigTIFF has tiles; nothing is decoded."""
    with path.open('rb') as stream:
        head = stream.read(16)
        order = '<' if head.startswith(b'II') else '>'
        big = head[2:4] == struct.pack(order + 'H', 43)
        number, pointer, entry = ('Q', 'Q', 20) if big else ('H', 'I', 12)
        try:
            place = struct.unpack_from(order + pointer, head, 8 if big else 4)[0]
            for _ in range(_FIRST_PAGES):
                stream.seek(place)
                count = struct.unpack(order + number, stream.read(struct.calcsize(number)))[0]
                entries = stream.read(entry * min(count, 4096) + 8)
                if _TILE_WIDTH in (struct.unpack_from(order + 'H', entries, entry * i)[0] for i in range(count)):
                    return True
                if not (place := struct.unpack_from(order + pointer, entries, entry * count)[0]):
                    return False
        except (struct.error, OSError, OverflowError):  # damaged: the reader reports it
            return False
    return False


def _head(path: Path, name: str) -> bytes:
    """Return the first bytes of a regular file."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = 'a folder' if stat.S_ISDIR(status.st_mode) else 'not a regular file'
            raise IgniteError(f'{name} is {kind}; the file of a whole slide was expected: check the path.')
        if not status.st_size:
            raise IgniteError(f'{name} is empty; a whole slide was expected: copy or export it again.')
        with path.open('rb') as stream:
            return stream.read(8)
    except FileNotFoundError as error:
        raise IgniteError(f'{name} does not exist; a whole slide was expected: check the path.') from error
    except OSError as error:
        raise IgniteError(
            f'{name} cannot be read ({error.strerror}): correct the permissions or copy it again.'
        ) from error


def _um_per_px(name: str, stated: tuple[float, float, str] | None, option: float | None) -> tuple[float, str]:
    """Return the um/px of level 0 and its source."""
    limits = f'{MIN_UM_PER_PX} to {MAX_UM_PER_PX:g} um/px'
    if option is not None:
        if not MIN_UM_PER_PX <= option <= MAX_UM_PER_PX:
            raise IgniteError(f'--mpp is {option}; {limits} was expected: correct it.')
        return float(option), 'option'
    remedy = 'give the resolution of its level 0 with --mpp'
    if stated is None:
        raise IgniteError(f'{name} states no resolution; {limits} was expected: {remedy}.')
    x, y, source = stated
    if not all(MIN_UM_PER_PX <= value <= MAX_UM_PER_PX for value in (x, y)):
        raise IgniteError(f'{name} states {x:.4g} x {y:.4g} um/px ({source}); {limits} was expected: {remedy}.')
    if max(x, y) > 1.01 * min(x, y):
        raise IgniteError(
            f'{name} states pixels of {x:.4g} x {y:.4g} um ({source}); square ones were expected: {remedy}.'
        )
    return (x + y) / 2, source


def _cropped(name: str, bounds: tuple[int, ...], full: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (y, x) and (H, W) of bounds that lie inside a slide."""
    offset, size = tuple(bounds[:2]), tuple(bounds[2:])
    if min(offset) < 0 or min(size) < 1 or any(start + side > whole for start, side, whole in zip(offset, size, full)):
        raise IgniteError(
            f'{name} states bounds of {size[0]} x {size[1]} px at row {offset[0]}, column {offset[1]}, outside its '
            f'{full[0]} x {full[1]} px: export it again.'
        )
    return offset, size


def _finer(ratio: float) -> Fraction:
    """Return the ratio of an enlargement, 1/2.1 to 1, as p/q with the smallest q <= 16 within 1 %, else the nearest."""
    return 1 / approximate(1 / ratio)


def _conversion(icc: bytes, name: str, lock: threading.Lock) -> Callable[[np.ndarray], np.ndarray]:
    """Return the conversion of a colour profile to sRGB."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile('sRGB'), 'RGB', 'RGB')
    except (ImageCms.PyCMSError, OSError) as error:
        raise IgniteError(
            f'{name} has an ICC profile that cannot be used ({error}): leave --icc out for it.'
        ) from error

    def convert(pixels: np.ndarray) -> np.ndarray:
        with lock:
            return np.asarray(ImageCms.applyTransform(Image.fromarray(np.ascontiguousarray(pixels)), transform))

    return convert
