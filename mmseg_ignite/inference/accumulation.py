"""Sums of window scores for the pixel rows that one row of windows covers, and the rasters computed from them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import IgniteError

MAPS = ('probability', 'entropy', 'disagreement')
"""Rasters that can be computed beside the labels, see :func:`mmseg_ignite.inference.slide_labels`."""
STRIP = 8
"""Width of a strip in windows: where windows are left out, only strips with a window take memory and time."""


_CACHED = 1 << 17
"""Pixels whose scores of a class, 512 KB, stay in the cache of a core."""


def zeros(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Allocate a large buffer."""
    return torch.zeros(shape, dtype=torch.float32, device=device)


def add(target: Tensor, logits: Tensor, weight: Tensor | None) -> None:
    """Add logits as float32, after moving them to the target's device in their own, possibly half, precision."""
    logits = logits.to(target.device)
    target += logits if weight is None else logits.float() * weight


def largest(scores: Tensor) -> Tensor:
    """Return the index of the largest of C <= 256 scores (C, h, w) at each pixel, the first of equal ones, (h, w) uint8."""
    if scores.device.type != 'cpu':
        return scores.max(0).indices.to(torch.uint8)
    # Comparing plane by plane, in bands that fit the cache, takes a fifth of the time of max on a CPU.
    planes = scores.numpy()
    count, height, width = planes.shape
    labels, rows = np.zeros((height, width), np.uint8), max(1, _CACHED // width)
    for top in range(0, height, rows):
        best, found = planes[0, top : top + rows].copy(), labels[top : top + rows]
        larger = np.empty(best.shape, np.uint8)
        for number in range(1, count):
            plane = planes[number, top : top + rows]
            np.greater(plane, best, out=larger.view(bool))
            np.maximum(best, plane, out=best)
            np.multiply(larger, np.uint8(number), out=larger)
            np.maximum(found, larger, out=found)
    return torch.from_numpy(labels)


@dataclass
class _Strip:
    """The sums of some columns.

    Attributes:
        sums: (K, h, w) float32 sums of scores, weighted.
        covered: (h, w) bool, where a window was added; None if windows cover everything.
        count: (h, w) float32 sum of the weights; None if no map needs it.
        live: number of rows from the top on to which something may have been added.
    """

    sums: Tensor
    covered: Tensor | None
    count: Tensor | None
    live: int = 0

    def drop(self, rows: int) -> None:
        """Move everything up by a number of rows, and clear the rows at the bottom."""
        self.live -= rows
        for kept in (self.sums, self.covered, self.count):
            if kept is None:
                continue
            left = kept.shape[-2] - rows
            if left > rows:
                # Plane by plane, so that the temporary copy is of one class.
                for plane in kept.flatten(0, -3) if kept.dim() > 2 else [kept]:
                    plane[:left] = plane[rows:].clone()
            elif left:
                kept[..., :left, :] = kept[..., rows:, :]
            kept[..., left:, :] = 0


@dataclass
class Accumulator:
    """Adds the scores of windows, row of windows by row of windows, and computes labels and maps of complete pixel rows.

    Sums are not divided by the weights for the labels: the weights are equal for all classes at a pixel, so the largest class
    stays the same.

    Attributes:
        width: image width in pixels.
        window: (h, w) of a window in pixels.
        classes: number C of classes; further channels of the scores are averaged only.
        channels: number K of channels of the scores.
        device: device of the sums.
        weight: (h, w) weights of a window's pixels; None for uniform weights.
        partial: whether windows may be missing, so that pixels without any get ``blank``.
        blank: label of pixels without a window.
        maps: names of the maps to compute, some of :data:`MAPS`.
        probabilities: whether scores are probabilities instead of logits.
    """

    width: int
    window: tuple[int, int]
    classes: int
    channels: int
    device: torch.device
    weight: Tensor | None
    partial: bool
    blank: int
    maps: Sequence[str] = ()
    probabilities: bool = False

    def __post_init__(self) -> None:
        self._step = STRIP * self.window[1] if self.partial else self.width
        self._strips: list[_Strip | None] = [None] * -(-self.width // self._step)

    def add(self, columns: tuple[int, int], scores: Tensor) -> None:
        """Add the scores (K, h, w) of a window of the current row of windows."""
        left, right = columns
        for number in range(left // self._step, (right - 1) // self._step + 1):
            start = number * self._step
            a, b = max(left, start), min(right, start + self._step)
            strip, inside = self._strip(number), slice(a - start, b - start)
            weight = None if self.weight is None else self.weight[:, a - left : b - left]
            add(strip.sums[:, :, inside], scores[:, :, a - left : b - left], weight)
            if strip.covered is not None:
                strip.covered[:, inside] = True
            if strip.count is not None:
                strip.count[:, inside] += 1 if weight is None else weight
            strip.live = self.window[0]

    def _strip(self, number: int) -> _Strip:
        strip = self._strips[number]
        if strip is None:
            shape = self.window[0], min(self._step, self.width - number * self._step)
            covered = torch.zeros(shape, dtype=torch.bool, device=self.device) if self.partial else None
            count = zeros(shape, self.device) if self.maps else None
            strip = self._strips[number] = _Strip(zeros((self.channels, *shape), self.device), covered, count)
        return strip

    def pop(self, rows: int) -> dict[str, Tensor]:
        """Remove the top pixel rows and return their rasters, uint8.

        Returns:
            'labels', (rows, W), and the maps: 'probability' (C, rows, W), the others (rows, W), with 0..255 for 0..1.
        """
        found = {'labels': self._filled((rows, self.width), self.blank)}
        for name in self.maps:
            planes = (self.classes,) if name == 'probability' else ()
            found[name] = self._filled((*planes, rows, self.width), 0)
            if name == 'probability':
                found[name][self.blank] = 255
        for number, strip in enumerate(self._strips):
            if strip is not None:
                columns = slice(number * self._step, number * self._step + strip.sums.shape[2])
                for name, values in self._complete(strip, rows).items():
                    found[name][..., columns] = values
                strip.drop(rows)
                if self.partial and strip.live <= 0:
                    self._strips[number] = None
        return found

    def _filled(self, shape: tuple[int, ...], value: int) -> Tensor:
        return torch.full(shape, value, dtype=torch.uint8, device=self.device)

    def _complete(self, strip: _Strip, rows: int) -> dict[str, Tensor]:
        """Compute the rasters of the top rows of a strip."""
        scores = strip.sums[: self.classes, :rows]
        found = dict(labels=largest(scores))
        if self.maps:
            count = strip.count[:rows].clamp_min(torch.finfo(torch.float32).tiny)
            mean = scores / count
            probability = mean if self.probabilities else mean.softmax(0)
            if 'probability' in self.maps:
                found['probability'] = _to_bytes(probability)
            if 'entropy' in self.maps:
                found['entropy'] = _to_bytes(torch.special.entr(probability).sum(0) / math.log(max(self.classes, 2)))
            if 'disagreement' in self.maps:
                found['disagreement'] = _to_bytes(strip.sums[self.classes, :rows] / count)
        if strip.covered is not None:
            bare = ~strip.covered[:rows]
            for name, values in found.items():
                values.masked_fill_(bare, self.blank if name == 'labels' else 0)
            if 'probability' in found:
                found['probability'][self.blank].masked_fill_(bare, 255)
        return found


def _to_bytes(shares: Tensor) -> Tensor:
    """Return 0..1 as 0..255."""
    return shares.mul(255).round_().clamp_(0, 255).to(torch.uint8)


class Writers:
    """Writes complete rows of rasters to arrays or tensors; to arrays from an accelerator when the next rows arrive.

    Args:
        sinks: {name: raster}, where a raster is an array, a tensor or another object that supports ``raster[rows] = values``,
            or a list of one for each class.
    """

    def __init__(self, sinks: Mapping[str, object]) -> None:
        self._sinks, self._waiting = sinks, []

    def write(self, top: int, found: Mapping[str, Tensor]) -> None:
        """Write rasters of the pixel rows from ``top`` on."""
        waiting = []
        for name, values in found.items():
            sink, rows = self._sinks[name], slice(top, top + values.shape[-2])
            if isinstance(sink, Tensor):
                sink[rows].copy_(values, non_blocking=True)
            elif values.device.type == 'cuda':
                host = torch.empty(values.shape, dtype=torch.uint8, pin_memory=True).copy_(values, non_blocking=True)
                waiting.append((sink, rows, host, torch.cuda.current_stream(values.device).record_event()))
            else:
                _store(sink, rows, values.cpu().numpy())
        self.finish()
        self._waiting = waiting

    def finish(self) -> None:
        """Write the rows that are still on their way."""
        for sink, rows, host, copied in self._waiting:
            copied.synchronize()
            _store(sink, rows, host.numpy())
        self._waiting = []


def _store(sink: object, rows: slice, values: np.ndarray) -> None:
    if values.ndim == 2:
        sink[rows] = values
    else:
        for plane, plane_values in zip(sink, values, strict=True):
            plane[rows] = plane_values


def check_maps(maps: Mapping[str, object], classes: int, size: tuple[int, int]) -> None:
    """Raise IgniteError unless the maps are known and have the size of the image."""
    for name, sink in maps.items():
        if name not in MAPS:
            raise IgniteError(f'the map is {name!r}; one of {", ".join(map(repr, MAPS))} was expected.')
        rasters = sink if name == 'probability' else [sink]
        if len(rasters) != (classes if name == 'probability' else 1):
            raise IgniteError(
                f'there are {len(rasters)} rasters of probabilities for {classes} classes; one per class.'
            )
        for raster in rasters:
            check_raster(raster, size, f'the raster of the {name}')


def check_raster(raster: object, size: tuple[int, int], name: str) -> None:
    """Raise IgniteError unless a raster to write to is uint8 and has the size (H, W) of the image."""
    if tuple(raster.shape) != size or raster.dtype not in (np.uint8, torch.uint8):
        raise IgniteError(
            f'{name} is {raster.dtype} {tuple(raster.shape)}; uint8 {size}, the size of the image, was expected.'
        )
