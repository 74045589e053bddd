"""Stain colour: jitter of haematoxylin, eosin and DAB, and Macenko normalisation and augmentation.

Light through a slide decays exponentially with the amount of stain (Beer-Lambert), so a change of stains is a linear map of
optical densities. Every transform here amounts to one 3 x 3 matrix and an offset, which :func:`map_density` applies.
Densities are natural logarithms, -ln(intensity / 255), in the order R, G, B. Stain vectors have unit length, so a
concentration is the density along its vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import NamedTuple

import cv2
import numpy as np
from mmseg.registry import TRANSFORMS

from ...errors import IgniteError, require
from .base import (
    ColourChange,
    DrawnTransform,
    ImageTransform,
    check_image,
    check_prob,
    map_blocks,
    sample_grid,
    to_array,
)

HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Haematoxylin, eosin and DAB in R, G, B, of unit length to 0.3 % (Ruifrok & Johnston 2001)."""

WHITE = float(np.log(255))
# 0.4 for zero: as close to 1 as still rounds back to 0, so that the identity map keeps all 256 values.
_LOG = np.log(np.maximum(np.arange(256), 0.4)).astype(np.float32)

TISSUE_DENSITY = 0.15  # in every channel, relative to the glass (Macenko et al. 2009)
_MIN_TISSUE = 256  # tissue pixels of the grid; with fewer, the outer percentiles are one or two pixels
_MIN_ANGLE = np.deg2rad(8)  # between the stains; less is one stain and noise (H&E of several labs: 14 to 30)
GLASS_RAMP = (0.10, 0.25)  # green density (both stains absorb green): up to the first glass, from the second tissue


class Stains(NamedTuple):
    """The two stains of an image, haematoxylin first."""

    vectors: np.ndarray  # (2, 3) float64, unit length, R, G, B
    strengths: np.ndarray  # (2,) float64, 99th percentile of each concentration in the tissue


def tissue_share(light: float = 240.0) -> np.ndarray:
    """Return how much each green intensity counts as tissue, (256,) float64: 0 is glass, 1 tissue, linear in density."""
    return np.interp(np.log(light) - _LOG, GLASS_RAMP, (0, 1))


def map_density(
    image: np.ndarray, matrix: np.ndarray, offset: np.ndarray, share: np.ndarray | None = None, light: float = 255.0
) -> np.ndarray:
    """Map the optical densities D of every pixel of an image, (H, W, 3) uint8 BGR, to D . matrix + offset.

    Intensity 0, whose density is infinite, counts as 0.4; results are rounded to the nearest intensity and saturate.

    Args:
        matrix, offset: (3, 3) and (3,), in R, G, B; row i is what a density of 1 in channel i becomes.
        share: (256,), 0..1, by green intensity: the fraction of its change that a pixel gets. None: all of it.
        light: intensity of density 0.
    """
    affine = intensity_map(matrix, offset, light)
    if share is not None:
        affine -= np.eye(3, 4)  # only the change
        share = share.astype(np.float32)
    affine = affine.astype(np.float32)

    def change(part: np.ndarray) -> np.ndarray:
        source = cv2.LUT(part, _LOG)
        mapped = cv2.transform(source, affine)
        if share is not None:
            green = cv2.cvtColor(part[..., 1], cv2.COLOR_GRAY2BGR)
            cv2.multiply(mapped, cv2.LUT(green, share), mapped)
            cv2.add(mapped, source, mapped)
        # Brighter than white would overflow the integer conversion and come out black.
        cv2.threshold(mapped, WHITE, 0, cv2.THRESH_TRUNC, mapped)
        return cv2.exp(mapped, mapped)

    return map_blocks(image, change, 1)


def intensity_map(matrix: np.ndarray, offset: np.ndarray, light: float = 255.0) -> np.ndarray:
    """Return the map of densities of :func:`map_density` as one of ln(intensity) in B, G, R: (3, 4) float64, offset last."""
    glass = np.full(3, WHITE - np.log(light))
    matrix, offset = np.asarray(matrix)[::-1, ::-1], (glass - glass @ matrix + offset)[::-1]
    # With L = ln(intensity) = WHITE - D the map reads L -> L . matrix + constant.
    return np.column_stack([matrix.T, WHITE * (1 - matrix.sum(0)) - offset])


class DensityMap(ColourChange):
    """Map optical densities D to D . ``matrix`` + ``offset``, (3, 3) and (3,) in R, G, B; see :func:`map_density`."""

    def __init__(self, matrix: np.ndarray, offset: np.ndarray) -> None:
        self.matrix, self.offset = matrix, offset

    def apply(self, image: np.ndarray) -> np.ndarray:
        return map_density(image, self.matrix, self.offset)


def estimate_stains(image: np.ndarray, light: float = 240.0) -> Stains | None:
    """Estimate the two stains of an H&E image, (H, W, 3) uint8 BGR, by the method of Macenko et al. (2009).

    The two largest singular vectors of the tissue's densities span the plane of the stains, which are at the 1st and 99th
    percentile of the angle in it. Haematoxylin is the one that absorbs more red. Tissue has a density of at least 0.15 in
    every channel, relative to the intensity ``light`` of the glass. Uses about 16,000 pixels of a regular grid.

    Return None if the stains cannot be separated: fewer than 256 tissue pixels, or vectors less than 8 degrees apart.
    """
    pixels = sample_grid(image).reshape(-1, 3)
    tissue = pixels[pixels.max(1) <= light * np.exp(-TISSUE_DENSITY)]
    if len(tissue) < _MIN_TISSUE:
        return None
    density = np.float32(np.log(light)) - _LOG[tissue[:, ::-1]]
    # Eigenvectors of D^T D are the right singular vectors of D; the largest eigenvalue comes last.
    plane = np.linalg.eigh((density.T @ density).astype(np.float64))[1][:, :0:-1]
    plane[:, 0] *= np.sign(plane[:, 0].sum())  # the first one points towards the (positive) densities
    first, second = (density @ plane.astype(np.float32)).T
    low, high = np.percentile(np.arctan2(second, first), (1, 99))
    if high - low < _MIN_ANGLE:
        return None
    vectors = np.array([[np.cos(angle), np.sin(angle)] for angle in (low, high)]) @ plane.T
    vectors = vectors[np.argsort(-vectors[:, 0])]
    concentrations = density @ np.linalg.pinv(vectors).astype(np.float32)
    return Stains(vectors, np.percentile(concentrations, 99, axis=0))


def _check_light(light: object) -> float:
    require(isinstance(light, Real) and 0 < light <= 255, 'light', light, 'an intensity above 0 and at most 255')
    return light


def _stain_ranges(name: str, value: object, stains: int, limit: float) -> np.ndarray:
    """Return the range of each stain, (stains, 2) float64; x means (-x, x), and a single one applies to every stain."""
    values = [value] * stains if isinstance(value, Real) else value
    pairs = [(-v, v) if isinstance(v, Real) else v for v in values] if isinstance(values, Sequence) else None
    ranges = to_array(pairs, (stains, 2))
    low, high = ranges.T
    valid = ((-limit <= low) & (low <= high) & (high <= limit)).all()
    each = f'each a number or a range (low, high) within {-limit:g} and {limit:g},'
    require(valid, name, value, f'a number from 0 to {limit:g}, or {stains} of them, {each}')
    return ranges


class _StainJitter:
    """What the transforms that scale and shift the concentrations of stains at random have in common."""

    def __init__(self, stains: int, sigma: float | tuple, bias: float | tuple, prob: float) -> None:
        self.sigma, self.bias, self.prob = sigma, bias, check_prob('prob', prob)
        self._alpha = 1 + _stain_ranges('sigma', sigma, stains, 1)
        self._beta = _stain_ranges('bias', bias, stains, 5)

    def _sample(self) -> tuple[bool, np.ndarray, np.ndarray]:
        """Return whether to change the image, and scale and shift of each concentration."""
        wanted = np.random.random() < self.prob
        return wanted, np.random.uniform(*self._alpha.T), np.random.uniform(*self._beta.T)


@TRANSFORMS.register_module()
class HEDJitter(_StainJitter, DrawnTransform):
    """Scale and shift the haematoxylin, eosin and DAB (residual) of an image at random.

    The colour deconvolution of Ruifrok & Johnston (2001) separates the densities; each of the three concentrations c
    becomes alpha * c + beta, and they are mixed again, after `Tellez et al. 2018, Whole-slide mitosis detection in H&E
    breast histology using PHH3 as a reference to train distilled stain-invariant CNNs
    <https://doi.org/10.1109/TMI.2018.2820199>`_. Always draws seven numbers from ``np.random``. Changes ``img``, (H, W, 3)
    uint8 BGR.

    Args:
        sigma: alpha is uniform in (1 - sigma, 1 + sigma). One number for H, E and DAB, or three, each a number or a range
            (low, high) of alpha - 1, within -1 and 1. The authors later called 0.05 light and 0.2 strong; at 0.2 some
            samples are browner or more magenta than H&E is.
        bias: beta is uniform in (-bias, bias); like ``sigma``, with ranges of beta, within -5 and 5. In optical density
            (natural logarithm). It tints the glass too, at 0.02 by up to 5 %.
        prob: probability of a change.

    Example: ``dict(type='HEDJitter', sigma=0.1, bias=((0, 0.05), 0, 0))``
    """

    _UNMIX = np.linalg.inv(HED)

    def __init__(self, sigma: float | tuple = 0.1, bias: float | tuple = 0.02, prob: float = 1.0) -> None:
        super().__init__(3, sigma, bias, prob)

    def draw(self, results: dict) -> list[ColourChange | None]:
        wanted, alpha, beta = self._sample()
        return [DensityMap(self._UNMIX * alpha @ HED, beta @ HED) if wanted else None]


@TRANSFORMS.register_module()
class MacenkoNormalize(ImageTransform):
    """Give the stains of an image the colours and strengths of a target.

    After `Macenko et al. 2009, A method for normalizing histology slides for quantitative analysis
    <https://doi.org/10.1109/ISBI.2009.5193250>`_; see :func:`estimate_stains`. The residual of both stains is dropped. An
    image whose stains cannot be separated (glass, one colour, a few pixels) is kept. Where a single stain varies in hue,
    the method invents a second one: prefer whole ROIs to small crops. The default target is browner than most H&E;
    :meth:`from_image` takes the target from an image. Changes ``img``, (H, W, 3) uint8 BGR.

    Args:
        vectors: haematoxylin and eosin of the target, (2, 3), R, G, B; scaled to unit length. The defaults are the reference
            of M. Veta's widely used implementation of the paper.
        strengths: 99th percentiles of the target's two concentrations, in optical density (natural logarithm), above 0.
        light: intensity of the glass, above 0 and at most 255.

    Example:
        >>> normalize = MacenkoNormalize.from_image(cv2.imread('reference.png'))
        >>> normalized = normalize(dict(img=image))['img']
    """

    def __init__(
        self,
        vectors: tuple = ((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581)),
        strengths: tuple[float, float] = (1.9705, 1.0308),
        light: float = 240.0,
    ) -> None:
        self.light = _check_light(light)
        target, amounts = to_array(vectors, (2, 3)), to_array(strengths, (2,))
        differ = 0 < np.linalg.norm(np.cross(*target)) < np.inf
        require(differ, 'vectors', vectors, 'two different stains of three numbers (R, G, B)')
        require(((amounts > 0) & (amounts < np.inf)).all(), 'strengths', strengths, 'a pair of numbers above 0')
        self.vectors, self.strengths = target.tolist(), amounts.tolist()
        self._target = target / np.linalg.norm(target, axis=1, keepdims=True) * amounts[:, None]

    @classmethod
    def from_image(cls, image: np.ndarray, light: float = 240.0) -> MacenkoNormalize:
        """Return the transform to the stains of ``image``, (H, W, 3) uint8 BGR; raise IgniteError if it shows no two."""
        check_image(image, cls.__name__)
        stains = estimate_stains(image, _check_light(light))
        if stains is None:
            size, expected = f'{image.shape[1]} x {image.shape[0]} px', 'tissue with nuclei and stroma was expected'
            raise IgniteError(f'The reference image of {size} shows no two stains; {expected}: choose another image.')
        return cls(*stains, light)

    def change(self, image: np.ndarray, results: dict) -> np.ndarray:
        stains = estimate_stains(image, self.light)
        if stains is None:
            return image
        matrix = np.linalg.pinv(stains.vectors) / stains.strengths @ self._target
        return map_density(image, matrix, np.zeros(3), light=self.light)


@TRANSFORMS.register_module()
class MacenkoAugment(_StainJitter, ImageTransform):
    """Scale and shift the two stains of an image, estimated from the image itself, at random.

    Like :class:`HEDJitter`, but along the stain vectors of :func:`estimate_stains` (Macenko et al. 2009): each of the two
    concentrations c becomes alpha * c + beta. The residual orthogonal to both is kept, so alpha 1 and beta 0 change
    nothing. An image whose stains cannot be separated is kept. Always draws five numbers from ``np.random``. Changes
    ``img``, (H, W, 3) uint8 BGR.

    Args:
        sigma, bias, prob: as in :class:`HEDJitter`, with one number for both stains, or two (haematoxylin, eosin).
        glass: change the glass as well. By default pixels with a green density below 0.10 are kept, and the change rises
            linearly up to 0.25.
        light: intensity of the glass, above 0 and at most 255.

    Example: ``dict(type='MacenkoAugment', sigma=0.2, prob=0.5)``
    """

    def __init__(
        self,
        sigma: float | tuple = 0.2,
        bias: float | tuple = 0.05,
        prob: float = 1.0,
        glass: bool = False,
        light: float = 240.0,
    ) -> None:
        super().__init__(2, sigma, bias, prob)
        self.glass, self.light = glass, _check_light(light)
        self._share = None if glass else tissue_share(light)

    def change(self, image: np.ndarray, results: dict) -> np.ndarray:
        wanted, alpha, beta = self._sample()
        stains = estimate_stains(image, self.light) if wanted else None
        if stains is None:
            return image
        vectors = stains.vectors
        # Only the two concentrations change: the residual is kept.
        matrix = np.eye(3) + np.linalg.pinv(vectors) * (alpha - 1) @ vectors
        return map_density(image, matrix, beta @ vectors, self._share, self.light)
