"""Tiled TIFF, decoded tile by tile: several times as fast as OpenSlide, and with pyramids in SubIFDs (OME-TIFF)."""

import itertools
import os
import re
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import IgniteError
from ..extras import import_extra
from ..files import printable
from ..images.jpeg import check_jpeg
from ..images.reading import described_resolution
from .levels import Level, downsample

_MAX_PAGES = 64
_CACHE_BYTES = 64 << 20
_CENTIMETRE, _INCH = 3, 2
_ZEROS, _MARKER = bytes(64), re.compile(rb'\xff[^\x00\xd0-\xd7]')
_JPEG, _RGB, _YCBCR, _OLD_JPEG = 7, 2, 6, 6
_CODECS = (1, 5, _JPEG, 8, 32946, 33005, 34712, 50000, 50001)  # none, LZW, JPEG, Deflate, JPEG 2000, Zstandard, WebP


class Unreadable(Exception):
    """A TIFF that cannot be read by tiles; the text ends a sentence that begins with its name."""


class _Page(NamedTuple):
    """A tiled picture of a TIFF."""

    page: Any  # tifffile.TiffPage
    size: tuple[int, int]
    tile: tuple[int, int]
    offsets: np.ndarray
    counts: np.ndarray
    reduced: bool
    decode: Any
    jpeg: dict  # arguments of ``decode``


class TiffTiles:
    """The pyramid of a tiled 8-bit RGB TIFF; its levels are pages or SubIFDs.

    Threads may read at the same time. Decoded tiles are kept up to 64 MB.

    Attributes:
        levels: From fine to coarse.
        resolution: (um/px across, down, position in the file), or None.
        icc: ICC profile, or None.
        missing_tiles: Number of tiles that the file leaves out.
        notes: What was left out, as sentences.
        format: 'ome-tiff' or 'tiff'.

    Raises:
        Unreadable: It is no TIFF, has no tiles, or its pixels are not 8-bit RGB.
        IgniteError: It is truncated.

    Example:
        >>> tiles = TiffTiles('slide.ome.tif')
        >>> pixels, missing = tiles.read(0, 1024, 2048, 512, 512)
    """

    _file = -1

    def __init__(self, path: str | os.PathLike) -> None:
        self.path, self.name, self.notes = Path(path), printable(path), []
        tifffile = import_extra('tifffile', 'reading tiled TIFF')
        import_extra('imagecodecs', 'reading tiled TIFF')
        try:
            with tifffile.TiffFile(self.path) as tif:
                pages = [_page(page) for page in itertools.islice(tif.pages, _MAX_PAGES) if page.is_tiled]
                if not len(tif.pages):
                    raise Unreadable('is damaged or cut off: its first page lies outside the file')
                if not pages:
                    raise Unreadable('is a TIFF without tiles, no whole slide')
                base = max(pages, key=lambda page: page.size[0] * page.size[1])
                inner = [_page(page, True) for page in base.page.pages or () if page.is_tiled]
                self.format = 'ome-tiff' if tif.is_ome else 'tiff'
                self.resolution, self.icc = _resolution(base.page, tif.pages[0].description), base.page.iccprofile
        except Unreadable:
            raise
        except Exception as error:  # tifffile raises many types on damaged data
            raise Unreadable(f'is no valid TIFF ({error})') from error
        if fault := _kind_fault(base):
            raise Unreadable(fault)
        self._pages = self._pyramid(base, inner or pages)
        self._check_end()
        self.missing_tiles = sum(int((page.counts == 0).sum()) for page in self._pages)
        self._cache, self._lock, self._bytes = OrderedDict(), threading.Lock(), 0
        self._file = os.open(self.path, os.O_RDONLY)

    def _pyramid(self, base: _Page, others: list[_Page]) -> list[_Page]:
        """Return the pages of the levels, and set ``levels``; others that claim to be reduced are noted."""
        found = {1.0: base}
        for page in others:
            if page is base or page.size == base.size:
                continue
            factor = downsample(base.size, page.size)
            if (fault := _kind_fault(page)) is None and (factor is None or factor in found):
                fault = f'does not fit {_px(base.size)}'
            if fault is None:
                found[factor] = page
            elif page.reduced:
                self.notes.append(f'a level of {_px(page.size)} {fault} and is not used')
        self.levels = [Level(page.size, factor) for factor, page in sorted(found.items())]
        return [found[level.downsample] for level in self.levels]

    def _check_end(self) -> None:
        size = self.path.stat().st_size
        end = max(int((page.offsets + page.counts).max(initial=0)) for page in self._pages)
        if end > size:
            raise IgniteError(
                f'{self.name} is truncated: its pixels end at byte {end:,}, the file at {size:,}; copy it again.'
            )

    def read(self, level: int, top: int, left: int, height: int, width: int) -> tuple[np.ndarray, int]:
        """Return a rectangle of a level, (height, width, 3) uint8 RGB, and its number of missing pixels, which are white.

        Raises:
            IgniteError: A tile is damaged.
        """
        if self._file < 0:
            raise IgniteError(f'{self.name} was closed; open it again.')
        page, missing = self._pages[level], 0
        out = np.empty((height, width, 3), np.uint8)
        rows, columns = (_parts(*span) for span in ((top, height, page.tile[0]), (left, width, page.tile[1])))
        for row, to_y, from_y in rows:
            for column, to_x, from_x in columns:
                tile = self._tile(level, row, column)
                if tile is None:
                    out[to_y, to_x] = 255
                    missing += (to_y.stop - to_y.start) * (to_x.stop - to_x.start)
                else:
                    out[to_y, to_x] = tile[from_y, from_x]
        return out, missing

    def _tile(self, level: int, row: int, column: int) -> np.ndarray | None:
        key = level, row, column
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        tile = self._decoded(self._pages[level], row, column)
        if tile is not None:
            with self._lock:
                self._bytes += tile.nbytes if key not in self._cache else 0
                self._cache[key] = tile
                while self._bytes > _CACHE_BYTES:
                    self._bytes -= self._cache.popitem(last=False)[1].nbytes
        return tile

    def _decoded(self, page: _Page, row: int, column: int) -> np.ndarray | None:
        """Read and decode a tile, (h, w, 3) uint8, cut off at the edge of the level; None if the file leaves it out."""
        down, across = (-(-side // part) for side, part in zip(page.size, page.tile))
        number = row * across + column
        planes = [number + plane * down * across for plane in range(3 if page.page.planarconfig == 2 else 1)]
        if not all(page.counts[plane] for plane in planes):
            return None
        try:
            parts = [self._segment(page, plane) for plane in planes]
        except Exception as error:  # the codecs raise many types on damaged data
            place = f'row {row * page.tile[0]:,}, column {column * page.tile[1]:,} of the level of {_px(page.size)}'
            raise IgniteError(f'{self.name} is damaged at {place} ({error}): copy it or export it again.') from error
        tile = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        return tile[..., :3] if tile.shape[-1] == 3 else _on_white(tile)

    def _segment(self, page: _Page, number: int) -> np.ndarray:
        count, data = int(page.counts[number]), b''
        while len(data) < count:
            part = os.pread(self._file, count - len(data), int(page.offsets[number]) + len(data))
            if not part:
                raise EOFError('the file ends before the tile')
            data += part
        if page.jpeg:
            _check_jpeg(data, page.jpeg['jpegtables'])
        return page.decode(data, number, **page.jpeg)[0][0]

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    __del__ = close


def _page(page: Any, reduced: bool = False) -> _Page:
    jpeg = {'jpegtables': page.jpegtables, 'jpegheader': page.jpegheader} if page.compression == _JPEG else {}
    return _Page(
        page,
        (page.imagelength, page.imagewidth),
        (page.tilelength, page.tilewidth),
        np.array(page.dataoffsets, np.int64),
        np.array(page.databytecounts, np.int64) * (np.array(page.dataoffsets, np.int64) > 0),
        reduced or bool(page.is_reduced),
        page.decode,  # made now, since it reads the file
        jpeg,
    )


def _check_jpeg(data: bytes, tables: bytes | None) -> None:
    """Raise an error if a JPEG is damaged; decoders fill what they lack with grey, or decode other bytes, silently.

    Only data with markers or many zeros inside, which are rare in whole JPEGs, are decoded for the check.
    """
    start, end = data.find(b'\xff\xda'), data.rfind(b'\xff\xd9')
    if end < 0:
        raise ValueError('a JPEG without its end')
    if data.find(_ZEROS, start, end) >= 0 or _MARKER.search(data, start + 2, end):
        check_jpeg(data[:2] + tables[2:-2] + data[2:] if tables else data)


def _kind_fault(found: _Page) -> str | None:
    """Return why the pixels of a page cannot be read, or None if they are 8-bit RGB in a usual compression."""
    page = found.page
    colours = page.photometric == _RGB or (page.photometric == _YCBCR and page.compression == _JPEG)
    if page.dtype != np.uint8 or page.samplesperpixel not in (3, 4) or not colours:
        kind = f'{page.samplesperpixel} x {page.dtype} ({page.photometric.name})'
        return f'holds pixels of {kind}; 8-bit RGB was expected'
    if page.compression not in _CODECS or page.planarconfig == 2 and page.samplesperpixel != 3:
        return f'is compressed with {page.compression.name}, which is not read'
    tiles = [-(-side // part) for side, part in zip(found.size, found.tile)]
    if len(found.offsets) < tiles[0] * tiles[1] * (3 if page.planarconfig == 2 else 1):
        return 'lists fewer tiles than its size needs'
    return None


def _resolution(page: Any, description: str) -> tuple[float, float, str] | None:
    """Return the um/px that the description or the tags of a page state."""
    across, down = (_rational(page, tag) for tag in (282, 283))
    if found := described_resolution(description or '', across, down):
        return found
    unit = {_INCH: 25400.0, _CENTIMETRE: 10000.0}.get(int(page.resolutionunit or 0))
    return (unit / across, unit / down, 'XResolution of the TIFF') if unit and min(across, down) > 0 else None


def _rational(page: Any, tag: int) -> float:
    numerator, denominator = page.tags[tag].value if tag in page.tags else (0, 1)
    return numerator / denominator if denominator else 0.0


def _parts(start: int, length: int, tile: int) -> list[tuple[int, slice, slice]]:
    """Return (number of a tile, its place in the rectangle, the part of it) along an axis."""
    found = []
    for number in range(start // tile, -(-(start + length) // tile)):
        first, last = max(start, number * tile), min(start + length, (number + 1) * tile)
        found.append((number, slice(first - start, last - start), slice(first - number * tile, last - number * tile)))
    return found


def _on_white(tile: np.ndarray) -> np.ndarray:
    """Composite (h, w, 4) uint8 RGBA on white."""
    alpha = tile[..., 3:].astype(np.uint16)
    return ((tile[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _px(size: tuple[int, int]) -> str:
    return f'{size[0]} x {size[1]} px'
