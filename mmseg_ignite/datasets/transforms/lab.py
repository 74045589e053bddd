"""Colour statistics of the tissue in CIE L*a*b*: measuring, mapping, and an augmentation that draws them.

L is 0..100, a (green to red) and b (blue to yellow) about -128..127. Unlike a change of stains (see :mod:`.stain`), which is
linear in optical density, a change of these statistics is linear in what the eye sees.
"""

from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS

from ...errors import IgniteError
from ..prepared import open_array
from .stain import check_image, check_prob, tissue_share

_SAMPLE = 16384  # pixels from which statistics are measured
_MIN_TISSUE = 64  # tissue pixels among them
_BLOCK = 16384  # pixels mapped at once, which stay in the L2 cache
_ONE = (1.0, 1.0, 1.0, 1.0)
TISSUE_SHARE = tissue_share().astype(np.float32)


class LabStatistics(NamedTuple):
    """Colour of an image's tissue.

    Attributes:
        mean: (3,) float64, mean of L, a, b over the tissue.
        spread: (3,) float64, their standard deviation.
    """

    mean: np.ndarray
    spread: np.ndarray


def lab_statistics(image: np.ndarray, rgb: bool = False) -> LabStatistics | None:
    """Mean and standard deviation of L, a, b over the tissue, from about 16,000 pixels of a regular grid.

    Args:
        image: (H, W, 3) uint8.
        rgb: whether the channels are R, G, B instead of B, G, R.

    Returns:
        The statistics, or None where fewer than 64 pixels of the grid are tissue (a green density of at least 0.175).
    """
    step = max(1, round((image.shape[0] * image.shape[1] / _SAMPLE) ** 0.5))
    pixels = np.ascontiguousarray(image[::step, ::step])
    tissue = TISSUE_SHARE[pixels[..., 1]] >= 0.5
    if tissue.sum() < _MIN_TISSUE:
        return None
    lab = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB if rgb else cv2.COLOR_BGR2LAB)[tissue].astype(
        np.float64
    )
    return LabStatistics(lab.mean(0), lab.std(0))


def map_lab(image: np.ndarray, scale: np.ndarray, offset: np.ndarray, glass: bool = False) -> np.ndarray:
    """Map L, a, b of every pixel to ``scale * value + offset``.

    Args:
        image: (H, W, 3) uint8, BGR.
        scale, offset: (3,), of L, a, b.
        glass: whether the glass changes with the tissue. Else pixels with a green density below 0.10 stay as they are, and
            up to 0.25 the change sets in gradually.

    Returns:
        (H, W, 3) uint8, BGR, a new array; colours outside RGB saturate.
    """
    matrix = np.column_stack([np.diag(scale), offset]).astype(np.float32)
    out = np.empty_like(image)
    rows = max(1, _BLOCK // image.shape[1])
    for top in range(0, len(image), rows):
        part = np.ascontiguousarray(image[top : top + rows])
        source = cv2.multiply(part, _ONE, scale=1 / 255, dtype=cv2.CV_32F)
        lab = cv2.transform(cv2.cvtColor(source, cv2.COLOR_BGR2LAB), matrix)
        np.clip(lab[..., 0], 0, 100, out=lab[..., 0])  # beyond it OpenCV's conversion is not defined
        mapped = cv2.cvtColor(lab, cv2.COLOR_LAB2BGR)  # clipped to 0..1
        if not glass:
            share = cv2.LUT(cv2.cvtColor(part[..., 1], cv2.COLOR_GRAY2BGR), TISSUE_SHARE)
            cv2.subtract(mapped, source, mapped)
            cv2.multiply(mapped, share, mapped)
            cv2.add(mapped, source, mapped)
        cv2.convertScaleAbs(mapped, out[top : top + rows], alpha=255)
    return out


@TRANSFORMS.register_module()
class RandStainNA(BaseTransform):
    """Give the tissue a colour drawn from those of many laboratories, so that colour no longer says where an image is from.

    After `Shen et al. 2022, RandStainNA <https://doi.org/10.1007/978-3-031-16434-7_21>`_: mean and spread of L, a and b
    become numbers drawn from normal distributions, of which draws beyond two standard deviations are cut. They are mapped
    from those of the whole ROI where the image is a crop of a prepared array, so that a crop of stroma and one of tumour
    keep their difference; else from those of the image. Glass stays as it is. Seven numbers are drawn from ``np.random``
    whatever the image; one with hardly any tissue stays as it is.

    Required Keys:

    - img (np.uint8, (H, W, 3), BGR)
    - img_path (optional): array of a prepared data set, of which ``img`` is a crop

    Modified Keys:

    - img

    Args:
        mean, mean_between (tuple[float, float, float]): Mean of L, a, b over the tissue and its standard deviation between
            images. Defaults to (56, 39, -22) and (8, 8, 8), which spans lung and colon of two laboratories (see
            :data:`mmseg_ignite.datasets.transforms.shift.LABORATORIES`).
        spread, spread_between (tuple[float, float, float]): The same for the standard deviation of L, a, b within an
            image. Defaults to (14.8, 8.7, 9) and (1.8, 1.2, 1).
        prob (float): Probability of a change. Defaults to 1.0.

    Raises:
        IgniteError: an argument out of range, or an array that cannot be read.
    """

    def __init__(
        self,
        mean: tuple[float, float, float] = (56.0, 39.0, -22.0),
        mean_between: tuple[float, float, float] = (8.0, 8.0, 8.0),
        spread: tuple[float, float, float] = (14.8, 8.7, 9.0),
        spread_between: tuple[float, float, float] = (1.8, 1.2, 1.0),
        prob: float = 1.0,
    ) -> None:
        self.mean, self.mean_between = tuple(mean), _triple('mean_between', mean_between, 0, 50)
        _triple('mean', mean, -128, 128)
        self.spread, self.spread_between = (
            _triple('spread', spread, 1, 50),
            _triple('spread_between', spread_between, 0, 20),
        )
        self.prob = check_prob('prob', prob)

    def transform(self, results: dict) -> dict:
        image = results['img']
        check_image(image, type(self).__name__)
        wanted = np.random.random() < self.prob
        numbers = np.clip(np.random.standard_normal((2, 3)), -2, 2)
        own = _statistics_of(results) if wanted else None
        if own is not None:
            mean = self.mean + numbers[0] * self.mean_between
            spread = np.maximum(self.spread + numbers[1] * self.spread_between, 1.0)
            scale = spread / np.maximum(own.spread, 1.0)
            results['img'] = map_lab(image, scale, mean - scale * own.mean)
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(mean={self.mean}, mean_between={self.mean_between}, spread={self.spread}, '
            f'spread_between={self.spread_between}, prob={self.prob})'
        )


def _triple(name: str, value: object, lowest: float, highest: float) -> tuple[float, float, float]:
    try:
        valid = len(value) == 3 and all(lowest <= v <= highest for v in value)
    except TypeError:
        valid = False
    if not valid:
        raise IgniteError(f'{name} is {value!r}; three numbers (L, a, b) from {lowest:g} to {highest:g} were expected.')
    return tuple(value)


def _statistics_of(results: dict) -> LabStatistics | None:
    """Of the array that an image is a crop of, else of the image."""
    path = str(results.get('img_path') or '')
    return _statistics_of_array(path) if path.endswith('.npy') else lab_statistics(results['img'])


@lru_cache(maxsize=4096)
def _statistics_of_array(path: str) -> LabStatistics | None:
    return lab_statistics(open_array(path), rgb=True)


@TRANSFORMS.register_module()
class LABJitter(BaseTransform):
    """Shift and stretch the colour statistics of the tissue in L*a*b* at random.

    RandStainNA (`Shen et al. 2022 <https://doi.org/10.1007/978-3-031-16434-7_21>`_) draws the mean and the spread of L, a and
    b that an image is to have from normal distributions around those of the data. Here they are drawn around those of the
    image itself: a crop of stroma keeps looking like stroma, and nothing has to be measured beforehand. Six numbers are drawn
    from ``np.random`` whatever the image; one with hardly any tissue stays as it is.

    Required Keys:

    - img (np.uint8, (H, W, 3), BGR)

    Modified Keys:

    - img

    Args:
        mean (tuple[float, float, float]): Standard deviation of the shift of the mean of L, a, b, 0 to 50; draws beyond two
            of them are cut. Defaults to (6, 5, 6), the spread between slides of two laboratories.
        spread (float): Standard deviation of the logarithm of the stretch of L, a, b, 0 to 1. Defaults to 0.12.
        prob (float): Probability of a change. Defaults to 1.0.
        glass (bool): Whether the glass changes with the tissue. Defaults to False.
    """

    def __init__(
        self,
        mean: tuple[float, float, float] = (6.0, 5.0, 6.0),
        spread: float = 0.12,
        prob: float = 1.0,
        glass: bool = False,
    ) -> None:
        self.mean, self.spread = _triple('mean', mean, 0, 50), check_prob('spread', spread)
        self.prob, self.glass = check_prob('prob', prob), glass

    def transform(self, results: dict) -> dict:
        image = results['img']
        check_image(image, type(self).__name__)
        wanted = np.random.random() < self.prob
        shift, stretch = np.clip(np.random.standard_normal((2, 3)), -2, 2)
        own = lab_statistics(image) if wanted else None
        if own is not None:
            scale = np.exp(self.spread * stretch)
            offset = own.mean * (1 - scale) + shift * self.mean
            results['img'] = map_lab(image, scale, offset, self.glass)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(mean={self.mean}, spread={self.spread}, prob={self.prob}, glass={self.glass})'
