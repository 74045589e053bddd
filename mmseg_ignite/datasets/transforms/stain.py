"""Colour of the stain: jitter in haematoxylin-eosin-DAB space, and Macenko's normalisation and augmentation.

Light through a slide falls off exponentially with the amount of stain (Beer-Lambert), so a change of stains is a linear
map of optical densities. Every transform here comes down to one 3 x 3 matrix and an offset, which
:func:`map_density` applies. Densities are natural logarithms, -ln(intensity / 255), in the order R, G, B; stain vectors
have unit length, so a concentration is the density along its vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import NamedTuple

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS

from ...errors import IgniteError

HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Haematoxylin, eosin and DAB in R, G, B, of unit length to 0.3 % (Ruifrok & Johnston 2001)."""

WHITE = float(np.log(255))
# 0.4 for zero: as near to 1 as still rounds back to 0, so that the identity map is the identity for all 256 values.
_LOG = np.log(np.maximum(np.arange(256), 0.4)).astype(np.float32)
_BLOCK = 16384  # pixels whose densities stay in the L2 cache: four times as fast as the whole image at once

TISSUE_DENSITY = 0.15  # in every channel, relative to the glass (Macenko et al. 2009)
ANGLE_PERCENTILES = (1, 99)
STRENGTH_PERCENTILE = 99
_SAMPLE = 16384  # pixels from which stains are estimated
_MIN_TISSUE = 256  # tissue pixels among them; of fewer, the outer percentiles are one or two pixels
_MIN_ANGLE = np.deg2rad(8)  # between the stains; less is one stain and noise (H&E of several labs: 14 to 30)
_GLASS_RAMP = (0.10, 0.25)  # green density (both stains absorb green) of glass and of what surely is tissue


class Stains(NamedTuple):
    """The two stains of an image, haematoxylin first.

    Attributes:
        vectors: (2, 3) float64, unit length, R, G, B.
        strengths: (2,) float64, 99th percentile of each one's concentration in the tissue.
    """

    vectors: np.ndarray
    strengths: np.ndarray


def check_image(image: np.ndarray, who: str) -> None:
    """Raise IgniteError, naming ``who`` got it, unless ``image`` is (H, W, 3) uint8."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise IgniteError(
            f'{who} got a {image.dtype} image of shape {image.shape}; (H, W, 3) uint8 in BGR was '
            'expected: put it before whatever turns the image into floats.'
        )


def check_prob(name: str, value: float) -> float:
    """``value`` if it is a probability, else IgniteError."""
    if not isinstance(value, Real) or not 0 <= value <= 1:
        raise IgniteError(f'{name} is {value!r}; a probability from 0 to 1 was expected.')
    return value


def check_range(name: str, value: object, lowest: float, highest: float) -> tuple[float, float]:
    """``value`` as (low, high) if it is a range within ``lowest`` .. ``highest``, else IgniteError."""
    low, high = _numbers(value, (2,))
    if not lowest <= low <= high <= highest:
        raise IgniteError(f'{name} is {value!r}; a range (low, high) within {lowest:g} and {highest:g} was expected.')
    return float(low), float(high)


def _numbers(value: object, shape: tuple[int, ...]) -> np.ndarray:
    """``value`` as a float64 array, all NaN (which passes no check) if it is none of this shape."""
    try:
        array = np.array(value, float)
    except (TypeError, ValueError):
        array = np.empty(0)
    return array if array.shape == shape else np.full(shape, np.nan)


def _stain_ranges(name: str, value: object, stains: int, limit: float) -> np.ndarray:
    """(stains, 2) float64: a number x is (-x, x), and a single one counts for every stain."""
    values = [value] * stains if isinstance(value, Real) else value
    pairs = [(-v, v) if isinstance(v, Real) else v for v in values] if isinstance(values, Sequence) else None
    ranges = _numbers(pairs, (stains, 2))
    if not ((-limit <= ranges[:, 0]) & (ranges[:, 0] <= ranges[:, 1]) & (ranges[:, 1] <= limit)).all():
        raise IgniteError(
            f'{name} is {value!r}; a number from 0 to {limit:g} was expected, or {stains} of them, each a number or a '
            f'range (low, high) within {-limit:g} and {limit:g}.'
        )
    return ranges


def tissue_share(light: float = 240.0) -> np.ndarray:
    """(256,) float64: how far a pixel of each green intensity is tissue; 0 for glass, 1 for what surely is tissue."""
    return np.interp(np.log(light) - _LOG, _GLASS_RAMP, (0, 1))


def _check_light(light: float) -> float:
    if not isinstance(light, Real) or not 0 < light <= 255:
        raise IgniteError(f'light is {light!r}; an intensity above 0 and at most 255 was expected.')
    return light


def map_density(
    image: np.ndarray, matrix: np.ndarray, offset: np.ndarray, share: np.ndarray | None = None
) -> np.ndarray:
    """Map the optical densities D of every pixel to D . matrix + offset.

    Intensity 0, whose density is infinite, counts as 0.4; results are rounded to the nearest intensity and saturate.

    Args:
        image: (H, W, 3) uint8, BGR.
        matrix: (3, 3), in R, G, B: row i holds what a density of 1 in channel i becomes.
        offset: (3,), in R, G, B.
        share: (256,), 0..1, by green intensity: how much of its change of density a pixel gets. Defaults to None: all.

    Returns:
        (H, W, 3) uint8, BGR, a new array.
    """
    matrix, offset = np.asarray(matrix)[::-1, ::-1], np.asarray(offset)[::-1]
    # With L = ln(intensity) = WHITE - D the map reads L -> L . matrix + constant.
    constant = WHITE * (1 - matrix.sum(0)) - offset
    if share is not None:
        matrix = matrix - np.eye(3)  # the change alone
        share = share.astype(np.float32)
    affine = np.column_stack([matrix.T, constant]).astype(np.float32)

    out = np.empty(image.shape, np.uint8)
    height, width = image.shape[:2]
    rows = max(1, min(height, _BLOCK // width))
    light, mapped = np.empty((2, rows, width, 3), np.float32)
    for top in range(0, height, rows):
        part = image[top : top + rows]
        source, target = light[: len(part)], mapped[: len(part)]
        cv2.LUT(part, _LOG, source)
        cv2.transform(source, affine, target)
        if share is not None:
            green = cv2.cvtColor(part[..., 1], cv2.COLOR_GRAY2BGR)
            cv2.multiply(target, cv2.LUT(green, share), target)
            cv2.add(target, source, target)
        # Brighter than white would overflow the conversion's integers and come out black.
        cv2.threshold(target, WHITE, 0, cv2.THRESH_TRUNC, target)
        cv2.exp(target, target)
        cv2.convertScaleAbs(target, out[top : top + rows])
    return out


def estimate_stains(image: np.ndarray, light: float = 240.0) -> Stains | None:
    """Find the two stains of an H&E image by the method of Macenko et al. (2009).

    The plane of the two largest singular vectors of the tissue's densities holds the stains; they lie at the 1st and
    99th percentile of the angle in it. Haematoxylin is the one that absorbs more red. Tissue is what has a density of
    at least 0.15 in every channel. About 16000 pixels of a regular grid are looked at.

    Args:
        image: (H, W, 3) uint8, BGR.
        light: intensity of the glass; densities count from it.

    Returns:
        The stains, or None where there are none to tell apart: fewer than 256 tissue pixels on the grid, or vectors
        less than 8 degrees apart (one stain, or one colour).
    """
    step = max(1, round((image.shape[0] * image.shape[1] / _SAMPLE) ** 0.5))
    pixels = image[::step, ::step].reshape(-1, 3)
    tissue = pixels[pixels.max(1) <= light * np.exp(-TISSUE_DENSITY)]
    if len(tissue) < _MIN_TISSUE:
        return None
    density = np.float32(np.log(light)) - _LOG[tissue[:, ::-1]]
    # Eigenvectors of D^T D are the right singular vectors of D; the largest eigenvalue comes last.
    plane = np.linalg.eigh((density.T @ density).astype(np.float64))[1][:, :0:-1]
    plane[:, 0] *= np.sign(plane[:, 0].sum())  # the first one points into the (positive) densities
    first, second = (density @ plane.astype(np.float32)).T
    low, high = np.percentile(np.arctan2(second, first), ANGLE_PERCENTILES)
    if high - low < _MIN_ANGLE:
        return None
    vectors = np.array([[np.cos(angle), np.sin(angle)] for angle in (low, high)]) @ plane.T
    vectors = vectors[np.argsort(-vectors[:, 0])]
    concentrations = density @ np.linalg.pinv(vectors).astype(np.float32)
    return Stains(vectors, np.percentile(concentrations, STRENGTH_PERCENTILE, axis=0))


def map_from_light(
    image: np.ndarray, matrix: np.ndarray, offset: np.ndarray, light: float, share: np.ndarray | None = None
) -> np.ndarray:
    """:func:`map_density` for densities that count from ``light`` instead of 255."""
    glass = np.full(3, WHITE - np.log(light))
    return map_density(image, matrix, glass - glass @ matrix + offset, share)


@TRANSFORMS.register_module()
class HEDJitter(BaseTransform):
    """Scale and shift the haematoxylin, eosin and DAB (residual) of an image at random.

    The densities are split by the colour deconvolution of Ruifrok & Johnston, each of the three concentrations c
    becomes alpha * c + beta, and they are mixed again, after `Tellez et al. 2018, Whole-slide mitosis detection in H&E
    breast histology using PHH3 as a reference to train distilled stain-invariant CNNs
    <https://doi.org/10.1109/TMI.2018.2820199>`_. Seven numbers are drawn from ``np.random`` whatever the image.

    Required Keys:

    - img (np.uint8, (H, W, 3), BGR)

    Modified Keys:

    - img

    Args:
        sigma (float | tuple): alpha is drawn from (1 - sigma, 1 + sigma); one number for all of H, E and DAB, or
            three, each a number or a range (low, high) of alpha - 1. From -1 to 1. The authors later called 0.05
            light and 0.2 strong; at 0.2 a few draws are browner or more magenta than H&E is. Defaults to 0.1.
        bias (float | tuple): beta is drawn from (-bias, bias); as ``sigma``, a range being one of beta. In optical
            density (natural logarithm), from -5 to 5. It colours the glass too, at 0.02 by up to 5 %. Defaults to 0.02.
        prob (float): Probability of a change. Defaults to 1.0.
    """

    _UNMIX = np.linalg.inv(HED)

    def __init__(self, sigma: float | tuple = 0.1, bias: float | tuple = 0.02, prob: float = 1.0) -> None:
        self.sigma, self.bias, self.prob = sigma, bias, check_prob('prob', prob)
        self._alpha = 1 + _stain_ranges('sigma', sigma, 3, 1)
        self._beta = _stain_ranges('bias', bias, 3, 5)

    def transform(self, results: dict) -> dict:
        check_image(results['img'], type(self).__name__)
        wanted = np.random.random() < self.prob
        alpha, beta = np.random.uniform(*self._alpha.T), np.random.uniform(*self._beta.T)
        if wanted:
            results['img'] = map_density(results['img'], self._UNMIX * alpha @ HED, beta @ HED)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(sigma={self.sigma}, bias={self.bias}, prob={self.prob})'


@TRANSFORMS.register_module()
class MacenkoNormalize(BaseTransform):
    """Give the stains of an image the colours and strengths of a target.

    After `Macenko et al. 2009, A method for normalizing histology slides for quantitative analysis
    <https://doi.org/10.1109/ISBI.2009.5193250>`_; see :func:`estimate_stains`. What neither stain explains is dropped.
    An image whose stains cannot be told apart (glass, one colour, a few pixels) stays as it is. Where a single stain
    varies in hue, the method paints a second one: prefer whole ROIs to small crops. The default target is browner than
    most H&E; :meth:`from_image` takes one from an image of your own.

    Required Keys:

    - img (np.uint8, (H, W, 3), BGR)

    Modified Keys:

    - img

    Args:
        vectors (tuple): Haematoxylin and eosin of the target, (2, 3), R, G, B; scaled to unit length. Defaults
            to the reference of M. Veta's implementation of the paper, in common use.
        strengths (tuple): 99th percentiles of the target's two concentrations, in optical density (natural
            logarithm). Defaults to (1.9705, 1.0308), of the same source.
        light (float): Intensity of the glass, above 0 and at most 255. Defaults to 240.
    """

    def __init__(
        self,
        vectors: tuple = ((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581)),
        strengths: tuple[float, float] = (1.9705, 1.0308),
        light: float = 240.0,
    ) -> None:
        self.light = _check_light(light)
        self.vectors, self.strengths = _numbers(vectors, (2, 3)), _numbers(strengths, (2,))
        if not 0 < np.linalg.norm(np.cross(*self.vectors)) < np.inf:
            raise IgniteError(f'vectors is {vectors!r}; two different stains of three numbers (R, G, B) were expected.')
        if not ((self.strengths > 0) & (self.strengths < np.inf)).all():
            raise IgniteError(f'strengths is {strengths!r}; two numbers above 0 were expected.')
        unit = self.vectors / np.linalg.norm(self.vectors, axis=1, keepdims=True)
        self._target = unit * self.strengths[:, None]

    @classmethod
    def from_image(cls, image: np.ndarray, light: float = 240.0) -> MacenkoNormalize:
        """The transform that gives images the stains of ``image`` ((H, W, 3) uint8, BGR).

        Raises:
            IgniteError: if the two stains of ``image`` cannot be told apart.
        """
        check_image(image, cls.__name__)
        stains = estimate_stains(image, _check_light(light))
        if stains is None:
            raise IgniteError(
                f'The reference image of {image.shape[1]} x {image.shape[0]} px shows no two stains; tissue with nuclei '
                'and stroma was expected: choose another one.'
            )
        return cls(*stains, light)

    def transform(self, results: dict) -> dict:
        check_image(results['img'], type(self).__name__)
        stains = estimate_stains(results['img'], self.light)
        if stains is not None:
            matrix = np.linalg.pinv(stains.vectors) / stains.strengths @ self._target
            results['img'] = map_from_light(results['img'], matrix, np.zeros(3), self.light)
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(vectors={self.vectors.tolist()}, strengths={self.strengths.tolist()}, '
            f'light={self.light})'
        )


@TRANSFORMS.register_module()
class MacenkoAugment(BaseTransform):
    """Scale and shift the two stains of an image, estimated from itself, at random.

    As :class:`HEDJitter`, but along the stain vectors that :func:`estimate_stains` finds: each of the two
    concentrations c becomes alpha * c + beta; the residual orthogonal to both is kept, so that alpha 1 and beta 0
    change nothing. An image whose stains cannot be told apart stays as it is. Five numbers are drawn from
    ``np.random`` whatever the image.

    Required Keys:

    - img (np.uint8, (H, W, 3), BGR)

    Modified Keys:

    - img

    Args:
        sigma (float | tuple): alpha is drawn from (1 - sigma, 1 + sigma); one number for both stains, or two
            (haematoxylin, eosin), each a number or a range (low, high) of alpha - 1. From -1 to 1. Defaults to 0.2.
        bias (float | tuple): beta is drawn from (-bias, bias); as ``sigma``, a range being one of beta. In optical
            density (natural logarithm), from -5 to 5. Defaults to 0.05.
        prob (float): Probability of a change. Defaults to 1.0.
        glass (bool): Whether the glass changes with the tissue. Defaults to False: pixels with a green density below
            0.10 stay as they are, and up to 0.25 the change sets in gradually.
        light (float): Intensity of the glass, above 0 and at most 255. Defaults to 240.
    """

    def __init__(
        self,
        sigma: float | tuple = 0.2,
        bias: float | tuple = 0.05,
        prob: float = 1.0,
        glass: bool = False,
        light: float = 240.0,
    ) -> None:
        self.sigma, self.bias, self.prob = sigma, bias, check_prob('prob', prob)
        self.glass, self.light = glass, _check_light(light)
        self._alpha = 1 + _stain_ranges('sigma', sigma, 2, 1)
        self._beta = _stain_ranges('bias', bias, 2, 5)
        self._share = None if glass else tissue_share(light)

    def transform(self, results: dict) -> dict:
        check_image(results['img'], type(self).__name__)
        wanted = np.random.random() < self.prob
        alpha, beta = np.random.uniform(*self._alpha.T), np.random.uniform(*self._beta.T)
        stains = estimate_stains(results['img'], self.light) if wanted else None
        if stains is not None:
            vectors = stains.vectors
            # The change of the two concentrations only: the residual is untouched.
            matrix = np.eye(3) + np.linalg.pinv(vectors) * (alpha - 1) @ vectors
            results['img'] = map_from_light(results['img'], matrix, beta @ vectors, self.light, self._share)
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(sigma={self.sigma}, bias={self.bias}, prob={self.prob}, glass={self.glass}, '
            f'light={self.light})'
        )
