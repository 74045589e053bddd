"""Sliding windows at a cost that grows with the image area and with memory that does not grow with the image height.

The logits of a window are added only where the window is. Pixel rows that no later row of windows covers become labels, and
their logits are dropped; MONAI's ``sliding_window_inference`` and mmseg's ``slide_inference`` hold those of the whole image.
"""

import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import IgniteError

WEIGHTS = ('uniform', 'gaussian')
Windows = Tensor | np.ndarray
Span = tuple[int, int]


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
    out: np.ndarray | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> np.ndarray:
    """Label an image by sliding windows, with C x crop height x image width float32 logits in memory.

    Args:
        predict: Function that returns (B, C, h, w) logits or probabilities of any float type for B windows: a (B, 3, h, w)
            tensor if the image is a tensor, else a (B, h, w, 3) array. All windows have the same size, ``crop_size`` or, if
            smaller, the size of the image.
        image: (3, H, W) tensor, or (H, W, 3) uint8 array. Memory-mapped arrays, and other objects with a ``shape`` that
            support ``image[y0:y1, x0:x1]``, are read window by window.
        classes: C, 1 to 256.
        crop_size: (h, w) of a window in pixels.
        stride: (y, x) pixels between windows, at most the crop size.
        window_batch: Number of windows of a row predicted at once.
        weights: See :func:`window_weights`.
        device: Device on which the logits are added; by default that of the image, the CPU for arrays.
        skip: Function that decides whether to skip a window (3, h, w) or (h, w, 3), as a bool or a tensor with one element.
            Tensors are synchronised once per row of windows.
        skip_label: Label, 0..255, of pixels that are only in skipped windows; 0 is Background.
        out: (H, W) uint8 array to write to, e.g. memory-mapped; by default a new one.
        on_progress: Callback that receives the number of finished or skipped windows after each batch.

    Returns:
        (H, W) uint8 labels 0..C-1; ``out`` if given.

    Raises:
        IgniteError: A setting is out of range, or the image, ``out`` or the logits have a wrong shape or type.

    Example:
        >>> slide = np.load('slide.npy', mmap_mode='r')  # (H, W, 3) uint8
        >>> labels = slide_labels(predict, slide, classes=16, crop_size=(512, 512), stride=(384, 384))
    """
    tiling = _Tiling(predict, image, classes, crop_size, stride, window_batch, weights, device)
    if skip_label != 0:
        _check_integer('skip_label', skip_label, 255, '0 to 255')
    out = np.empty(tiling.size, np.uint8) if out is None else out
    if out.shape != tiling.size or out.dtype != np.uint8:
        raise IgniteError(f'out is {out.dtype} {out.shape}; uint8 {tiling.size}, the size of the image, was expected.')
    # Sums of logits of the pixel rows that one row of windows covers. They are not divided by the weights, which are equal
    # for all classes at a pixel: the largest class stays the same, and no map of weights is needed.
    sums = _zeros((classes, tiling.window_size[0], tiling.size[1]), tiling.device)
    covered = np.zeros(sums.shape[1:], bool)  # by windows that were not skipped; on the host, to save GPU memory
    for row, next_top in zip(tiling.rows, [*(top for top, _ in tiling.rows[1:]), tiling.size[0]]):
        for (left, right), logits in tiling.predict_row(row, on_progress, skip):
            _add(sums[:, :, left:right], logits, tiling.weight)
            covered[:, left:right] = True
        out[row[0] : next_top] = _pop(sums, covered, next_top - row[0], skip_label)
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
) -> Tensor:
    """Average the logits of sliding windows, with those of the whole image in memory.

    Arguments and errors are those of :func:`slide_labels`.

    Returns:
        (C, H, W) float32 on ``device``: per pixel the weighted mean of the outputs of ``predict`` over its windows.
    """
    tiling = _Tiling(predict, image, classes, crop_size, stride, window_batch, weights, device)
    total, count = _zeros((classes, *tiling.size), tiling.device), _zeros(tiling.size, tiling.device)
    for top, bottom in tiling.rows:
        for (left, right), logits in tiling.predict_row((top, bottom), on_progress):
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

    def predict_row(
        self,
        row: Span,
        on_progress: Callable[[int], object] | None,
        skip: Callable[[Windows], bool | Tensor] | None = None,
    ) -> Iterator[tuple[Span, Tensor]]:
        """Yield the (left, right) and the (C, h, w) logits of the windows of a row that are not skipped."""
        spans = [(column, slice(*row), slice(*column)) for column in self.columns]
        windows = [(c, self.image[:, y, x] if self.is_tensor else np.asarray(self.image[y, x])) for c, y, x in spans]
        if skip is not None:
            flags = [skip(window) for _, window in windows]
            # One synchronisation per row if the flags are computed on an accelerator.
            flags = torch.stack(flags).tolist() if isinstance(flags[0], Tensor) else flags
            windows = [item for item, skipped in zip(windows, flags) if not skipped]
            if on_progress is not None and len(windows) < len(flags):
                on_progress(len(flags) - len(windows))
        for start in range(0, len(windows), self.window_batch):
            spans, batch = zip(*windows[start : start + self.window_batch])
            logits = self.predict(torch.stack(batch) if self.is_tensor else np.stack(batch))
            expected = (len(batch), self.classes, *self.window_size)
            if tuple(logits.shape) != expected:
                raise IgniteError(f'the prediction has the shape {tuple(logits.shape)}; {expected} was expected.')
            yield from zip(spans, logits)
            if on_progress is not None:
                on_progress(len(batch))


def _add(target: Tensor, logits: Tensor, weight: Tensor | None) -> None:
    """Add logits as float32, after moving them to the target's device in their own, possibly half, precision."""
    logits = logits.to(target.device)
    target += logits if weight is None else logits.float() * weight


def _pop(sums: Tensor, covered: np.ndarray, rows: int, blank: int) -> np.ndarray:
    """Remove the top pixel rows and return their labels (rows, W) uint8, ``blank`` where no window was added."""
    labels = np.full((rows, covered.shape[1]), blank, np.uint8)
    if covered[:rows].any():  # max returns the same indices as argmax, which is several times slower on a CPU
        np.copyto(labels, sums[:, :rows].max(0).indices.to(torch.uint8).cpu().numpy(), where=covered[:rows])
    if rows < len(covered):
        for plane in sums:  # one class at a time, so that the temporary copy is of one class
            plane[:-rows] = plane[rows:].clone()
        covered[:-rows] = covered[rows:].copy()
    sums[:, -rows:], covered[-rows:] = 0, False
    return labels
