"""Rasters of slides as tiled, pyramidal OME-TIFF files, written in one pass over the raster and in bounded memory.

Layout: BigTIFF with tiles of 512 x 512 px, lossless deflate, one page a plane, and the smaller levels as SubIFDs, each half
the size of the one before, until both sides are at most 512 px (OME-TIFF 6 pyramids). Bio-Formats (QuPath, Fiji, OMERO) and
tifffile read all levels; OpenSlide, Pillow and GDAL see the full size. Equal rasters give equal bytes: no date, no UUID.

Label files are palette images. Bio-Formats' OME-TIFF reader marks them as indexed with "false" colours, which means that it
returns the ids and offers the palette as a lookup table; QuPath prefers it to OpenSlide for files that are not RGB. Other
programs show the colours instead of a nearly black image.
"""

import math
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO
from xml.sax.saxutils import quoteattr

import cv2
import numpy as np

from ..errors import IgniteError
from ..extras import import_extra
from ..files import WRITTEN_BY, result_file, writing
from ..labels import NUM_CLASSES, PALETTE, RAW_LABEL_MAP, encode_mask
from .raster import DiskRaster

TILE = 512
"""Side of a tile, and the largest side of the smallest level (px)."""
_THREADS = 2
_ZLIB_LEVEL = 2  # of 1 to 9; faster than 1 on label maps, and 6 takes four times as long for 0.6 times the size
_RAW_IDS = encode_mask(np.arange(256, dtype=np.uint8))
_SCHEMA = 'http://www.openmicroscopy.org/Schemas/OME/2016-06'
CLASSES_NAMESPACE = 'mmseg_ignite/classes'
"""Namespace of the OME map annotation {raw id: class name} in label files."""
Raster = np.ndarray | DiskRaster


def level_sizes(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Return (height, width) in px of all levels of a pyramid, largest first; level k has ceil(side / 2 ** k).

    Example:
        >>> level_sizes((1500, 700))
        [(1500, 700), (750, 350), (375, 175)]
    """
    sizes = [tuple(map(int, shape))]
    while max(sizes[-1]) > TILE:
        sizes.append(tuple(-(-side // 2) for side in sizes[-1]))
    return sizes


def write_label_pyramid(
    path: str | os.PathLike,
    raster: Raster,
    um_per_px: float,
    name: str = '',
    on_rows: Callable[[int], object] | None = None,
) -> None:
    """Write labels as a pyramidal palette OME-TIFF of raw ids (train id + 1), uint8.

    Pixel (y, x) of level k is ``raster[y * 2 ** k, x * 2 ** k]`` (nearest neighbour, top left of its square), so every level
    holds labels that are in the raster. The class names are a map annotation in the OME-XML, {raw id: name}.

    Args:
        path: File to write, e.g. ``NAME.ome.tif``.
        raster: (H, W) uint8 train ids 0..15: an array, or another object that is read as ``raster[top:bottom]``.
        um_per_px: Resolution of the raster in um/px.
        name: Name of the image that viewers show; by default that of the file.
        on_rows: Callback that receives the number of rows finished since the last call.

    Raises:
        IgniteError: A value is not a train id, the raster is not (H, W) uint8, the resolution is not above 0, the file
            cannot be written, or it exists and was not written by this package; nothing is left half-written.

    Example:
        >>> write_label_pyramid('slide.ome.tif', labels, um_per_px=0.5)
        >>> tifffile.imread('slide.ome.tif', level=2)  # raw ids of every fourth pixel
    """

    def encode(rows: np.ndarray) -> np.ndarray:
        ids = cv2.LUT(rows, _RAW_IDS)
        if not ids.all():
            raise IgniteError(
                f'the labels for {path} hold the value {rows.max()}; train ids 0 to {NUM_CLASSES - 1} were expected: '
                'correct the label raster.'
            )
        return ids

    colormap = np.zeros((3, 256), np.uint16)
    colormap[:, _RAW_IDS[:NUM_CLASSES]] = np.array(PALETTE, np.uint16).T * 257  # 0..65535
    classes = {str(raw_id): label for label, raw_id in RAW_LABEL_MAP.items() if raw_id}
    image = _Image(Path(path), [raster], um_per_px, name, ['Tissue class'], classes=classes)
    _write(image, encode, lambda rows: rows[::2, ::2], on_rows, photometric='palette', colormap=colormap)


def write_map_pyramid(
    path: str | os.PathLike,
    rasters: Sequence[Raster],
    names: Sequence[str],
    um_per_px: float,
    name: str = '',
    description: str = '',
    colours: Sequence[tuple[int, int, int]] | None = None,
    on_rows: Callable[[int], object] | None = None,
) -> None:
    """Write uint8 maps, e.g. probabilities or entropy, as the channels of a pyramidal OME-TIFF.

    A pixel of a level is the mean of the 2 x 2 pixels of the level before it (at an odd edge, of those that exist), with
    halves rounded up.

    Args:
        path: File to write, e.g. ``NAME_probability.ome.tif``.
        rasters: (H, W) uint8 maps of equal size, one a channel; see :func:`write_label_pyramid`.
        names: Names of the channels.
        um_per_px: Resolution of the maps in um/px.
        name: Name of the image that viewers show; by default that of the file.
        description: What the values mean, e.g. 'probability times 255'.
        colours: (R, G, B) in which viewers show each channel; by default they choose.
        on_rows: Callback that receives the number of rows finished since the last call; C x H in total.

    Raises:
        IgniteError: As :func:`write_label_pyramid`; also if numbers of channels, names and colours, or sizes, differ.

    Example:
        >>> write_map_pyramid('slide_entropy.ome.tif', [entropy], ['Entropy'], um_per_px=0.5)
    """
    image = _Image(Path(path), list(rasters), um_per_px, name, list(names), description, colours)
    _write(image, lambda rows: rows, _halve_by_mean, on_rows, photometric='minisblack')


def _halve_by_mean(rows: np.ndarray) -> np.ndarray:
    """Return the means of 2 x 2 pixels, halves rounded up; an odd last row or column counts twice."""
    odd = [side % 2 for side in rows.shape]
    rows = np.pad(rows, ((0, odd[0]), (0, odd[1])), 'edge') if any(odd) else rows
    # OpenCV's area mean of exactly 2 x 2 uint8 pixels is (sum + 2) >> 2; it is ten times as fast as NumPy.
    return cv2.resize(rows, (rows.shape[1] // 2, rows.shape[0] // 2), interpolation=cv2.INTER_AREA)


@dataclass
class _Image:
    """What is written: planes of equal size, and what the OME-XML says of them."""

    path: Path
    planes: list[Raster]
    um_per_px: float
    name: str
    channels: list[str]
    description: str = ''
    colours: Sequence[tuple[int, int, int]] | None = None
    classes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (
            not self.planes
            or len(self.planes) != len(self.channels)
            or len(self.colours or self.planes) != len(self.planes)
        ):
            raise IgniteError(
                f'{self.path} would have {len(self.planes)} channels with {len(self.channels)} names and '
                f'{len(self.colours or ())} colours; one name, and one or no colour, a channel was expected.'
            )
        self.shape = tuple(self.planes[0].shape)
        for plane in self.planes:
            if tuple(plane.shape) != self.shape or len(self.shape) != 2 or 0 in self.shape or plane.dtype != np.uint8:
                raise IgniteError(
                    f'a raster for {self.path} is {plane.dtype} {tuple(plane.shape)}; a uint8 raster (H, W) of the size of '
                    f'the first one, {self.shape}, was expected.'
                )
        if not 0 < self.um_per_px < math.inf:
            raise IgniteError(
                f'the resolution of {self.path} is {self.um_per_px!r} um/px; a number above 0 was expected: '
                'state it with --mpp.'
            )

    def xml(self) -> bytes:
        """Return the OME-XML (schema 2016-06); PhysicalSize is in um, the unit that the schema takes by default."""
        (height, width), resolution = self.shape, repr(float(self.um_per_px))
        colours = [_ome_colour(colour) for colour in self.colours or ()] or [''] * len(self.channels)
        channels = ''.join(
            f'<Channel ID="Channel:0:{i}" Name={_quoted(channel)} SamplesPerPixel="1"{colour}/>'
            for i, (channel, colour) in enumerate(zip(self.channels, colours))
        )
        text = (
            '<?xml version="1.0" encoding="UTF-8"?>'
            f'<OME xmlns="{_SCHEMA}" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
            f'xsi:schemaLocation="{_SCHEMA} {_SCHEMA}/ome.xsd" Creator="{WRITTEN_BY}">'
            f'<Image ID="Image:0" Name={_quoted(self.name or self.path.name)}>'
            + (f'<Description>{_quoted(self.description)[1:-1]}</Description>' if self.description else '')
            + f'<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="{width}" SizeY="{height}" '
            f'SizeC="{len(self.channels)}" SizeZ="1" SizeT="1" PhysicalSizeX="{resolution}" PhysicalSizeY="{resolution}">'
            f'{channels}<TiffData IFD="0" PlaneCount="{len(self.channels)}"/></Pixels>'
            + ('<AnnotationRef ID="Annotation:0"/>' if self.classes else '')
            + '</Image>'
            + (self._annotation() if self.classes else '')
            + '</OME>'
        )
        return text.encode('utf-8', 'replace')  # Bio-Formats reads UTF-8, but not character references such as &#181;

    def _annotation(self) -> str:
        values = ''.join(f'<M K="{key}">{_quoted(value)[1:-1]}</M>' for key, value in self.classes.items())
        return (
            f'<StructuredAnnotations><MapAnnotation ID="Annotation:0" Namespace="{CLASSES_NAMESPACE}"><Value>{values}'
            '</Value></MapAnnotation></StructuredAnnotations>'
        )


def _quoted(text: str) -> str:
    """Return text as an XML attribute in double quotes, without characters that XML cannot hold."""
    valid = ''.join(character if character.isprintable() else ' ' for character in text)
    return quoteattr(valid, {'"': '&quot;'})


def _ome_colour(colour: tuple[int, int, int]) -> str:
    """Return the attribute of a channel's colour: RGBA as a signed 32-bit integer."""
    return f' Color="{int.from_bytes(bytes((*colour, 255)), "big", signed=True)}"'


def _write(
    image: _Image,
    encode: Callable[[np.ndarray], np.ndarray],
    halve: Callable[[np.ndarray], np.ndarray],
    on_rows: Callable[[int], object] | None,
    **options: object,
) -> None:
    """Write a pyramid.

    Args:
        image: What to write.
        encode: Function that returns the values of the file for rows of a plane.
        halve: Function that returns the rows of the next level for an even number of rows, or the last ones, of a level.
        on_rows: See :func:`write_label_pyramid`.
        options: Of tifffile, for all levels.
    """
    tifffile = import_extra('tifffile', 'writing pyramidal TIFF files')
    sizes, path = level_sizes(image.shape), image.path
    options |= dict(dtype=np.uint8, tile=(TILE, TILE), compression='zlib', metadata=None, resolutionunit='centimeter')
    with (
        writing(path),
        result_file(path) as partial,
        tempfile.TemporaryFile(dir=partial.parent) as spool,
        ThreadPoolExecutor(_THREADS) as pool,
        tifffile.TiffWriter(partial, bigtiff=True, byteorder='<', ome=False, shaped=False) as writer,
    ):
        tiles = _Tiles(image.planes, encode, halve, len(sizes), spool, pool, on_rows)
        for level, size in enumerate(sizes):
            first = dict(software=WRITTEN_BY, description=image.xml(), subifds=len(sizes) - 1)
            writer.write(
                tiles.spooled(level) if level else tiles.largest(),
                shape=size if len(image.planes) == 1 else (len(image.planes), *size),
                resolution=(1e4 / image.um_per_px / 2**level,) * 2,
                **(dict(subfiletype=1, software=False) if level else first),
                **options,
            )


@dataclass
class _Tiles:
    """The compressed tiles of all levels; those of smaller levels wait in a file until the largest one is written."""

    planes: list[Raster]
    encode: Callable[[np.ndarray], np.ndarray]
    halve: Callable[[np.ndarray], np.ndarray]
    levels: int
    spool: IO[bytes]
    pool: ThreadPoolExecutor
    on_rows: Callable[[int], object] | None

    def __post_init__(self) -> None:
        self._rows = [[] for _ in range(self.levels)]  # of each level, waiting for a row of tiles to be complete
        self._spans = [[] for _ in range(self.levels)]  # (offset, bytes) in the spool of each level's tiles

    def largest(self) -> Iterator[bytes]:
        """Yield the tiles of level 0, plane by plane and row by row; put those of smaller levels aside."""
        for plane in self.planes:
            for top in range(0, plane.shape[0], TILE):
                rows = self.encode(np.ascontiguousarray(plane[top : min(top + TILE, plane.shape[0])]))
                tiles = self._compressed(rows)  # in threads, from now on
                # Before the tiles: tifffile takes the last one and does not return.
                self._add(1, rows, top + TILE >= plane.shape[0])
                if self.on_rows is not None:
                    self.on_rows(len(rows))
                yield from tiles

    def spooled(self, level: int) -> Iterator[bytes]:
        """Yield the tiles of a smaller level."""
        for offset, size in self._spans[level]:
            self.spool.seek(offset)
            yield self.spool.read(size)

    def _add(self, level: int, rows: np.ndarray, last: bool) -> None:
        """Halve rows of the level above; compress a row of tiles when it, or the plane, is complete."""
        if level == self.levels:
            return
        waiting = self._rows[level]
        waiting.append(self.halve(rows))
        if last or sum(map(len, waiting)) == TILE:
            rows = np.concatenate(waiting)
            waiting.clear()
            for tile in self._compressed(rows):
                self._spans[level].append((self.spool.tell(), len(tile)))
                self.spool.write(tile)
            self._add(level + 1, rows, last)

    def _compressed(self, rows: np.ndarray) -> Iterator[bytes]:
        return self.pool.map(_compress, (rows[:, left : left + TILE] for left in range(0, rows.shape[1], TILE)))


def _compress(tile: np.ndarray) -> bytes:
    """Compress a tile, which is filled up to 512 x 512 px with its last row and column."""
    if (tile == tile[0, 0]).all():
        return _constant_tile(int(tile[0, 0]))
    if tile.shape != (TILE, TILE):
        tile = np.pad(tile, [(0, TILE - side) for side in tile.shape], 'edge')
    return zlib.compress(np.ascontiguousarray(tile), _ZLIB_LEVEL)


@lru_cache(256)
def _constant_tile(value: int) -> bytes:
    return zlib.compress(bytes([value]) * TILE**2, 9)  # 0.3 kB; four times as much at level 2
