"""Colour statistics of the tissue in CIE L*a*b*: measure, map and randomise them.

L is 0..100, a (green to red) and b (blue to yellow) about -128..127. A change of stains (see :mod:`.stain`) is linear in
optical density; a change of these statistics is linear in perceived colour.
"""

from collections import namedtuple
from functools import lru_cache

import cv2
import numpy as np
from mmseg.registry import TRANSFORMS

from ..prepared import open_array
from .base import ColourChange, DrawnTransform, ImageTransform, check_lab, check_prob, map_blocks, sample_grid
from .stain import tissue_share

_MIN_TISSUE = 64  # tissue pixels among the measured ones
_ONE = (1.0, 1.0, 1.0, 1.0)
_Triple = tuple[float, float, float]
TISSUE_SHARE = tissue_share().astype(np.float32)
LabStatistics = namedtuple('LabStatistics', ['mean', 'spread'])
"""Mean and standard deviation of L, a, b over the tissue of an image, (3,) float64 each."""


def lab_statistics(image: np.ndarray, rgb: bool = False) -> LabStatistics | None:
    """Measure L, a, b of the tissue of an image, (H, W, 3) uint8 BGR (or RGB), on about 16,000 pixels of a regular grid.

    Return None if fewer than 64 pixels of the grid are tissue (green density of at least 0.175).
    """
    pixels = np.ascontiguousarray(sample_grid(image))
    tissue = TISSUE_SHARE[pixels[..., 1]] >= 0.5
    if tissue.sum() < _MIN_TISSUE:
        return None
    lab = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB if rgb else cv2.COLOR_BGR2LAB)
    lab = lab[tissue].astype(np.float64)
    return LabStatistics(lab.mean(0), lab.std(0))


def map_lab(image: np.ndarray, scale: np.ndarray, offset: np.ndarray, glass: bool = False) -> np.ndarray:
    """Map L, a, b of every pixel of an image, (H, W, 3) uint8 BGR, to ``scale * value + offset``, (3,) each.

    Unless ``glass`` is set, pixels with a green density below 0.10 are kept, and the change rises linearly up to 0.25.
    Colours outside RGB saturate.
    """
    matrix = np.column_stack([np.diag(scale), offset]).astype(np.float32)

    def change(part: np.ndarray) -> np.ndarray:
        part = np.ascontiguousarray(part)
        source = cv2.multiply(part, _ONE, scale=1 / 255, dtype=cv2.CV_32F)
        lab = cv2.transform(cv2.cvtColor(source, cv2.COLOR_BGR2LAB), matrix)
        np.clip(lab[..., 0], 0, 100, out=lab[..., 0])  # OpenCV's conversion is undefined beyond it
        mapped = cv2.cvtColor(lab, cv2.COLOR_LAB2BGR)  # clipped to 0..1
        if not glass:
            share = cv2.LUT(cv2.cvtColor(part[..., 1], cv2.COLOR_GRAY2BGR), TISSUE_SHARE)
            cv2.subtract(mapped, source, mapped)
            cv2.multiply(mapped, share, mapped)
            cv2.add(mapped, source, mapped)
        return mapped

    return map_blocks(image, change, 255)


def match_lab(image: np.ndarray, own: LabStatistics, mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Map an image with the statistics ``own`` to another mean and spread of L, a, b, (3,) each; the glass is kept."""
    return LabMap.between(own, mean, spread).apply(image)


class LabMap(ColourChange):
    """Map L, a, b to ``scale * value + offset``, (3,) each, and keep the glass; see :func:`map_lab`."""

    def __init__(self, scale: np.ndarray, offset: np.ndarray) -> None:
        self.scale, self.offset = scale, offset

    @classmethod
    def between(cls, own: LabStatistics, mean: np.ndarray, spread: np.ndarray) -> 'LabMap':
        """Return the map from the statistics ``own`` to another mean and spread, (3,) each."""
        scale = spread / np.maximum(own.spread, 1.0)
        return cls(scale, mean - scale * own.mean)

    def apply(self, image: np.ndarray) -> np.ndarray:
        return map_lab(image, self.scale, self.offset)


@TRANSFORMS.register_module()
class RandStainNA(DrawnTransform):
    """Give the tissue random colours from the range of many laboratories, so that colour no longer reveals the origin.

    After `Shen et al. 2022, RandStainNA <https://doi.org/10.1007/978-3-031-16434-7_21>`_: mean and spread of L, a and b
    are sampled from normal distributions clipped at two standard deviations. If the image is a crop of a prepared array,
    the map starts from the statistics of the whole ROI, so that crops of stroma and of tumour keep their difference;
    otherwise from those of the image. Glass and images with hardly any tissue are kept. Always draws seven numbers from
    ``np.random``. Changes ``img``, (H, W, 3) uint8 BGR; ``img_path`` may name the prepared array that it is a crop of.

    Args:
        mean, mean_between: mean of L, a, b over the tissue (-128 to 128) and its standard deviation between images (0 to
            50). The defaults cover lung and colon of two laboratories (see
            :data:`mmseg_ignite.datasets.transforms.shift.LABORATORIES`).
        spread, spread_between: the same for the standard deviation of L, a, b within an image (1 to 50; 0 to 20).
        prob: probability of a change.

    Example: ``dict(type='RandStainNA', prob=0.5)``
    """

    def __init__(
        self,
        mean: _Triple = (56.0, 39.0, -22.0),
        mean_between: _Triple = (8.0, 8.0, 8.0),
        spread: _Triple = (14.8, 8.7, 9.0),
        spread_between: _Triple = (1.8, 1.2, 1.0),
        prob: float = 1.0,
    ) -> None:
        self.mean = check_lab('mean', mean, -128, 128)
        self.mean_between = check_lab('mean_between', mean_between, 0, 50)
        self.spread = check_lab('spread', spread, 1, 50)
        self.spread_between = check_lab('spread_between', spread_between, 0, 20)
        self.prob = check_prob('prob', prob)

    def draw(self, results: dict) -> list[ColourChange | None]:
        wanted = np.random.random() < self.prob
        numbers = np.clip(np.random.standard_normal((2, 3)), -2, 2)
        if not wanted:
            return [None]
        path = str(results.get('img_path') or '')
        own = _statistics_of_array(path) if path.endswith('.npy') else lab_statistics(results['img'])
        if own is None:
            return [None]
        mean = self.mean + numbers[0] * self.mean_between
        spread = np.maximum(self.spread + numbers[1] * self.spread_between, 1.0)
        return [LabMap.between(own, mean, spread)]


@lru_cache(maxsize=4096)
def _statistics_of_array(path: str) -> LabStatistics | None:
    return lab_statistics(open_array(path), rgb=True)


@TRANSFORMS.register_module()
class LABJitter(ImageTransform):
    """Shift and stretch the colour statistics of the tissue in L*a*b* at random.

    Like :class:`RandStainNA`, but relative to the image's own statistics: a crop of stroma keeps looking like stroma, and
    nothing has to be measured beforehand. Images with hardly any tissue are kept. Always draws seven numbers from
    ``np.random``. Changes ``img``, (H, W, 3) uint8 BGR.

    Args:
        mean: standard deviation of the shift of the mean of L, a, b, 0 to 50; shifts are clipped at two of them. The default
            is the standard deviation between slides of two laboratories.
        spread: standard deviation of the logarithm of the stretch of L, a, b, 0 to 1.
        prob: probability of a change.
        glass: change the glass as well.

    Example: ``dict(type='LABJitter', mean=(4, 3, 4), prob=0.5)``
    """

    def __init__(
        self, mean: _Triple = (6.0, 5.0, 6.0), spread: float = 0.12, prob: float = 1.0, glass: bool = False
    ) -> None:
        self.mean, self.spread = check_lab('mean', mean, 0, 50), check_prob('spread', spread)
        self.prob, self.glass = check_prob('prob', prob), glass

    def change(self, image: np.ndarray, results: dict) -> np.ndarray:
        wanted = np.random.random() < self.prob
        shift, stretch = np.clip(np.random.standard_normal((2, 3)), -2, 2)
        own = lab_statistics(image) if wanted else None
        if own is None:
            return image
        scale = np.exp(self.spread * stretch)
        return map_lab(image, scale, own.mean * (1 - scale) + shift * self.mean, self.glass)
