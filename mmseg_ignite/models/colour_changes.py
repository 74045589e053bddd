"""The colour changes of :mod:`mmseg_ignite.datasets.transforms` on batches, on any device.

OpenCV's arithmetic is repeated in float32 and rounded to whole intensities after each change, as OpenCV does, so that a batch
here and images changed one by one there differ by rounding only. Nothing here makes the host wait for the device.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..datasets.transforms.base import ColourChange
from ..datasets.transforms.lab import LabMap
from ..datasets.transforms.scanner import GammaCurve, GaussianBlur, JPEGCompression
from ..datasets.transforms.stain import GLASS_RAMP, DensityMap, intensity_map
from ..errors import IgniteError
from .jpeg import compress, to_device

_TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_TO_XYZ = _TO_XYZ / np.array([[0.950456], [1.0], [1.088754]])  # relative to D65; R, G, B
_FROM_XYZ = np.linalg.inv(_TO_XYZ)
_DARK, _SLOPE, _SHIFT = 0.008856, 7.787, 16 / 116  # the linear part of CIE's cube root
_LIGHT = 240.0


def change_batch(images: Tensor, changes: Sequence[Sequence[ColourChange | None]]) -> Tensor:
    """Apply colour changes to images.

    Args:
        images: (N, 3, H, W) uint8 BGR.
        changes: of each image, in order; all in the same order and number, None for a change that is not made.

    Returns:
        (N, 3, H, W) float32 BGR with whole numbers 0..255.

    Raises:
        IgniteError: images are not uint8 BGR, images differ in the order of their changes, or a change is of another class.

    Example:
        >>> images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
        >>> change_batch(images, [[GammaCurve(1.1)], [None]]).shape
        torch.Size([2, 3, 64, 64])
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise IgniteError(
            f'colour changes are left to the data preprocessor, but its images are {images.dtype} of shape '
            f'{tuple(images.shape)}; uint8 BGR (N, 3, H, W) was expected: set defer_colours=False.'
        )
    if len({len(own) for own in changes}) != 1 or len(changes) != len(images):
        raise IgniteError(
            f'{len(images)} images have lists of colour changes of lengths {[len(own) for own in changes]}; the same number '
            'of each image was expected: use one pipeline.'
        )
    x = images.float()
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        for together in zip(*changes):
            chosen = [number for number, change in enumerate(together) if change is not None]
            if chosen:
                x = _change_some(x, chosen, [together[number] for number in chosen])
    return x


def _change_some(x: Tensor, chosen: list[int], changes: list[ColourChange]) -> Tensor:
    kinds = {type(change) for change in changes}
    apply = _APPLY.get(kinds.pop()) if len(kinds) == 1 else None
    if apply is None:
        found = ', '.join(sorted({type(change).__name__ for change in changes}))
        raise IgniteError(f'{found} cannot be applied to a batch on a device: set defer_colours=False of the data set.')
    if len(chosen) == len(x):
        return apply(x, changes).round_().clamp_(0, 255)
    index = to_device(np.array(chosen), x.device)
    return x.index_copy_(0, index, apply(x.index_select(0, index), changes).round_().clamp_(0, 255))


def _affine(x: Tensor, matrices: Tensor) -> Tensor:
    """Map the channels of each image by its matrix, (N, 3, 4); no matrix product, which may be of half the precision."""
    out = matrices[:, :, 3, None, None].expand(-1, -1, *x.shape[2:])
    for channel in range(3):
        out = torch.addcmul(out, matrices[:, :, channel, None, None], x[:, channel : channel + 1])
    return out


def _density(x: Tensor, changes: Sequence[DensityMap]) -> Tensor:
    matrices = np.stack([intensity_map(change.matrix, change.offset) for change in changes])
    return _affine(x.clamp_min(0.4).log_(), to_device(matrices.astype(np.float32), x.device)).exp_()


def _lab(x: Tensor, changes: Sequence[LabMap]) -> Tensor:
    source = x / 255
    scale = to_device(np.array([change.scale for change in changes], np.float32)[..., None, None], x.device)
    offset = to_device(np.array([change.offset for change in changes], np.float32)[..., None, None], x.device)
    lab = torch.addcmul(offset, scale, _bgr_to_lab(source))
    lab[:, 0].clamp_(0, 100)
    low, high = GLASS_RAMP
    density = np.log(_LIGHT) - x[:, 1:2].clamp_min(0.4).log_()
    share = density.sub_(low).div_(high - low).clamp_(0, 1)
    return torch.addcmul(source, _lab_to_bgr(lab).sub_(source), share).mul_(255)


def _mixed(planes: Sequence[Tensor], matrix: np.ndarray) -> list[Tensor]:
    return [sum(float(weight) * plane for weight, plane in zip(row, planes)) for row in matrix]


def _bgr_to_lab(x: Tensor) -> Tensor:
    """Convert BGR 0..1 to L*a*b*, (N, 3, H, W)."""
    linear = torch.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    xyz = torch.stack(_mixed(linear.flip(1).unbind(1), _TO_XYZ), 1)
    root = torch.where(xyz > _DARK, xyz.clamp_min(_DARK) ** (1 / 3), _SLOPE * xyz + _SHIFT)
    x, y, z = root.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def _lab_to_bgr(lab: Tensor) -> Tensor:
    """Convert L*a*b* to BGR, clipped to 0..1."""
    lightness, a, b = lab.unbind(1)
    y = (lightness + 16) / 116
    root = torch.stack([y + a / 500, y, y - b / 200], 1)
    xyz = torch.where(root > _DARK ** (1 / 3), root**3, (root - _SHIFT) / _SLOPE)
    linear = torch.stack(_mixed(xyz.unbind(1), _FROM_XYZ)[::-1], 1).clamp_(0, 1)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _blur(x: Tensor, changes: Sequence[GaussianBlur]) -> Tensor:
    """Blur as OpenCV does 8-bit images: kernels of about 6 sigma + 1, mirrored at the border without the edge pixel."""
    sides = [round(6 * change.sigma + 1) | 1 for change in changes]
    radius = max(sides) // 2
    offsets, taps = np.arange(-radius, radius + 1), np.zeros((len(changes), 2 * radius + 1))
    for tap, change, side in zip(taps, changes, sides):
        inside = np.abs(offsets) <= side // 2
        tap[inside] = np.exp(-(offsets[inside] ** 2) / (2 * change.sigma**2))
    taps = to_device((taps / taps.sum(1, keepdims=True)).astype(np.float32)[..., None, None, None], x.device)
    for axis in (3, 2):
        length = x.shape[axis]
        mirrored = to_device(np.pad(np.arange(length), radius, mode='reflect'), x.device)
        wide, x = x.index_select(axis, mirrored), torch.zeros_like(x)
        for number in range(2 * radius + 1):
            x.addcmul_(taps[:, number], wide.narrow(axis, number, length))
    return x


def _gamma(x: Tensor, changes: Sequence[GammaCurve]) -> Tensor:
    gamma = to_device(np.array([change.gamma for change in changes], np.float32)[:, None, None, None], x.device)
    return (x / 255).pow(gamma).mul_(255)


def _jpeg(x: Tensor, changes: Sequence[JPEGCompression]) -> Tensor:
    return compress(x, [change.quality for change in changes])


_APPLY: dict[type, Callable[[Tensor, list], Tensor]] = {
    DensityMap: _density,
    LabMap: _lab,
    GaussianBlur: _blur,
    GammaCurve: _gamma,
    JPEGCompression: _jpeg,
}
