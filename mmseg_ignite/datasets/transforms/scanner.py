"""What a scanner does to an image."""

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS

from .stain import check_image, check_prob, check_range


@TRANSFORMS.register_module()
class RandomScannerEffects(BaseTransform):
    """Blur, change the gamma of, and compress an image, each with a probability of its own.

    In the order of the light: Gaussian blur as of a focus slightly off, the camera's gamma, and JPEG as in most slide
    formats. Six numbers are drawn from ``np.random`` whatever happens.

    Required Keys:

    - img (np.uint8, (H, W, 3), BGR)

    Modified Keys:

    - img

    Args:
        blur_prob (float): Probability of blur. Defaults to 0.2.
        blur_sigma (tuple[float, float]): Range of its standard deviation in px, above 0. Defaults to (0.4, 0.9).
        gamma_prob (float): Probability of a change of gamma. Defaults to 0.3.
        gamma_range (tuple[float, float]): Range of gamma, drawn evenly in its logarithm; an intensity i becomes
            255 * (i / 255) ** gamma, so above 1 is darker and white stays white. Defaults to (0.85, 1.18).
        jpeg_prob (float): Probability of compression. Defaults to 0.15.
        jpeg_quality (tuple[int, int]): Range of OpenCV's JPEG quality, both ends included. Defaults to (60, 95).
    """

    def __init__(
        self,
        blur_prob: float = 0.2,
        blur_sigma: tuple[float, float] = (0.4, 0.9),
        gamma_prob: float = 0.3,
        gamma_range: tuple[float, float] = (0.85, 1.18),
        jpeg_prob: float = 0.15,
        jpeg_quality: tuple[int, int] = (60, 95),
    ) -> None:
        self.blur_prob, self.blur_sigma = check_prob('blur_prob', blur_prob), blur_sigma
        self.gamma_prob, self.gamma_range = check_prob('gamma_prob', gamma_prob), gamma_range
        self.jpeg_prob, self.jpeg_quality = check_prob('jpeg_prob', jpeg_prob), jpeg_quality
        self._sigmas = check_range('blur_sigma', blur_sigma, 0.05, 20)
        self._log_gammas = np.log(check_range('gamma_range', gamma_range, 0.05, 20))
        self._qualities = check_range('jpeg_quality', jpeg_quality, 1, 100)

    def transform(self, results: dict) -> dict:
        image = results['img']
        check_image(image, type(self).__name__)
        wanted = np.random.random(3) < (self.blur_prob, self.gamma_prob, self.jpeg_prob)
        place = np.random.random(3)  # in the three ranges
        sigma, log_gamma = (low + (high - low) * at for (low, high), at in zip((self._sigmas, self._log_gammas), place))
        low, high = self._qualities
        quality = int(low + (high - low + 1) * place[2])
        if wanted[0]:
            image = cv2.GaussianBlur(image, (0, 0), sigma)
        if wanted[1]:
            curve = 255 * (np.arange(256) / 255) ** np.exp(log_gamma)
            image = cv2.LUT(image, curve.round().astype(np.uint8))
        if wanted[2]:
            _, stream = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, quality])
            image = cv2.imdecode(stream, cv2.IMREAD_COLOR)
        results['img'] = image
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(blur_prob={self.blur_prob}, blur_sigma={self.blur_sigma}, '
            f'gamma_prob={self.gamma_prob}, gamma_range={self.gamma_range}, jpeg_prob={self.jpeg_prob}, '
            f'jpeg_quality={self.jpeg_quality})'
        )
