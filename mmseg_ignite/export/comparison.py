"""Comparison of an exported file with the model that it was written from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import IgniteError
from .network import ExportNetwork

AGREEMENT = 0.9999
"""Smallest share of pixels with the same class."""
_WINDOWS = 4
"""Windows of each image of tissue."""


@dataclass(frozen=True)
class Agreement:
    """How well an exported file agrees with the model.

    Attributes:
        pixels: number of pixels compared.
        share: share of them with the same class, 0..1.
        difference: largest absolute difference of the scores; 0 for labels.
        inputs: number of images compared.
    """

    pixels: int
    share: float
    difference: float
    inputs: int

    def __str__(self) -> str:
        return (
            f'same class in {100 * self.share:.4f} % of {self.pixels:,} pixels of {self.inputs} images, largest difference '
            f'{self.difference:.2g}'
        )


@torch.no_grad()
def compare(
    network: ExportNetwork, run: Callable[[np.ndarray], np.ndarray], inputs: Iterable[Tensor], what: str
) -> Agreement:
    """Compare an exported file with the network that it was recorded from.

    Args:
        network: the reference.
        run: the exported file as a function of an array of the kind ``network.inputs``.
        inputs: what both are applied to, see :func:`example_inputs`.
        what: name of the file, for the message.

    Raises:
        IgniteError: outputs differ in shape or type, are not finite, or less than 99.99 % of the pixels have the same class.
    """
    pixels = same = count = 0
    difference = 0.0
    for x in inputs:
        expected, found = network(x).numpy(), np.asarray(run(x.numpy()))
        if found.shape != expected.shape or found.dtype != expected.dtype:
            raise IgniteError(
                f'{what} returns {found.dtype} of shape {found.shape} for an input of shape {tuple(x.shape)}; '
                f'{expected.dtype} of shape {expected.shape} was expected: export with the tested versions of the libraries.'
            )
        if network.outputs != 'labels':
            difference = max(difference, float(np.abs(found.astype(np.float64) - expected).max()))
            expected, found = expected.argmax(1), found.argmax(1)
        same, pixels, count = same + int((found == expected).sum()), pixels + expected.size, count + 1
    result = Agreement(pixels, same / max(pixels, 1), difference, count)
    if not np.isfinite(difference) or result.share < AGREEMENT:
        raise IgniteError(
            f'{what} does not compute what the model computes ({result}); at least {100 * AGREEMENT} % was expected: it was '
            'discarded, export with the tested versions of the libraries.'
        )
    return result


def example_inputs(
    network: ExportNetwork, images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int, int]]
) -> list[Tensor]:
    """Return inputs of a network: random pixels of several sizes, and images of tissue.

    Args:
        images: (h, w, 3) uint8 RGB.
        sizes: (batch, height, width) of the random inputs.
    """
    generator = torch.Generator().manual_seed(int(np.random.default_rng().integers(1 << 31)))
    random = [torch.randint(0, 256, (n, h, w, 3), dtype=torch.uint8, generator=generator) for n, h, w in sizes]
    return [as_input(network, x) for x in (*random, *(torch.tensor(image)[None] for image in images))]


def as_input(network: ExportNetwork, rgb: Tensor) -> Tensor:
    """Turn (N, H, W, 3) uint8 RGB into the kind of input that a network takes."""
    if network.inputs == 'nhwc':
        return rgb.contiguous()
    x = rgb.permute(0, 3, 1, 2).contiguous()
    if network.inputs == 'nchw':
        return x
    if network.inputs == 'float':
        return x.float()
    x = x if network.channel_order == 'RGB' else x.flip(1)
    return ((x.float() - network.channel_mean) / network.channel_std).contiguous()


def windows_of(images: Sequence[np.ndarray], window: tuple[int, int]) -> list[np.ndarray]:
    """Return parts of images, (h, w, 3) uint8 of the size of a window; smaller images are mirrored at their edges."""
    found = []
    for image in images:
        short = [max(0, side - have) for side, have in zip(window, image.shape)]
        image = np.pad(image, [*((0, n) for n in short), (0, 0)], mode='symmetric')
        starts = [range(0, have - side + 1, side) for side, have in zip(window, image.shape)]
        corners = [(top, left) for top in starts[0] for left in starts[1]][:_WINDOWS]
        found += [np.ascontiguousarray(image[y : y + window[0], x : x + window[1]]) for y, x in corners]
    return found
