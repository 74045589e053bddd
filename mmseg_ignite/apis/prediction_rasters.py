"""The rasters that a network's rows are written to, and resampling of images, labels and maps."""

from collections.abc import Callable, Iterator, Mapping

import cv2
import numpy as np

from ..labels import CLASSES

BACKGROUND = CLASSES.index('Background')


class Sink:
    """A raster to which a network's rows are written as train ids, and as Background where there is no tissue.

    Args:
        raster: object that supports ``raster[y0:y1] = values``.
        tissue: function of rows (top, bottom) that returns where tissue is, (rows, W) bool; None: everywhere.
        ids: (256,) uint8 table from a network's ids to train ids; None: values stay.
        fill: value of pixels without tissue.
    """

    def __init__(
        self, raster: object, tissue: Callable | None = None, ids: np.ndarray | None = None, fill: int = BACKGROUND
    ) -> None:
        self._raster, self._tissue, self.fill = raster, tissue, fill
        self._ids = None if ids is None else np.pad(ids, (0, 256 - len(ids)))
        self.shape, self.dtype = tuple(raster.shape), raster.dtype

    def __setitem__(self, rows: slice, values: np.ndarray) -> None:
        if self._ids is not None:
            values = cv2.LUT(np.ascontiguousarray(values), self._ids)
        if self._tissue is not None:
            values = np.where(self._tissue(rows.start, rows.stop), values, np.uint8(self.fill))
        self._raster[rows] = values


def is_list(sink: object) -> bool:
    """Return whether a map has one raster per class."""
    return isinstance(sink, (list, tuple))


def empty_like(sink: object, size: tuple[int, int]) -> np.ndarray | list[np.ndarray]:
    """Return arrays of another size (h, w) in place of the rasters of a map."""
    return [np.empty(size, np.uint8) for _ in sink] if is_list(sink) else np.empty(size, np.uint8)


def pairs(maps: Mapping[str, object], found: Mapping[str, object]) -> Iterator[tuple[object, np.ndarray, int, int]]:
    """Yield each raster of two groups of maps side by side, how OpenCV resizes it, and its value without tissue."""
    for name, sink in maps.items():
        both = zip(sink, found[name]) if is_list(sink) else [(sink, found[name])]
        for number, (raster, values) in enumerate(both):
            yield raster, values, cv2.INTER_LINEAR, 255 if (name, number) == ('probability', BACKGROUND) else 0


def resample(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resample an image (H, W, 3) to a size (h, w) by area averaging if it shrinks, else bilinearly."""
    shrinks = size[0] * size[1] < image.shape[0] * image.shape[1]
    return cv2.resize(np.asarray(image), size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
