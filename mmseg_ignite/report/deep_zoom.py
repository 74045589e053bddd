"""Write the tiles of a predicted slide for ``slides.html``: the slide as JPEG, its labels as compressed ids."""

import json
import os
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np

from ..errors import IgniteError
from ..files import WRITTEN_BY, atomic_directory, printable, write_json, writing

TILE = 512
"""Side of a tile in px. Tiles do not overlap, because a semi-transparent label would be painted twice there."""
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 80]
_OWN = ('tiles.json', 'slide', 'labels')
_FORMAT = 1
_GLASS = np.full((1, 1, 3), 255, np.uint8)
HasTissue = Callable[[slice, slice], bool]


def write_deep_zoom(
    folder: str | os.PathLike,
    image: object,
    labels: object,
    um_per_px: float | None = None,
    has_tissue: HasTissue | None = None,
    glass: np.ndarray | None = None,
    scale: float = 1.0,
    max_um_per_px: float | None = None,
    workers: int = 2,
) -> None:
    """Write the folder of tiles that :func:`~mmseg_ignite.report.slides_page.write_slides_page` shows, whole or not at all.

    The folder holds ``slide/LEVEL/X_Y.jpg``, ``labels/LEVEL/X_Y.js`` and ``tiles.json``. Level 0 is a single tile with the
    whole slide; each further level doubles the resolution. A pixel of a coarser level is the mean of 2 x 2 pixels of the
    slide, and one of 2 x 2 labels. Both sources are read once, in bands of 512 rows. Label tiles of Background alone are
    omitted, and so is glass in levels finer than ``glass``.

    A label tile is a script with zlib-compressed train ids in base64, not a PNG: a page opened as a file may run a script
    beside it, but may not read the pixels of a picture, and colour management cannot change ids.

    Args:
        folder: e.g. ``out/NAME_tiles``; an earlier one is replaced.
        image: slide, (h, w, 3) uint8 RGB: an array or anything that ``image[y0:y1, x0:x1]`` reads.
        labels: label raster, (H, W) uint8 train ids; rows are read by ``labels[y0:y1]``.
        um_per_px: um/px of ``labels``; None if unknown, which omits scale bar.
        has_tissue: ``has_tissue(rows, columns)`` tells for two slices in pixels of ``image`` whether there is tissue; pixels
            without are not read. None reads everything.
        glass: picture of the whole slide at low resolution, (any, any, 3) uint8 RGB, which shows what ``has_tissue``
            excludes. None shows white.
        scale: pixels of ``labels`` per pixel of ``image``, 1 or more, e.g. 2 if the slide is read at half the resolution.
        max_um_per_px: um/px of the finest level of the slide's tiles, to save space: levels that are finer are not written.
            None writes all.
        workers: threads that encode tiles.

    Raises:
        IgniteError: image and labels differ in size, or the folder cannot be written or has foreign files.

    Example:
        >>> write_deep_zoom('out/slide1_tiles', slide.at(0.5), labels, 0.5, glass=slide.thumbnail(2048))
    """
    _check_sizes(folder, image, labels, scale)
    skip = 0
    while um_per_px and max_um_per_px and um_per_px * scale * 2**skip < 0.99 * max_um_per_px:
        skip += 1
    with (
        writing(folder, 'choose another output folder or free some space'),
        atomic_directory(folder, _OWN) as partial,
        ThreadPoolExecutor(max(1, workers)) as pool,
    ):
        slide = _SlideTiles(partial / 'slide', image, pool, skip, has_tissue, _GLASS if glass is None else glass)
        ids = _LabelTiles(partial / 'labels', labels, pool)
        size, um = list(map(int, labels.shape)), None if um_per_px is None else float(um_per_px)
        content = dict(
            dict(written_by=WRITTEN_BY, format=_FORMAT, tile=TILE, size=size, um_per_px=um),
            slide=dict(slide.write(), scale=float(scale * 2**slide.skip)),
            labels=dict(ids.write(), scale=1.0),
        )
        write_json(partial / 'tiles.json', content)


def _check_sizes(folder: str | os.PathLike, image: object, labels: object, scale: float) -> None:
    if any(abs(a * scale - b) > scale for a, b in zip(image.shape[:2], labels.shape)):
        raise IgniteError(
            f'{printable(folder)} was to show an image of {tuple(image.shape[:2])} px with labels of {tuple(labels.shape)} '
            f'px, which do not fit at {scale:g} label pixels per pixel: pass the image that was predicted.'
        )


def read_deep_zoom(folder: str | os.PathLike) -> dict:
    """Return the content of ``tiles.json``: size (H, W), um_per_px, tile, and per layer size, scale and tiles of each level.

    Raises:
        IgniteError: the folder was not written by :func:`write_deep_zoom` of this version.
    """
    path = Path(folder) / 'tiles.json'
    try:
        content = json.loads(path.read_bytes())
        if content['format'] == _FORMAT:
            return content
    except (OSError, ValueError, TypeError, KeyError):
        pass
    raise IgniteError(
        f'{printable(path)} is not the list of tiles that this version writes: predict the slide again with --overwrite.'
    )


class _Tiles:
    """A pyramid of tiles. A subclass reads the finest level, encodes a tile and halves it."""

    suffix = ''

    def __init__(self, folder: Path, source: object, pool: ThreadPoolExecutor, skip: int = 0) -> None:
        self.folder, self.source, self.pool = folder, source, pool
        self.sizes = [tuple(map(int, source.shape[:2]))]  # of each depth; depth 0 is the source
        while max(self.sizes[-1]) > TILE:
            self.sizes.append(tuple(-(-side // 2) for side in self.sizes[-1]))
        self.skip = min(skip, len(self.sizes) - 1)  # depths that are not written
        self.top = len(self.sizes) - 1
        self.written = [np.zeros(self._grid(depth), bool) for depth in range(self.top + 1)]

    def _grid(self, depth: int) -> tuple[int, int]:
        """Return the number of tiles of a depth, (rows, columns)."""
        return tuple(-(-side // TILE) for side in self.sizes[depth])

    def write(self) -> dict:
        """Write all tiles; return size (H, W) of the finest level and, from level 0 on, which tiles exist (base64 bits)."""
        for depth in range(self.skip, self.top + 1):
            (self.folder / str(self.top - depth)).mkdir(parents=True)
        for half in self._row(self.top, 0):
            half.result()
        levels = [b64encode(np.packbits(found).tobytes()).decode() for found in self.written[self.skip :][::-1]]
        return dict(size=list(self.sizes[self.skip]), levels=levels)

    def _row(self, depth: int, row: int) -> list[Future | None]:
        """Write a row of tiles after those below it; return each tile at half the size, None where there is none."""
        tiles = self._read_row(row) if depth == 0 else self._join_row(depth, row)
        halves = []
        for column, tile in enumerate(tiles):
            self.written[depth][row, column] = tile is not None
            halves.append(None if tile is None else self.pool.submit(self._finish, depth, row, column, tile))
        return halves

    def _join_row(self, depth: int, row: int) -> Iterator[np.ndarray | None]:
        rows, columns = self._grid(depth - 1)
        below = [self._row(depth - 1, y) if y < rows else [None] * columns for y in (2 * row, 2 * row + 1)]
        for column in range(self._grid(depth)[1]):
            parts = [half for halves in below for half in (*halves[2 * column : 2 * column + 2], None)[:2]]
            if depth < self.top and not any(parts) and self._omitted(depth):
                yield None
            else:
                tile = self._blank(depth, row, column)
                for i, part in enumerate(parts):
                    if part:
                        half = part.result()
                        y, x = i // 2 * TILE // 2, i % 2 * TILE // 2
                        tile[y : y + half.shape[0], x : x + half.shape[1]] = half
                yield tile

    def _shape(self, depth: int, row: int, column: int) -> tuple[int, int]:
        height, width = self.sizes[depth]
        return min(TILE, height - TILE * row), min(TILE, width - TILE * column)

    def _finish(self, depth: int, row: int, column: int, tile: np.ndarray) -> np.ndarray:
        if depth >= self.skip:
            path = self.folder / str(self.top - depth) / f'{column}_{row}{self.suffix}'
            path.write_bytes(self._encode(tile))
        return self._halve(tile)

    def _omitted(self, depth: int) -> bool:
        """Return whether tiles with nothing in them are omitted at a depth."""
        return True


class _LabelTiles(_Tiles):
    suffix = '.js'

    def _read_row(self, row: int) -> Iterator[np.ndarray | None]:
        band = self.source[TILE * row : min(TILE * (row + 1), self.sizes[0][0])]
        for x in range(0, band.shape[1], TILE):
            tile = band[:, x : x + TILE]
            yield np.ascontiguousarray(tile) if tile.any() or not self.top else None

    def _blank(self, depth: int, row: int, column: int) -> np.ndarray:
        return np.zeros(self._shape(depth, row, column), np.uint8)

    def _encode(self, tile: np.ndarray) -> bytes:
        packer = zlib.compressobj(
            1, zlib.DEFLATED, strategy=zlib.Z_RLE
        )  # labels are runs: half the time of level 4, and smaller
        return b'mmsegTile("%b");\n' % b64encode(packer.compress(tile) + packer.flush())

    def _halve(self, tile: np.ndarray) -> np.ndarray:
        return tile[::2, ::2]


class _SlideTiles(_Tiles):
    suffix = '.jpg'

    def __init__(
        self,
        folder: Path,
        source: object,
        pool: ThreadPoolExecutor,
        skip: int,
        has_tissue: HasTissue | None,
        glass: np.ndarray,
    ) -> None:
        super().__init__(folder, source, pool, skip)
        self.has_tissue, self.glass = has_tissue, glass

    def _read_row(self, row: int) -> Iterator[np.ndarray | None]:
        """Read the tiles with tissue; neighbours are read together."""
        (height, width), columns = self.sizes[0], self._grid(0)[1]
        rows = slice(TILE * row, min(TILE * (row + 1), height))
        spans = [slice(x, min(x + TILE, width)) for x in range(0, width, TILE)]
        tissue = [self.has_tissue is None or bool(self.has_tissue(rows, span)) for span in spans]
        for found, run in groupby(range(columns), key=tissue.__getitem__):
            run = list(run)
            first = spans[run[0]].start
            band = np.asarray(self.source[rows, first : spans[run[-1]].stop]) if found else None
            for column in run:
                if found:
                    yield band[:, spans[column].start - first : spans[column].stop - first]
                else:
                    yield None if self.top and self._omitted(0) else self._blank(0, row, column)

    def _omitted(self, depth: int) -> bool:
        return self.sizes[depth][1] > self.glass.shape[1]

    def _blank(self, depth: int, row: int, column: int) -> np.ndarray:
        """Return a tile of glass, enlarged from the picture at low resolution."""
        shape = self._shape(depth, row, column)
        if self.glass.size == 3:
            return np.broadcast_to(self.glass, (*shape, 3)).copy()
        sy, sx = (a / b for a, b in zip(self.sizes[depth], self.glass.shape))
        move = np.array([[sx, 0, sx / 2 - 0.5 - TILE * column], [0, sy, sy / 2 - 0.5 - TILE * row]])
        return cv2.warpAffine(self.glass, move, shape[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    def _encode(self, tile: np.ndarray) -> bytes:
        return cv2.imencode('.jpg', cv2.cvtColor(tile, cv2.COLOR_RGB2BGR), _JPEG)[1].tobytes()

    def _halve(self, tile: np.ndarray) -> np.ndarray:
        height, width = tile.shape[:2]
        if height % 2 or width % 2:
            tile = cv2.copyMakeBorder(tile, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        return cv2.resize(tile, (tile.shape[1] // 2, tile.shape[0] // 2), interpolation=cv2.INTER_AREA)
