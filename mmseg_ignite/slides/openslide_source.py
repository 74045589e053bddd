"""Pixels and properties of the slides that OpenSlide opens."""

import os
from typing import Any

import cv2
import numpy as np
from PIL import ImageCms

from ..errors import IgniteError
from ..extras import import_extra
from ..files import printable
from .levels import Level, downsample
from .tiff_tiles import TiffTiles

_CACHE_BYTES = 128 << 20
_BOUNDS = ('y', 'x', 'height', 'width')
_TOLERANCE = 2  # level px by which a level may be too small


def openslide_package() -> Any:
    """Import openslide.

    Raises:
        IgniteError: It, or the library that it loads, is not installed.
    """
    return import_extra('openslide', 'reading whole slides')


def vendor(path: str | os.PathLike) -> str | None:
    """Return OpenSlide's name of the format of a file, e.g. 'aperio'; None if it is none of its formats."""
    openslide = openslide_package()
    try:
        return openslide.OpenSlide.detect_format(path)
    except openslide.OpenSlideError:
        return None


class OpenSlideSource:
    """A slide that OpenSlide opens.

    After an error OpenSlide cannot use its handle again: later reads raise the first error's message.

    Args:
        path: File; for MIRAX, VMS and DICOM the other files lie beside it.
        tiles: The same file as a tiled TIFF, from which pixels are read faster if it is of Aperio and has all its tiles.

    Attributes:
        levels: From fine to coarse, of the full slide, without those whose size does not fit.
        resolution: (um/px across, down, position in the file), or None.
        bounds: (y, x, height, width) of the scanned part in level-0 px, or None.
        icc: ICC profile, or None.
        notes: What was left out, as sentences.
        format: OpenSlide's name of the format.

    Raises:
        IgniteError: OpenSlide cannot open it.
    """

    def __init__(self, path: str | os.PathLike, tiles: TiffTiles | None = None) -> None:
        self.name, self._damage = printable(path), None
        self._openslide = openslide = openslide_package()
        try:
            self._slide = openslide.OpenSlide(path)
            self._slide.set_cache(openslide.OpenSlideCache(_CACHE_BYTES))
            properties = dict(self._slide.properties)
        except openslide.OpenSlideError as error:
            raise IgniteError(
                f'{self.name} cannot be opened as a whole slide ({error}): copy or export it again.'
            ) from error
        self.format, self.icc, self.notes = properties[openslide.PROPERTY_NAME_VENDOR], None, []
        try:
            profile = self._slide.color_profile
            self.icc = profile and profile.tobytes()
        except (openslide.OpenSlideError, ImageCms.PyCMSError, OSError) as error:
            self.notes.append(f'its ICC profile cannot be read ({error})')
        self.resolution, self.bounds = _resolution(properties, openslide), _bounds(properties)
        self._background = _colour(properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR))
        self.levels, self._numbers, self._downsamples = [], [], []
        self._find_levels()
        self._tiles = tiles if self._same_pixels(tiles) else None
        if tiles and not self._tiles:
            tiles.close()

    def _find_levels(self) -> None:
        """Keep the levels that cover the slide; OpenSlide averages both axes of sizes that were rounded or are wrong."""
        full = self._slide.level_dimensions[0][::-1]
        for number, ((width, height), given) in enumerate(
            zip(self._slide.level_dimensions, self._slide.level_downsamples)
        ):
            if any((part + _TOLERANCE) * given < whole for part, whole in zip((height, width), full)):
                sizes = f'{height} x {width} px does not fit {full[0]} x {full[1]} px'
                self.notes.append(f'level {number} of {sizes} and is not used')
                continue
            exact = downsample(full, (height, width))
            self.levels.append(Level((height, width), exact or given))
            self._numbers.append(number)
            self._downsamples.append(given)

    def _same_pixels(self, tiles: TiffTiles | None) -> bool:
        """Return whether the tiles are what OpenSlide shows; it also clears what lies over tiles that the file leaves out."""
        return bool(tiles) and self.format == 'aperio' and not tiles.missing_tiles and tiles.levels == self.levels

    def read(
        self, level: int, top: int, left: int, height: int, width: int, offset: tuple[int, int] = (0, 0)
    ) -> tuple[np.ndarray, int]:
        """Return a rectangle of a level, (height, width, 3) uint8 RGB, and its number of missing pixels.

        Args:
            level: Index in ``levels``.
            top: First row in level px, from ``offset`` on.
            left: First column.
            height: Rows.
            width: Columns.
            offset: (y, x) in level-0 px.

        Raises:
            IgniteError: The file is damaged there.
        """
        if self._damage:
            raise IgniteError(self._damage)
        if self._tiles:
            return self._tiles.read(level, top, left, height, width)
        given, exact = self._downsamples[level], self.levels[level].downsample  # OpenSlide divides by the first
        y, x = (round((start / exact + first) * given) for start, first in zip(offset, (top, left)))
        try:
            pixels = np.asarray(self._slide.read_region((x, y), self._numbers[level], (width, height)))
        except self._openslide.OpenSlideError as error:
            self._damage = (
                f'{self.name} is damaged or truncated: OpenSlide cannot read it at row {y:,}, column {x:,} ({error}); '
                'copy it again.'
            )
            raise IgniteError(self._damage) from error
        return self._opaque(pixels)

    def _opaque(self, pixels: np.ndarray) -> tuple[np.ndarray, int]:
        """Composite RGBA on the background; return RGB and the number of fully transparent pixels."""
        alpha = pixels[..., 3]
        rgb = cv2.cvtColor(pixels, cv2.COLOR_RGBA2RGB)
        if alpha.min() == 255:
            return rgb, 0
        part = alpha < 255
        weight = alpha[part].astype(np.uint16)[:, None]
        rgb[part] = (rgb[part] * weight + self._background * (255 - weight) + 127) // 255
        return rgb, int((alpha == 0).sum())

    def close(self) -> None:
        """Close the file."""
        self._slide.close()
        if self._tiles:
            self._tiles.close()
        self._damage = f'{self.name} was closed; open it again.'


def _resolution(properties: dict, openslide: Any) -> tuple[float, float, str] | None:
    try:
        found = [float(properties[name]) for name in (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)]
    except (KeyError, ValueError):
        return None
    return (*found, 'openslide.mpp-x')


def _bounds(properties: dict) -> tuple[int, int, int, int] | None:
    """Return (y, x, height, width); None unless all four properties exist, as in QuPath."""
    try:
        return tuple(int(properties[f'openslide.bounds-{name}']) for name in _BOUNDS)
    except (KeyError, ValueError):
        return None


def _colour(text: str | None) -> np.ndarray:
    """Return (3,) uint16 RGB of six hexadecimal digits; white without."""
    try:
        return np.frombuffer(bytes.fromhex(text or 'FFFFFF')[:3], np.uint8).astype(np.uint16)
    except ValueError:
        return np.full(3, 255, np.uint16)
