"""The losses of JPEG compression, as libjpeg and OpenCV make them, on batches on any device.

Only the steps that lose something are computed: 4:2:0 chroma, the cosine transform of blocks of 8 x 8 px, quantisation, and
back. No stream is written. The few differences from libjpeg come from its integer cosine transforms.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Annex K of the JPEG standard, for quality 50.
_LUMA = [
    [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
]  # fmt: skip
_CHROMA = np.full((8, 8), 99)
_CHROMA[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
_TABLES = np.stack([_LUMA, _CHROMA])
_FREQUENCY = np.arange(8)[:, None]
_COSINES = np.cos((2 * np.arange(8) + 1) * _FREQUENCY * np.pi / 16) * np.where(_FREQUENCY == 0, 0.125, 0.25) ** 0.5
_FINE = 4 * 8**0.5  # libjpeg's steps per unit between the two axes


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """Return a small array on a device, copied without waiting for the device."""
    values = torch.from_numpy(np.ascontiguousarray(values))
    return values.pin_memory().to(device, non_blocking=True) if device.type == 'cuda' else values.to(device)


def quantisation(quality: int) -> np.ndarray:
    """Return libjpeg's tables of a quality 1 to 100, (2, 8, 8): luma and chroma."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.clip((_TABLES * scale + 50) // 100, 1, 255)


def compress(x: Tensor, qualities: Sequence[int]) -> Tensor:
    """Return images, (N, 3, H, W) float32 BGR of whole numbers 0..255, after JPEG compression with these qualities."""
    height, width = x.shape[2:]
    tables = to_device(np.stack([quantisation(quality) for quality in qualities]).astype(np.float64), x.device)
    cosines = to_device(_COSINES, x.device)
    padded = F.pad(x, (0, -width % 16, 0, -height % 16), 'replicate')
    blue, green, red = padded.unbind(1)
    luma = (0.299 * red + 0.587 * green + 0.114 * blue).round_()
    chroma = torch.stack(
        [
            128 - 0.168735892 * red - 0.331264108 * green + 0.5 * blue,
            128 + 0.5 * red - 0.418687589 * green - 0.081312411 * blue,
        ],
        1,
    )
    chroma = chroma.add_(0.5 - 2**-16).floor_()  # libjpeg rounds halves down
    luma = _quantised(luma[:, None], tables[:, :1], cosines)[..., :height, :width]
    chroma = _quantised(_halved(chroma), tables[:, 1:], cosines)
    # libjpeg enlarges the part that shows the image.
    chroma = _doubled(chroma[..., : -(-height // 2), : -(-width // 2)])[..., :height, :width] - 128
    (y,), (blue, red) = luma.unbind(1), chroma.unbind(1)
    return torch.stack([y + 1.772 * blue, y - 0.344136286 * blue - 0.714136286 * red, y + 1.402 * red], 1)


def _halved(x: Tensor) -> Tensor:
    """Average 2 x 2 px; libjpeg rounds up and down in turn."""
    total = F.avg_pool2d(x, 2, divisor_override=1)
    total[..., ::2] += 1
    total[..., 1::2] += 2
    return total.div_(4).floor_()


def _doubled(x: Tensor) -> Tensor:
    """Enlarge twofold: each pixel is 3/4 of the nearest one and 1/4 of the next, along both axes."""
    x = F.pad(x, (1, 1, 1, 1), 'replicate')
    rows = torch.stack([3 * x[..., 1:-1, :] + x[..., :-2, :], 3 * x[..., 1:-1, :] + x[..., 2:, :]], 3).flatten(2, 3)
    near = 3 * rows[..., 1:-1]
    left, right = near + rows[..., :-2] + 8, near + rows[..., 2:] + 7
    return torch.stack([left, right], 4).flatten(3).div_(16).floor_()


def _quantised(x: Tensor, table: Tensor, cosines: Tensor) -> Tensor:
    """Quantise planes, (N, C, H, W), by the tables (N, 1, 8, 8) of their images.

    In float64, because products of float32 matrices may be computed in TF32, which would change the result.
    """
    rows, columns = x.shape[2] // 8, x.shape[3] // 8
    blocks = x.unflatten(3, (columns, 8)).unflatten(2, (rows, 8)).transpose(3, 4).double() - 128
    table = table[:, :, None, None]
    # libjpeg rounds after the first axis as well.
    steps = cosines @ (blocks @ cosines.T).mul_(_FINE).round_().div_(_FINE)
    steps = steps.mul_(8).round_().div_(8 * table)
    # Halves are rounded away from zero.
    steps = steps.abs().add_(0.5 + 1e-9).floor_().copysign_(steps).mul_(table)
    blocks = (cosines.T @ steps).mul_(_FINE).round_().div_(_FINE) @ cosines
    blocks = blocks.add_(128).round_().clamp_(0, 255)
    return blocks.transpose(3, 4).flatten(4, 5).flatten(2, 3).to(x.dtype)
