"""Rasters on disk: arrays of the size of a slide, of which only the rows in use are in memory."""

import os
from pathlib import Path

import numpy as np

Index = slice | tuple[slice, slice]


class DiskRaster:
    """A (H, W) array in a file that is read and written by rows, or by rectangles, without mapping it into memory.

    A memory-mapped array would count all pages that were touched as memory of the process. Pixels that were never written
    are 0 and, on most file systems, take no space.

    Args:
        path: File to create, or to truncate.
        shape: (H, W) in pixels.
        dtype: Type of the pixels. Defaults to uint8.

    Example:
        >>> raster = DiskRaster('labels.raw', (4, 6))
        >>> raster[1:3] = np.ones((2, 6), np.uint8)
        >>> raster[0:2, 2:4]
        array([[0, 0],
               [1, 1]], dtype=uint8)
    """

    def __init__(self, path: str | os.PathLike, shape: tuple[int, int], dtype: object = np.uint8) -> None:
        self.path, self.shape, self.dtype = Path(path), tuple(map(int, shape)), np.dtype(dtype)
        self._row = self.shape[1] * self.dtype.itemsize
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.ftruncate(self._file, self.shape[0] * self._row)

    def __getitem__(self, index: Index) -> np.ndarray:
        """Return a copy of ``raster[rows]`` or ``raster[rows, columns]``; slices have step 1."""
        rows, columns = self._spans(index)
        block = np.empty((rows.stop - rows.start, self.shape[1]), self.dtype)
        view, done = memoryview(block).cast('B') if block.size else b'', 0
        while done < len(view):
            done += (count := os.preadv(self._file, [view[done:]], rows.start * self._row + done))
            if not count:
                raise OSError(f'{self.path} is shorter than its raster')
        return block[:, columns]

    def __setitem__(self, index: Index, values: np.ndarray) -> None:
        rows, columns = self._spans(index)
        if (columns.start, columns.stop) == (0, self.shape[1]):
            block = np.empty((rows.stop - rows.start, self.shape[1]), self.dtype)
        else:
            block = self[rows]
        block[:, columns] = values
        view, done = memoryview(block).cast('B') if block.size else b'', 0
        while done < len(view):
            done += os.pwrite(self._file, view[done:], rows.start * self._row + done)

    def _spans(self, index: Index) -> tuple[slice, slice]:
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        spans = [slice(*part.indices(side)) for part, side in zip((rows, columns), self.shape)]
        return tuple(slice(span.start, max(span.start, span.stop)) for span in spans)

    def close(self) -> None:
        """Close and remove the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> 'DiskRaster':
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
