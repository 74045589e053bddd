"""Sliding windows at a cost that grows with the image area and with memory that does not grow with the image height.

The logits of a window are added only where the window is. Pixel rows that no later row of windows covers become labels, and
their logits are dropped; MONAI's ``sliding_window_inference`` and mmseg's ``slide_inference`` hold those of the whole image.

Batches continue across rows, so at most the last one is smaller. Windows of arrays are read in a thread while the network
works, and labels leave an accelerator a row late, so that the host never waits for the row that is being predicted.
"""

import math
import operator
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ..errors import IgniteError
from .accumulation import Accumulator, Writers, add, check_maps, check_raster, zeros

WEIGHTS = ('uniform', 'gaussian')
_CLASSES = '1 to 256 (labels are uint8)'
Windows = Tensor | np.ndarray
Span = tuple[int, int]
Item = TypeVar('Item')


def grid(side: int, crop: int, stride: int) -> list[Span]:
    """Compute the windows along one axis as mmseg's ``slide_inference`` places them.

    Args:
        side: Image size in pixels, > 0.
        crop: Window size in pixels, > 0.
        stride: Pixels between the starts of windows, 1 to ``crop``. IgniteError if a value is not an integer in range.

    Returns:
        (start, stop) of each window. The last window is moved back to end with the image, so all have the same length.
        An image smaller than the window gives one window of the size of the image.

    Example:
        >>> grid(100, 40, 30)
        [(0, 40), (30, 70), (60, 100)]
    """
    for name, value in (('image side', side), ('crop size', crop), ('stride', stride)):
        _check_integer(name, value)
    if stride > crop:
        raise IgniteError(f'the stride {stride} is larger than the crop size {crop}: use 1 to {crop} to leave no gaps.')
    stops = [min(start + crop, side) for start in range(0, max(side - crop + stride - 1, 0) + 1, stride)]
    return [(max(stop - crop, 0), stop) for stop in stops]


def _check_integer(name: str, value: object, highest: float = math.inf, expected: str = 'an integer above 0') -> None:
    """Raise IgniteError unless the value is an integer, of any type but bool, in 1..highest."""
    try:
        valid = not isinstance(value, bool) and 0 < operator.index(value) <= highest
    except TypeError:
        valid = False
    if not valid:
        raise IgniteError(f'the {name} is {value!r}; {expected} was expected.')


def window_weights(shape: tuple[int, int], kind: str) -> Tensor:
    """Return the weights of a window's pixels where windows overlap: (h, w) float32, above 0, with a maximum of 1.

    Args:
        shape: (h, w) of the window in pixels.
        kind: 'uniform', or 'gaussian': centred on the window with sigma of 1/8 of each side, as in nnU-Net (Isensee et al.
            2021) and MONAI, because pixels near the border have the least context. IgniteError if it is another.
    """
    if kind == 'uniform':
        return torch.ones(*shape)
    if kind != 'gaussian':
        raise IgniteError(f'the window weights are {kind!r}; one of {", ".join(map(repr, WEIGHTS))} was expected.')
    rows, columns = (torch.exp(-0.5 * ((torch.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) for n in shape)
    weights = rows[:, None] * columns
    return weights / weights.max()


@torch.no_grad()
def slide_labels(
    predict: Callable[[Windows], Tensor],
    image: Windows,
    classes: int,
    crop_size: tuple[int, int],
    stride: tuple[int, int],
    window_batch: int = 4,
    weights: str = 'uniform',
    device: torch.device | str | None = None,
    skip: Callable[[Windows], bool | Tensor] | None = None,
    skip_label: int = 0,
    out: Windows | None = None,
    on_progress: Callable[[int], object] | None = None,
    round_batches: bool = False,
    wanted: Callable[[Span, Span], bool] | None = None,
    maps: Mapping[str, object] | None = None,
    probabilities: bool = False,
) -> Windows:
    """Label an image by sliding windows, with C x crop height x image width float32 logits in memory.

    Args:
        predict: Function that returns (B, C, h, w) logits or probabilities of any float type for B windows: a (B, 3, h, w)
            tensor if the image is a tensor, else a (B, h, w, 3) array. All windows have the same size, ``crop_size`` or, if
            smaller, the size of the image.
        image: (3, H, W) tensor, or (H, W, 3) uint8 array. Memory-mapped arrays, and other objects with a ``shape`` that
            support ``image[y0:y1, x0:x1]``, are read row by row of windows, in a thread.
        classes: C, 1 to 256.
        crop_size: (h, w) of a window in pixels.
        stride: (y, x) pixels between windows, at most the crop size.
        window_batch: Number of windows predicted at once.
        weights: See :func:`window_weights`.
        device: Device on which the logits are added; by default that of the image, the CPU for arrays.
        skip: Function that decides whether to skip a window (3, h, w) or (h, w, 3), as a bool or a tensor with one element.
            Tensors are synchronised once per row of windows.
        skip_label: Label, 0..255, of pixels that are only in skipped windows; 0 is Background.
        out: (H, W) uint8 array to write to, e.g. memory-mapped, or tensor on any device; by default a new array.
        on_progress: Callback that receives the number of finished or skipped windows after each batch.
        round_batches: Fill the last batch up with copies of its last window to a power of two, at most ``window_batch``, so
            that batches have few different sizes, as cuDNN's benchmark mode and compiled networks prefer.
        wanted: Function of a window's rows (top, bottom) and columns (left, right) that returns whether to predict it. Other
            windows are not read, take no memory, and are not counted as progress; pixels only in them get ``skip_label``.
        maps: Further rasters to fill, by name, each (H, W) uint8 with 0..255 for 0..1:
            'probability': list of C rasters, the softmax of the mean logits, or the mean of probabilities;
            'entropy': the entropy of these probabilities, divided by log(C);
            'disagreement': the mean of channel C of ``predict``, which then returns C + 1 channels.
            Pixels without a window have probability 1 of ``skip_label``, and 0 in the others.
        probabilities: Whether ``predict`` returns probabilities. Only the maps depend on it.

    Returns:
        (H, W) uint8 labels 0..C-1; ``out`` if given.

    Raises:
        IgniteError: A setting is out of range, or the image, ``out`` or the logits have a wrong shape or type.

    Example:
        >>> slide = np.load('slide.npy', mmap_mode='r')  # (H, W, 3) uint8
        >>> labels = slide_labels(predict, slide, classes=16, crop_size=(512, 512), stride=(384, 384))
    """
    _check_integer('number of classes', classes, 256, _CLASSES)
    maps = maps or {}
    channels = classes + ('disagreement' in maps)
    tiling = _Tiling(predict, image, channels, crop_size, stride, window_batch, weights, device, round_batches)
    if skip_label != 0:
        highest = classes - 1 if 'probability' in maps else 255
        _check_integer('skip_label', skip_label, highest, f'0 to {highest}')
    out = np.empty(tiling.size, np.uint8) if out is None else out
    check_raster(out, tiling.size, 'out')
    check_maps(maps, classes, tiling.size)
    partial = not (skip is None and wanted is None)
    sums = Accumulator(
        *(tiling.size[1], tiling.window_size, classes, channels, tiling.device, tiling.weight),
        *(partial, skip_label, tuple(maps), probabilities),
    )
    tops, writers, complete = [*(top for top, _ in tiling.rows), tiling.size[0]], Writers({'labels': out, **maps}), 0

    def complete_rows(number: int) -> None:
        """Write the rasters of the pixel rows that no window from row ``number`` on covers."""
        nonlocal complete
        for row in range(complete, number):
            writers.write(tops[row], sums.pop(tops[row + 1] - tops[row]))
        complete = number

    for row, columns, scores in tiling.predictions(on_progress, skip, wanted):
        complete_rows(row)
        sums.add(columns, scores)
    complete_rows(len(tiling.rows))
    writers.finish()
    return out


@torch.no_grad()
def slide_logits(
    predict: Callable[[Windows], Tensor],
    image: Windows,
    classes: int,
    crop_size: tuple[int, int],
    stride: tuple[int, int],
    window_batch: int = 4,
    weights: str = 'uniform',
    device: torch.device | str | None = None,
    on_progress: Callable[[int], object] | None = None,
    round_batches: bool = False,
) -> Tensor:
    """Average the logits of sliding windows, with those of the whole image in memory.

    Arguments and errors are those of :func:`slide_labels`.

    Returns:
        (C, H, W) float32 on ``device``: per pixel the weighted mean of the outputs of ``predict`` over its windows.
    """
    _check_integer('number of classes', classes, 256, _CLASSES)
    tiling = _Tiling(predict, image, classes, crop_size, stride, window_batch, weights, device, round_batches)
    total, count = zeros((classes, *tiling.size), tiling.device), zeros(tiling.size, tiling.device)
    for row, (left, right), logits in tiling.predictions(on_progress):
        top, bottom = tiling.rows[row]
        add(total[:, top:bottom, left:right], logits, tiling.weight)
        count[top:bottom, left:right] += 1 if tiling.weight is None else tiling.weight
    return total.div_(count)


def _device(image: Windows, device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    return image.device if isinstance(image, Tensor) else torch.device('cpu')


@dataclass
class _Tiling:
    """The windows of an image, of equal size, and their predictions; see :func:`slide_labels` for the arguments."""

    predict: Callable[[Windows], Tensor]
    image: Windows
    channels: int
    crop_size: tuple[int, int]
    stride: tuple[int, int]
    window_batch: int
    weights: str
    device: torch.device | str | None
    round_batches: bool

    def __post_init__(self) -> None:
        shape, self.is_tensor = tuple(self.image.shape), isinstance(self.image, Tensor)
        if len(shape) != 3 or 0 in shape:
            form = '(3, H, W) tensor' if self.is_tensor else '(H, W, 3) array'
            raise IgniteError(f'the image has the shape {shape}; a {form} was expected.')
        _check_integer('window_batch', self.window_batch)
        self.size = shape[1:] if self.is_tensor else shape[:2]
        self.rows, self.columns = (grid(*axis) for axis in zip(self.size, self.crop_size, self.stride))
        self.device = _device(self.image, self.device)
        self.window_size = tuple(spans[0][1] - spans[0][0] for spans in (self.rows, self.columns))
        weight = window_weights(self.window_size, self.weights)
        self.weight = None if self.weights == 'uniform' else weight.to(self.device)

    def predictions(
        self,
        on_progress: Callable[[int], object] | None,
        skip: Callable[[Windows], bool | Tensor] | None = None,
        wanted: Callable[[Span, Span], bool] | None = None,
    ) -> Iterator[tuple[int, Span, Tensor]]:
        """Yield row number, (left, right) and (K, h, w) scores of the windows to be predicted, row by row."""
        batches = self._batches(skip, wanted)
        for places, windows, skipped in batches if self.is_tensor else _read_ahead(batches):
            if places:
                for place, scores in zip(places, self._scores(windows, len(places))):
                    yield *place, scores
            if on_progress is not None:
                on_progress(len(places) + skipped)

    def _batches(
        self, skip: Callable[[Windows], bool | Tensor] | None, wanted: Callable[[Span, Span], bool] | None
    ) -> Iterator[tuple[list[tuple[int, Span]], Windows | None, int]]:
        """Yield the places and the pixels of each batch, and the number of windows skipped before it."""
        waiting, skipped = [], 0
        for windows, count in self._windows(skip, wanted):
            skipped += count
            waiting += windows
            while len(waiting) >= self.window_batch:
                yield *self._stacked(waiting[: self.window_batch]), skipped
                waiting, skipped = waiting[self.window_batch :], 0
        if waiting or skipped:
            yield *self._stacked(waiting), skipped

    def _windows(
        self, skip: Callable[[Windows], bool | Tensor] | None, wanted: Callable[[Span, Span], bool] | None
    ) -> Iterator[tuple[list[tuple[tuple[int, Span], Windows]], int]]:
        """Yield windows with their places, and the number of windows skipped; those of a tensor row by row."""
        for number, row in enumerate(self.rows):
            columns = [column for column in self.columns if wanted is None or wanted(row, column)]
            # One synchronisation per row if the flags are computed on an accelerator.
            for some in [columns] if self.is_tensor else ([column] for column in columns):
                windows = [((number, column), self._read(slice(*row), slice(*column))) for column in some]
                if skip is not None and windows:
                    flags = [skip(window) for _, window in windows]
                    flags = torch.stack(flags).tolist() if isinstance(flags[0], Tensor) else flags
                    windows = [item for item, skipped_one in zip(windows, flags) if not skipped_one]
                yield windows, len(some) - len(windows)

    def _read(self, y: slice, x: slice) -> Windows:
        return self.image[:, y, x] if self.is_tensor else np.asarray(self.image[y, x])

    def _stacked(self, windows: list[tuple]) -> tuple[list[tuple[int, Span]], Windows | None]:
        places, pixels = [place for place, _ in windows], [window for _, window in windows]
        if pixels and self.round_batches:
            size = min(self.window_batch, 1 << (len(pixels) - 1).bit_length())
            pixels += pixels[-1:] * (size - len(pixels))
        return places, (torch.stack(pixels) if self.is_tensor else np.stack(pixels)) if pixels else None

    def _scores(self, windows: Windows, count: int) -> Tensor:
        """Predict a batch and return the scores of its first ``count`` windows."""
        logits = self.predict(windows)
        expected = (len(windows), self.channels, *self.window_size)
        if tuple(logits.shape) != expected:
            raise IgniteError(f'the prediction has the shape {tuple(logits.shape)}; {expected} was expected.')
        return logits[:count]


def _read_ahead(items: Iterable[Item], depth: int = 2) -> Iterator[Item]:
    """Yield items; the next ones are prepared in a thread while the caller uses the last one."""
    items, end = iter(items), object()
    with ThreadPoolExecutor(1) as pool:
        coming = deque(pool.submit(next, items, end) for _ in range(depth))
        while (item := coming.popleft().result()) is not end:
            coming.append(pool.submit(next, items, end))
            yield item
