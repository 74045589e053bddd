"""Test-time shift to the stain and scanner of another laboratory, to measure how robust a model is."""

import zlib
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from mmseg.registry import TRANSFORMS

from ...errors import require
from .base import ImageTransform
from .lab import lab_statistics, match_lab
from .scanner import JPEGCompression
from .stain import estimate_stains, map_density

_LIGHT = 240.0
BLUR_PX, JPEG_QUALITY = 0.7, 75


class _Laboratory(NamedTuple):
    """Stain of a laboratory: means over its ROIs, and standard deviations between them (``_between``)."""

    mean: tuple[float, float, float]  # of L, a, b over the tissue
    mean_between: tuple[float, float, float]
    spread: tuple[float, float, float]  # standard deviation of L, a, b within an ROI
    spread_between: tuple[float, float, float]
    vectors: tuple  # haematoxylin and eosin (Macenko), R, G, B
    strengths: tuple[float, float]  # 99th percentile of their concentrations
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

SHIFTS = ('lab', 'lab-tinted', 'scanner')


@TRANSFORMS.register_module()
class StainShift(ImageTransform):
    """Show an image as if another laboratory had stained and scanned it. For tests, not for training.

    The shift is fixed: it depends only on ``seed`` and the name of the ROI, so every model is tested on the same images.
    There are two families; judge an augmentation by the one that it does not resemble:

    - 'lab': mean and standard deviation of L, a, b of the tissue become those of a laboratory of :data:`LABORATORIES`, the
      one whose mean is farther from the image's own, with a variation of one standard deviation between its ROIs. The
      glass stays white.
    - 'lab-tinted': the same under coloured light: each channel is multiplied by 0.84 to 1.
    - 'scanner': both stains, found by Macenko's method, get the vectors and strengths of that laboratory; then a 3 x 3
      matrix mixes R, G and B by up to 8 % and dims each by up to 8 %, as between two cameras. The glass changes too.

    All end with a Gaussian blur of 0.7 px and JPEG of quality 75. An image with hardly any tissue keeps its stain and gets
    the rest. Changes ``img``, (H, W, 3) uint8 BGR; ``roi`` or ``img_path`` name the image. Raise IgniteError if ``kind`` is
    unknown or ``seed`` negative.

    Example: ``dict(type='StainShift', kind='scanner')``, right after the loaders of ``test_pipeline``
    """

    def __init__(self, kind: str = 'lab', seed: int = 0) -> None:
        require(kind in SHIFTS, 'the kind of StainShift', kind, f'one of {", ".join(SHIFTS)}')
        require(isinstance(seed, int) and seed >= 0, 'the seed of StainShift', seed, 'a whole number, 0 or more,')
        self.kind, self.seed = kind, seed

    def change(self, image: np.ndarray, results: dict) -> np.ndarray:
        name = str(results.get('roi') or Path(str(results.get('img_path') or '')).stem)
        family = self.kind.split('-')[0]  # so that 'lab' and 'lab-tinted' differ only in the light
        key = np.array([self.seed, zlib.crc32(f'{family}/{name}'.encode())], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key))
        if (own := lab_statistics(image)) is not None:
            target = max(LABORATORIES.values(), key=lambda lab: np.linalg.norm(own.mean - lab.mean))
            if family == 'scanner':
                image = _restain(image, target, rng)
            else:
                mean = _vary(target.mean, target.mean_between, rng)
                image = match_lab(image, own, mean, _vary(target.spread, target.spread_between, rng))
        if self.kind == 'lab-tinted':
            image = cv2.transform(image, np.diag(rng.uniform(0.84, 1, 3)).astype(np.float32))
        elif self.kind == 'scanner':
            mixed = rng.uniform(-0.08, 0.08, (3, 3))  # B, G, R of another camera; rows sum to the gains
            np.fill_diagonal(mixed, 0)
            np.fill_diagonal(mixed, 1 - mixed.sum(1))
            image = cv2.transform(image, (mixed * rng.uniform(0.92, 1, (3, 1))).astype(np.float32))
        return JPEGCompression(JPEG_QUALITY).apply(cv2.GaussianBlur(image, (0, 0), BLUR_PX))


def shifted_rgb(image: np.ndarray, name: str, kind: str) -> np.ndarray:
    """Return an image of the ROI ``name``, (H, W, 3) uint8 RGB, after :class:`StainShift` of this kind."""
    bgr = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGR)
    return cv2.cvtColor(StainShift(kind).transform(dict(img=bgr, roi=name))['img'], cv2.COLOR_BGR2RGB)


def _vary(centre: tuple[float, ...], between: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    """Return random numbers around ``centre``, within one standard deviation ``between``."""
    return np.array(centre) + np.array(between) * rng.uniform(-1, 1, len(centre))


def _restain(image: np.ndarray, target: _Laboratory, rng: np.random.Generator) -> np.ndarray:
    strengths = _vary(target.strengths, target.strengths_between, rng)
    stains = estimate_stains(image, _LIGHT)
    if stains is None:
        return image
    wanted = np.array(target.vectors)
    wanted *= (strengths / stains.strengths / np.linalg.norm(wanted, axis=1))[:, None]
    # Only the two concentrations change: the residual of both stains, such as carbon, is kept.
    matrix = np.eye(3) + np.linalg.pinv(stains.vectors) @ (wanted - stains.vectors)
    return map_density(image, matrix, np.zeros(3), light=_LIGHT)
