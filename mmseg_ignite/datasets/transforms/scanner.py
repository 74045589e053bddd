"""The effects of a slide scanner: focus, gamma and JPEG compression."""

import cv2
import numpy as np
from mmseg.registry import TRANSFORMS

from .base import ColourChange, DrawnTransform, check_prob, check_range


class GaussianBlur(ColourChange):
    """Blur with a Gaussian of standard deviation ``sigma``, px."""

    def __init__(self, sigma: float) -> None:
        self.sigma = float(sigma)

    def apply(self, image: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(image, (0, 0), self.sigma)


class GammaCurve(ColourChange):
    """An intensity i becomes 255 * (i / 255) ** ``gamma``."""

    def __init__(self, gamma: float) -> None:
        self.gamma = float(gamma)

    def apply(self, image: np.ndarray) -> np.ndarray:
        curve = 255 * (np.arange(256) / 255) ** self.gamma
        return cv2.LUT(image, curve.round().astype(np.uint8))


class JPEGCompression(ColourChange):
    """JPEG compression with OpenCV's ``quality``, 1 to 100."""

    def __init__(self, quality: int) -> None:
        self.quality = int(quality)

    def apply(self, image: np.ndarray) -> np.ndarray:
        _, stream = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, self.quality])
        return cv2.imdecode(stream, cv2.IMREAD_COLOR)


@TRANSFORMS.register_module()
class RandomScannerEffects(DrawnTransform):
    """Blur an image, change its gamma and compress it, each with its own probability.

    The order is that of image formation: Gaussian blur of a slightly wrong focus, gamma of the camera, and the JPEG
    compression of most slide formats. Always draws six numbers from ``np.random``. Changes ``img``, (H, W, 3) uint8 BGR.

    Args:
        blur_prob, gamma_prob, jpeg_prob: probability of each.
        blur_sigma: range of the standard deviation of the blur, 0.05 to 20 px.
        gamma_range: range of gamma, 0.05 to 20, sampled log-uniformly. An intensity i becomes 255 * (i / 255) ** gamma, so
            values above 1 darken, and white stays white.
        jpeg_quality: range of OpenCV's JPEG quality, 1 to 100, both ends included.

    Example: ``dict(type='RandomScannerEffects', blur_prob=0.3)``
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
        log_gammas = np.log(check_range('gamma_range', gamma_range, 0.05, 20))
        low, high = check_range('jpeg_quality', jpeg_quality, 1, 100)
        self._ranges = np.array([check_range('blur_sigma', blur_sigma, 0.05, 20), log_gammas, (low, high + 1)])

    def draw(self, results: dict) -> list[ColourChange | None]:
        blurred, curved, compressed = np.random.random(3) < (self.blur_prob, self.gamma_prob, self.jpeg_prob)
        low, high = self._ranges.T
        sigma, log_gamma, quality = low + (high - low) * np.random.random(3)
        return [
            GaussianBlur(sigma) if blurred else None,
            GammaCurve(np.exp(log_gamma)) if curved else None,
            JPEGCompression(quality) if compressed else None,
        ]
