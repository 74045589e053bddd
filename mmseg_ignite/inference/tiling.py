"""Sliding windows whose cost grows with the area of the image and whose memory does not grow with its height.

Each window's logits are added only where the window lies. Going down the image by rows of windows, the pixel rows that
no later window reaches are finished: they become labels at once, and their logits leave memory.
"""

import operator
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from ..errors import IgniteError

WEIGHTS = ('uniform', 'gaussian')
Windows = Tensor | np.ndarray
Span = tuple[int, int]


def grid(side: int, crop: int, stride: int) -> list[Span]:
    """The windows along one axis, as mmseg's ``slide_inference`` places them.

    Args:
        side: px of the image, > 0.
        crop: px of a window, > 0.
        stride: px from a window to the next, 1 to ``crop``.

    Returns:
        (start, stop) of each window. The last one is moved back to end with the image, so all have the same length;
        an image smaller than the window gives one window of the image's size.

    Raises:
        IgniteError: a value is no integer or out of its range.
    """
    for name, value in (('image side', side), ('crop size', crop), ('stride', stride)):
        if not _is_positive_integer(value):
            raise IgniteError(f'the {name} is {value!r}; an integer above 0 was expected.')
    if stride > crop:
        raise IgniteError(
            f'the stride {stride} is larger than the crop size {crop} and would leave pixels uncovered: '
            f'use a stride of 1 to {crop}.'
        )
    stops = [min(start + crop, side) for start in range(0, max(side - crop + stride - 1, 0) + 1, stride)]
    return [(max(stop - crop, 0), stop) for stop in stops]


def _is_positive_integer(value: object) -> bool:
    try:
        return not isinstance(value, bool) and operator.index(value) > 0
    except TypeError:
        return False


def window_weights(shape: tuple[int, int], kind: str) -> Tensor:
    """What a window's pixels count for where windows overlap.

    Args:
        shape: (h, w) of the window in px.
        kind: 'uniform': all the same; 'gaussian': a bell around the window's centre with a sigma of an eighth of each
            side, as in nnU-Net (Isensee et al. 2021) and MONAI, since a network sees least around a border pixel.

    Returns:
        (h, w) float32, above 0, at most 1, largest value 1.

    Raises:
        IgniteError: unknown kind.
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
    advance: Callable[[int], object] | None = None,
) -> np.ndarray:
    """Label an image by sliding windows.

    The logits in memory are those of one row of windows: ``classes`` x crop height x image width, float32.

    Args:
        predict: Gives (B, C, h, w) logits or probabilities, of any float type, for B windows: a (B, 3, h, w) tensor if
            the image is a tensor, else a (B, h, w, 3) array. All windows have the same size, ``crop_size`` or, where it
            is smaller, the image's.
        image: (3, H, W) tensor, or a (H, W, 3) uint8 array. A memory-mapped array, or whatever else has a shape and
            is cut by ``image[y0:y1, x0:x1]``, is read window by window.
        classes: C, 1 to 256.
        crop_size: (h, w) of a window in px.
        stride: (y, x) px from a window to the next, not above the crop size.
        window_batch: Windows of a row predicted at once.
        weights: See :func:`window_weights`.
        device: Where the logits are added. Defaults to None: the image's, the CPU for arrays.
        skip: Says of one window (3, h, w) or (h, w, 3) whether to leave it out, as a bool or a tensor of one. Tensors
            are awaited together, once a row of windows.
        skip_label: Label, 0..255, of the pixels that lie in skipped windows only. Defaults to 0, Background.
        out: (H, W) uint8 array to write to, e.g. memory-mapped. Defaults to None: a new one.
        advance: Told the number of windows that were done or skipped, after each batch.

    Returns:
        (H, W) uint8 label map, 0..C-1; ``out`` if it was given.

    Raises:
        IgniteError: a setting out of its range, an image or ``out`` of another form, or logits of another shape.
    """
    height, width = _size(image)
    _check_settings(classes, window_batch, skip_label)
    out = np.empty((height, width), np.uint8) if out is None else out
    if out.shape != (height, width) or out.dtype != np.uint8:
        raise IgniteError(f'out is {out.dtype} {out.shape}; uint8 {(height, width)} was expected, as the image.')
    rows, columns = grid(height, crop_size[0], stride[0]), grid(width, crop_size[1], stride[1])
    band = _Band(classes, rows[0][1], width, _device(image, device))
    weight = _weight(rows, columns, weights, band.sums.device)
    for row, (next_top, _) in zip(rows, [*rows[1:], (height, height)]):
        for span, logits in _predicted(predict, image, row, columns, classes, window_batch, skip, advance):
            band.add(span, logits, weight)
        out[row[0] : next_top] = band.pop(next_top - row[0], skip_label)
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
    advance: Callable[[int], object] | None = None,
) -> Tensor:
    """The mean of the windows' logits over the whole image, which is held in memory.

    Args: see :func:`slide_labels`.

    Returns:
        (C, H, W) float32 on ``device``: what ``predict`` gives, in each pixel the weighted mean over its windows.

    Raises:
        IgniteError: as :func:`slide_labels`.
    """
    height, width = _size(image)
    _check_settings(classes, window_batch, 0)
    rows, columns = grid(height, crop_size[0], stride[0]), grid(width, crop_size[1], stride[1])
    device = _device(image, device)
    weight = _weight(rows, columns, weights, device)
    total, count = _zeros((classes, height, width), device), _zeros((height, width), device)
    for top, bottom in rows:
        found = _predicted(predict, image, (top, bottom), columns, classes, window_batch, None, advance)
        for (left, right), logits in found:
            _add(total[:, top:bottom, left:right], logits, weight)
            count[top:bottom, left:right] += 1 if weight is None else weight
    return total.div_(count)


def _size(image: Windows) -> tuple[int, int]:
    """(H, W) of an image."""
    shape = tuple(image.shape)
    channels_first = isinstance(image, Tensor)
    if len(shape) != 3 or 0 in shape:
        form = '(3, H, W) tensor' if channels_first else '(H, W, 3) array'
        raise IgniteError(f'the image has the shape {shape}; a {form} was expected.')
    return shape[1:] if channels_first else shape[:2]


def _check_settings(classes: int, window_batch: int, skip_label: int) -> None:
    if not _is_positive_integer(classes) or classes > 256:
        raise IgniteError(f'the number of classes is {classes!r}; 1 to 256 were expected, as labels are uint8.')
    if not _is_positive_integer(window_batch):
        raise IgniteError(f'the window_batch is {window_batch!r}; an integer above 0 was expected.')
    if skip_label != 0 and not (_is_positive_integer(skip_label) and skip_label < 256):
        raise IgniteError(f'the skip_label is {skip_label!r}; 0 to 255 was expected.')


def _device(image: Windows, device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    return image.device if isinstance(image, Tensor) else torch.device('cpu')


def _weight(rows: list[Span], columns: list[Span], kind: str, device: torch.device) -> Tensor | None:
    """The weights that all windows share, since all have the same size; None if they are all 1."""
    weight = window_weights((rows[0][1] - rows[0][0], columns[0][1] - columns[0][0]), kind)
    return None if kind == 'uniform' else weight.to(device)


def _zeros(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Every large buffer of the module comes from here."""
    return torch.zeros(shape, dtype=torch.float32, device=device)


def _predicted(
    predict: Callable[[Windows], Tensor],
    image: Windows,
    row: Span,
    columns: list[Span],
    classes: int,
    window_batch: int,
    skip: Callable[[Windows], bool | Tensor] | None,
    advance: Callable[[int], object] | None,
) -> Iterator[tuple[Span, Tensor]]:
    """The (left, right) and the (C, h, w) logits of the windows of a row, without those that are skipped."""
    found = [(span, _window(image, row, span)) for span in columns]
    if skip is not None:
        flags = [skip(window) for _, window in found]
        # One wait for the whole row, where the flags are still being computed on an accelerator.
        flags = torch.stack(flags).tolist() if isinstance(flags[0], Tensor) else flags
        found = [item for item, skipped in zip(found, flags) if not skipped]
        if advance is not None and len(found) < len(columns):
            advance(len(columns) - len(found))
    for start in range(0, len(found), window_batch):
        part = found[start : start + window_batch]
        windows = [window for _, window in part]
        logits = predict(torch.stack(windows) if isinstance(image, Tensor) else np.stack(windows))
        expected = (len(part), classes, row[1] - row[0], part[0][0][1] - part[0][0][0])
        if tuple(logits.shape) != expected:
            raise IgniteError(f'the prediction has the shape {tuple(logits.shape)}; {expected} was expected.')
        yield from zip((span for span, _ in part), logits)
        if advance is not None:
            advance(len(part))


def _window(image: Windows, row: Span, column: Span) -> Windows:
    if isinstance(image, Tensor):
        return image[:, slice(*row), slice(*column)]
    return np.asarray(image[slice(*row), slice(*column)])


def _add(place: Tensor, logits: Tensor, weight: Tensor | None) -> None:
    """Add logits, moved to the place's device in their own (perhaps half) precision, as float32."""
    logits = logits.to(place.device)
    place += logits if weight is None else logits.float() * weight


class _Band:
    """The sums of logits (C, crop height, W) of the pixel rows that a row of windows covers.

    The sums are never divided by the weights that lie on a pixel: these are the same for all classes, and dividing by
    one positive number does not change which class is the largest. So no map of the weights is kept.
    """

    def __init__(self, classes: int, height: int, width: int, device: torch.device) -> None:
        self.sums = _zeros((classes, height, width), device)
        # What skipped windows leave blank. On the host, so that keeping it costs an accelerator nothing.
        self.covered = np.zeros((height, width), bool)

    def add(self, span: Span, logits: Tensor, weight: Tensor | None) -> None:
        """Add the logits (C, h, w) of the window from left to right."""
        _add(self.sums[:, :, slice(*span)], logits, weight)
        self.covered[:, slice(*span)] = True

    def pop(self, rows: int, blank: int) -> np.ndarray:
        """Take the topmost pixel rows as labels (rows, W) uint8, ``blank`` where no window was added."""
        labels = np.full((rows, self.covered.shape[1]), blank, np.uint8)
        covered = self.covered[:rows]
        if covered.any():
            # max gives the same indices as argmax, which is several times slower on a CPU.
            found = self.sums[:, :rows].max(0).indices.to(torch.uint8).cpu().numpy()
            np.copyto(labels, found, where=covered)
        if rows < len(self.covered):
            for plane in self.sums:  # one class at a time, for a temporary copy of one class only
                plane[:-rows] = plane[rows:].clone()
            self.covered[:-rows] = self.covered[rows:].copy()
        self.sums[:, -rows:] = 0
        self.covered[-rows:] = False
        return labels
