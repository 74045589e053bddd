"""A slide seen at one resolution: an array whose pixels are read, and reduced by area, when they are needed."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from fractions import Fraction

import cv2
import numpy as np

Index = slice | tuple[slice, ...]
_SIDE, _LEVEL_SIDE = 256, 1024
"""Sides of the blocks that are read at once: at most so many px of the view, and about so many of the level."""
_CACHE_BYTES = 256 << 20


class SlideView:
    """A slide at a resolution, (H, W, 3) uint8 RGB, as returned by :meth:`mmseg_ignite.slides.Slide.at`.

    A block of p x p level px becomes q x q px of the view: the mean by area if p > q, bilinear interpolation if p < q. Blocks
    lie on a fixed grid, so that a pixel does not depend on the rectangle that is read. Four rows of blocks, at most 256 MB,
    are kept for windows that overlap. Threads may read at the same time.

    Attributes:
        shape: (H, W, 3).
        dtype: uint8.
        um_per_px: Exact resolution; it may differ from the requested one by up to 5 %.
        level: Number of the level that is read.
        downsample: Level-0 px per px of the view, along both axes.

    Example:
        >>> with open_slide('slide.svs') as slide:
        ...     view = slide.at(0.5)
        ...     window = view[1024:1536, 2048:2560]
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        read: Callable[[int, int, int, int], tuple[np.ndarray, int]],
        size: tuple[int, int],
        ratio: Fraction,
        um_per_px: float,
        level: int,
        downsample: float,
        convert: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self._read, self._size, self._ratio, self._convert = read, size, ratio, convert
        self.um_per_px, self.level, self.downsample = um_per_px, level, downsample
        p, q = ratio.numerator, ratio.denominator
        self.shape = (*(side * q // p for side in size), 3)
        self._side = max(1, min(_SIDE, _LEVEL_SIDE * q // p) // q) * q
        # A row of windows with the rows that the next one shares; more would not be read again.
        self._limit = min(_CACHE_BYTES, max(1 << 24, 4 * self._side * 3 * self.shape[1]))
        self._blocks, self._lock, self._bytes, self._missing = OrderedDict(), threading.Lock(), 0, {}

    @property
    def missing_pixels(self) -> int:
        """Number of level px without data that were met so far; they read as the slide's background, usually white."""
        with self._lock:
            return sum(self._missing.values())

    def __getitem__(self, index: Index) -> np.ndarray:
        """Return ``view[y0:y1]`` or ``view[y0:y1, x0:x1]``, (h, w, 3) uint8 RGB; slices have step 1.

        Raises:
            IgniteError: The file is damaged there.
        """
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        (top, bottom), (left, right) = (part.indices(side)[:2] for part, side in zip((rows, columns), self.shape))
        out = np.empty((max(0, bottom - top), max(0, right - left), 3), np.uint8)
        if not out.size:
            return out
        for row in range(top // self._side, (bottom - 1) // self._side + 1):
            y = row * self._side
            for column in range(left // self._side, (right - 1) // self._side + 1):
                x, block = column * self._side, self._block(row, column)
                part = block[max(0, top - y) : bottom - y, max(0, left - x) : right - x]
                to_y, to_x = max(0, y - top), max(0, x - left)
                out[to_y : to_y + part.shape[0], to_x : to_x + part.shape[1]] = part
        return out

    def _block(self, row: int, column: int) -> np.ndarray:
        key = row, column
        with self._lock:
            if key in self._blocks:
                self._blocks.move_to_end(key)
                return self._blocks[key]
        block, missing = self._computed(row, column)
        with self._lock:
            self._bytes += block.nbytes if key not in self._blocks else 0
            self._blocks[key] = block
            if missing:
                self._missing[key] = missing
            while self._bytes > self._limit:
                self._bytes -= self._blocks.popitem(last=False)[1].nbytes
        return block

    def _computed(self, row: int, column: int) -> tuple[np.ndarray, int]:
        """Read and resample a block; the last ones are padded to whole groups of q px, and cut."""
        p, q = self._ratio.numerator, self._ratio.denominator
        margin = p if p < q else 0  # neighbours for the interpolation
        spans, sizes = [], []
        for number, side, limit in zip((row, column), self.shape, self._size):
            first, size = number * self._side, min(self._side, side - number * self._side)
            start, stop = first // q * p - margin, (first + -(-size // q) * q) // q * p + margin
            spans.append((start, stop, max(start, 0), min(stop, limit)))
            sizes.append(size)
        (y, y_end, top, bottom), (x, x_end, left, right) = spans
        pixels, missing = self._read(top, left, bottom - top, right - left)
        if (padding := (top - y, y_end - bottom, left - x, x_end - right)) != (0, 0, 0, 0):
            pixels = cv2.copyMakeBorder(pixels, *padding, cv2.BORDER_REPLICATE)
        if p != q:
            new_size = [(stop - start) // p * q for start, stop, *_ in reversed(spans)]
            pixels = cv2.resize(pixels, new_size, interpolation=cv2.INTER_LINEAR if margin else cv2.INTER_AREA)
        border = q if margin else 0
        pixels = pixels[border : border + sizes[0], border : border + sizes[1]]
        pixels = np.ascontiguousarray(pixels if self._convert is None else self._convert(pixels))
        return pixels, missing
