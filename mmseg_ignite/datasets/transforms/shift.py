"""How well a model holds on slides of another laboratory: the images of a test, as if stained and scanned elsewhere."""

import zlib
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS

from ...errors import IgniteError
from .lab import lab_statistics, map_lab
from .stain import check_image, estimate_stains, map_from_light

_LIGHT = 240.0
BLUR_PX, JPEG_QUALITY = 0.7, 75


class _Laboratory(NamedTuple):
    """Stain of a laboratory: means over its ROIs, and how far those differ.

    Attributes:
        mean, mean_between: L, a, b of the tissue, and their standard deviation between ROIs.
        spread, spread_between: standard deviation of L, a, b within an ROI, and that of it between ROIs.
        vectors: haematoxylin and eosin (Macenko), R, G, B.
        strengths, strengths_between: 99th percentile of their concentrations.
    """

    mean: tuple[float, float, float]
    mean_between: tuple[float, float, float]
    spread: tuple[float, float, float]
    spread_between: tuple[float, float, float]
    vectors: tuple
    strengths: tuple[float, float]
    strengths_between: tuple[float, float]


LABORATORIES = dict(
    wsss4luad=_Laboratory(
        (54.7, 34.8, -16.4), (8.0, 3.0, 3.4), (15.6, 7.9, 8.0), (1.7, 1.0, 0.7),
        ((0.576, 0.733, 0.357), (0.180, 0.886, 0.424)), (2.66, 1.24), (0.48, 0.36)),
    glas=_Laboratory(
        (58.0, 44.2, -29.0), (6.3, 8.8, 4.4), (13.8, 9.4, 9.9), (1.9, 1.5, 1.1),
        ((0.451, 0.844, 0.280), (0.179, 0.946, 0.245)), (2.11, 1.32), (0.49, 0.37)),
)  # fmt: skip
"""Measured on 31 ROIs of lung adenocarcinoma of WSSS4LUAD (Han et al. 2022) and 23 ROIs of colon of GlaS (Sirinukunwattana et
al. 2017), which is more magenta."""

SHIFTS = {
    'lab': 'tissue with the mean and spread in L*a*b* of another laboratory, white glass',
    'lab-tinted': 'the same under a light that colours the glass',
    'scanner': 'Macenko stain vectors of another laboratory, colour matrix of another camera',
}
"""What each kind of shift does, beside blur and JPEG compression."""


@TRANSFORMS.register_module()
class StainShift(BaseTransform):
    """Show an image as if another laboratory had stained it and another scanner had read it. For tests, not for training.

    The shift is fixed: its numbers follow from ``seed`` and the name of the ROI, so every model is tested on the same
    images. There are two families, and an augmentation is judged by the one that it does not resemble:

    - 'lab': mean and standard deviation of L, a, b of the tissue become those of the laboratory of :data:`LABORATORIES`
      whose mean is farther from the image's own, varied as far as its ROIs differ. The glass stays white.
    - 'lab-tinted': the same; then the light has another colour: channels are multiplied by 0.84 to 1.
    - 'scanner': both stains, as Macenko's method finds them, get vectors and strengths of that laboratory, and
      a 3 x 3 matrix mixes R, G and B by up to 8 % and dims each by up to 8 %, as between two cameras. The glass takes part.

    All end with a Gaussian blur of 0.7 px and JPEG of quality 75. An image with hardly any tissue keeps its stain and gets
    the rest.

    Required Keys:

    - img (np.uint8, (H, W, 3), BGR)
    - roi or img_path (optional): names the image

    Modified Keys:

    - img

    Args:
        kind (str): 'lab', 'lab-tinted' or 'scanner'. Defaults to 'lab'.
        seed (int): Of the numbers that are drawn, 0 or more. Defaults to 0.

    Raises:
        IgniteError: another kind or a negative seed.

    Example:
        In a config, right after the loaders of ``test_pipeline``::

            dict(type='StainShift', kind='scanner')
    """

    def __init__(self, kind: str = 'lab', seed: int = 0) -> None:
        if kind not in SHIFTS:
            raise IgniteError(f'the kind of StainShift is {kind!r}; one of {", ".join(SHIFTS)} was expected.')
        if not isinstance(seed, int) or seed < 0:
            raise IgniteError(f'the seed of StainShift is {seed!r}; 0 or more was expected.')
        self.kind, self.seed = kind, seed

    def transform(self, results: dict) -> dict:
        image = results['img']
        check_image(image, type(self).__name__)
        rng = self._generator(results)
        own = lab_statistics(image)
        if own is not None:
            target = max(LABORATORIES.values(), key=lambda lab: np.linalg.norm(own.mean - lab.mean))
            image = _restain(image, target, rng) if self.kind == 'scanner' else _recolour(image, own, target, rng)
        if self.kind == 'lab-tinted':
            image = _mix(image, np.diag(rng.uniform(0.84, 1, 3)))
        elif self.kind == 'scanner':
            image = _mix(image, _camera(rng))
        image = cv2.GaussianBlur(image, (0, 0), BLUR_PX)
        _, stream = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        results['img'] = cv2.imdecode(stream, cv2.IMREAD_COLOR)
        return results

    def _generator(self, results: dict) -> np.random.Generator:
        name = str(results.get('roi') or Path(str(results.get('img_path') or '')).stem)
        family = self.kind.split('-')[0]  # so that 'lab' and 'lab-tinted' differ in the light alone
        key = np.array([self.seed, zlib.crc32(f'{family}/{name}'.encode())], np.uint64)
        return np.random.Generator(np.random.Philox(key=key))

    def __repr__(self) -> str:
        return f'{type(self).__name__}(kind={self.kind!r}, seed={self.seed})'


def shifted_rgb(image: np.ndarray, name: str, kind: str) -> np.ndarray:
    """An image, (H, W, 3) uint8 RGB, of the ROI ``name`` as :class:`StainShift` of this kind shows it, RGB."""
    bgr = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGR)
    return cv2.cvtColor(StainShift(kind).transform(dict(img=bgr, roi=name))['img'], cv2.COLOR_BGR2RGB)


def _drawn(centre: tuple[float, ...], between: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    """Numbers around ``centre``, within one standard deviation."""
    return np.array(centre) + np.array(between) * rng.uniform(-1, 1, len(centre))


def _recolour(image: np.ndarray, own: tuple, target: _Laboratory, rng: np.random.Generator) -> np.ndarray:
    mean = _drawn(target.mean, target.mean_between, rng)
    spread = _drawn(target.spread, target.spread_between, rng)
    scale = spread / np.maximum(own.spread, 1.0)
    return map_lab(image, scale, mean - scale * own.mean)


def _restain(image: np.ndarray, target: _Laboratory, rng: np.random.Generator) -> np.ndarray:
    strengths = _drawn(target.strengths, target.strengths_between, rng)
    stains = estimate_stains(image, _LIGHT)
    if stains is None:
        return image
    wanted = np.array(target.vectors)
    wanted *= (strengths / stains.strengths / np.linalg.norm(wanted, axis=1))[:, None]
    # The change of the two concentrations only: what neither stain explains, such as carbon, is kept.
    matrix = np.eye(3) + np.linalg.pinv(stains.vectors) @ (wanted - stains.vectors)
    return map_from_light(image, matrix, np.zeros(3), _LIGHT)


def _camera(rng: np.random.Generator) -> np.ndarray:
    """(3, 3): from B, G, R to B, G, R of another camera. Rows sum to the gains, 0.92 to 1."""
    mixed = rng.uniform(-0.08, 0.08, (3, 3))
    np.fill_diagonal(mixed, 0)
    np.fill_diagonal(mixed, 1 - mixed.sum(1))
    return mixed * rng.uniform(0.92, 1, (3, 1))


def _mix(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return cv2.transform(image, matrix.astype(np.float32))
