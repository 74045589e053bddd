"""Sliding windows at a cost that grows with the image area and with memory that does not grow with the image height.

The logits of a window are added only where the window is. Pixel rows that no later row of windows covers become labels, and
their logits are dropped; MONAI's ``sliding_window_inference`` and mmseg's ``slide_inference`` hold those of the whole image.

Batches continue across rows, so at most the last one is smaller. Windows of arrays are read in a thread while the network
works, and labels leave an accelerator a row late, so that the host never waits for the row that is being predicted.
"""

import math
import operator
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ..errors import IgniteError

WEIGHTS = ('uniform', 'gaussian')
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

    Returns:
        (H, W) uint8 labels 0..C-1; ``out`` if given.

    Raises:
        IgniteError: A setting is out of range, or the image, ``out`` or the logits have a wrong shape or type.

    Example:
        >>> slide = np.load('slide.npy', mmap_mode='r')  # (H, W, 3) uint8
        >>> labels = slide_labels(predict, slide, classes=16, crop_size=(512, 512), stride=(384, 384))
    """
    tiling = _Tiling(predict, image, classes, crop_size, stride, window_batch, weights, device, round_batches)
    if skip_label != 0:
        _check_integer('skip_label', skip_label, 255, '0 to 255')
    out = np.empty(tiling.size, np.uint8) if out is None else out
    if tuple(out.shape) != tiling.size or out.dtype not in (np.uint8, torch.uint8):
        raise IgniteError(
            f'out is {out.dtype} {tuple(out.shape)}; uint8 {tiling.size}, the size of the image, was expected.'
        )
    # Sums of logits of the pixel rows that one row of windows covers. They are not divided by the weights, which are equal
    # for all classes at a pixel: the largest class stays the same, and no map of weights is needed.
    sums = _zeros((classes, tiling.window_size[0], tiling.size[1]), tiling.device)
    covered = None if skip is None else torch.zeros(sums.shape[1:], dtype=torch.bool, device=tiling.device)
    tops, writer, complete = [*(top for top, _ in tiling.rows), tiling.size[0]], _Writer(out), 0

    def complete_rows(number: int) -> None:
        """Write the labels of the pixel rows that no window from row ``number`` on covers."""
        nonlocal complete
        for row in range(complete, number):
            writer.write(tops[row], _pop(sums, covered, tops[row + 1] - tops[row], skip_label))
        complete = number

    for row, (left, right), logits in tiling.predictions(on_progress, skip):
        complete_rows(row)
        _add(sums[:, :, left:right], logits, tiling.weight)
        if covered is not None:
            covered[:, left:right] = True
    complete_rows(len(tiling.rows))
    writer.finish()
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
    tiling = _Tiling(predict, image, classes, crop_size, stride, window_batch, weights, device, round_batches)
    total, count = _zeros((classes, *tiling.size), tiling.device), _zeros(tiling.size, tiling.device)
    for row, (left, right), logits in tiling.predictions(on_progress):
        top, bottom = tiling.rows[row]
        _add(total[:, top:bottom, left:right], logits, tiling.weight)
        count[top:bottom, left:right] += 1 if tiling.weight is None else tiling.weight
    return total.div_(count)


def _device(image: Windows, device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    return image.device if isinstance(image, Tensor) else torch.device('cpu')


def _zeros(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Allocate a large buffer."""
    return torch.zeros(shape, dtype=torch.float32, device=device)


@dataclass
class _Tiling:
    """The windows of an image, of equal size, and their predictions; see :func:`slide_labels` for the arguments."""

    predict: Callable[[Windows], Tensor]
    image: Windows
    classes: int
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
        _check_integer('number of classes', self.classes, 256, '1 to 256 (labels are uint8)')
        _check_integer('window_batch', self.window_batch)
        self.size = shape[1:] if self.is_tensor else shape[:2]
        self.rows, self.columns = (grid(*axis) for axis in zip(self.size, self.crop_size, self.stride))
        self.device = _device(self.image, self.device)
        self.window_size = tuple(spans[0][1] - spans[0][0] for spans in (self.rows, self.columns))
        weight = window_weights(self.window_size, self.weights)
        self.weight = None if self.weights == 'uniform' else weight.to(self.device)

    def predictions(
        self, on_progress: Callable[[int], object] | None, skip: Callable[[Windows], bool | Tensor] | None = None
    ) -> Iterator[tuple[int, Span, Tensor]]:
        """Yield row number, (left, right) and (C, h, w) logits of the windows that are not skipped, row by row."""
        batches = self._batches(skip)
        for places, windows, skipped in batches if self.is_tensor else _read_ahead(batches):
            if places:
                for place, logits in zip(places, self._logits(windows, len(places))):
                    yield *place, logits
            if on_progress is not None:
                on_progress(len(places) + skipped)

    def _batches(
        self, skip: Callable[[Windows], bool | Tensor] | None
    ) -> Iterator[tuple[list[tuple[int, Span]], Windows | None, int]]:
        """Yield the places and the pixels of each batch, and the number of windows skipped before it."""
        waiting, skipped = [], 0
        for number, row in enumerate(self.rows):
            windows = [((number, column), self._read(slice(*row), slice(*column))) for column in self.columns]
            if skip is not None:
                flags = [skip(window) for _, window in windows]
                # One synchronisation per row if the flags are computed on an accelerator.
                flags = torch.stack(flags).tolist() if isinstance(flags[0], Tensor) else flags
                windows = [item for item, skipped_one in zip(windows, flags) if not skipped_one]
                skipped += len(flags) - len(windows)
            waiting += windows
            while len(waiting) >= self.window_batch:
                yield *self._stacked(waiting[: self.window_batch]), skipped
                waiting, skipped = waiting[self.window_batch :], 0
        if waiting or skipped:
            yield *self._stacked(waiting), skipped

    def _read(self, y: slice, x: slice) -> Windows:
        return self.image[:, y, x] if self.is_tensor else np.asarray(self.image[y, x])

    def _stacked(self, windows: list[tuple]) -> tuple[list[tuple[int, Span]], Windows | None]:
        places, pixels = [place for place, _ in windows], [window for _, window in windows]
        if pixels and self.round_batches:
            size = min(self.window_batch, 1 << (len(pixels) - 1).bit_length())
            pixels += pixels[-1:] * (size - len(pixels))
        return places, (torch.stack(pixels) if self.is_tensor else np.stack(pixels)) if pixels else None

    def _logits(self, windows: Windows, count: int) -> Tensor:
        """Predict a batch and return the logits of its first ``count`` windows."""
        logits = self.predict(windows)
        expected = (len(windows), self.classes, *self.window_size)
        if tuple(logits.shape) != expected:
            raise IgniteError(f'the prediction has the shape {tuple(logits.shape)}; {expected} was expected.')
        return logits[:count]


def _read_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yield items; the next one is prepared in a thread while the caller uses the last one."""
    items, end = iter(items), object()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, items, end)
            yield item


class _Writer:
    """Writes rows of labels to an array or a tensor; to an array from an accelerator when the next rows arrive."""

    def __init__(self, out: Windows) -> None:
        self.out, self._waiting = out, None

    def write(self, top: int, labels: Tensor) -> None:
        """Write (rows, W) uint8 labels from the pixel row ``top`` on."""
        rows = slice(top, top + len(labels))
        if isinstance(self.out, Tensor):
            self.out[rows].copy_(labels, non_blocking=True)
        elif labels.device.type == 'cuda':
            host = torch.empty(labels.shape, dtype=torch.uint8, pin_memory=True).copy_(labels, non_blocking=True)
            copied = torch.cuda.current_stream(labels.device).record_event()
            self.finish()
            self._waiting = rows, host, copied
        else:
            self.out[rows] = labels.cpu().numpy()

    def finish(self) -> None:
        """Write the rows that are still on their way."""
        if self._waiting is not None:
            rows, host, copied = self._waiting
            copied.synchronize()
            self.out[rows], self._waiting = host.numpy(), None


def _add(target: Tensor, logits: Tensor, weight: Tensor | None) -> None:
    """Add logits as float32, after moving them to the target's device in their own, possibly half, precision."""
    logits = logits.to(target.device)
    target += logits if weight is None else logits.float() * weight


def _pop(sums: Tensor, covered: Tensor | None, rows: int, blank: int) -> Tensor:
    """Remove the top pixel rows and return their labels (rows, W) uint8, ``blank`` where no window was added."""
    # max returns the same indices as argmax, which is several times slower on a CPU.
    labels = sums[:, :rows].max(0).indices.to(torch.uint8)
    if covered is not None:
        labels.masked_fill_(~covered[:rows], blank)
    for kept, cleared in ((sums, 0), *([(covered, False)] if covered is not None else [])):
        left = kept.shape[-2] - rows
        if left > rows:
            for plane in (
                kept.flatten(0, -3) if kept.dim() > 2 else [kept]
            ):  # so that the temporary copy is of one class
                plane[:left] = plane[rows:].clone()
        elif left:
            kept[..., :left, :] = kept[..., rows:, :]
        kept[..., left:, :] = cleared
    return labels
