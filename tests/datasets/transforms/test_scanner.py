import cv2
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from mmseg_ignite.datasets.transforms.scanner import RandomScannerEffects

OFF = dict(blur_prob=0, gamma_prob=0, jpeg_prob=0)


def noise(*shape):
    return np.random.default_rng().integers(0, 256, (*shape, 3), np.uint8)


def smooth(size):
    """Return an image without the finest detail, like tissue."""
    return cv2.GaussianBlur(noise(size, size), (0, 0), 3)


def run(image, **options):
    return RandomScannerEffects(**{**OFF, **options}).transform(dict(img=image))['img']


def jpeg(image, quality):
    return cv2.imdecode(cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


def test_probability_zero_changes_nothing():
    image = noise(20, 30)
    np.testing.assert_array_equal(run(image), image)


@pytest.mark.parametrize('sigma', [0.4, 0.9, 2.0])
def test_blur_is_gaussian(sigma):
    image = noise(41, 53)
    expected = gaussian_filter(image.astype(float), (sigma, sigma, 0), mode='mirror')
    out = run(image, blur_prob=1, blur_sigma=(sigma, sigma))
    # For 8-bit images OpenCV truncates the kernel at three standard deviations and uses fixed point.
    assert np.abs(out - expected).max() < 4 and np.abs(out - expected).mean() < 1


@pytest.mark.parametrize('gamma', [0.5, 0.85, 1.0, 1.18, 3.0])
def test_gamma_is_a_power_of_each_value(gamma):
    image = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, 2)
    out = run(image, gamma_prob=1, gamma_range=(gamma, gamma))
    assert np.abs(out - 255 * (image / 255.0) ** gamma).max() <= 0.5 + 1e-6
    assert out[0, 0, 0] == 0 and out[-1, -1, 0] == 255


def test_gamma_is_log_uniform():
    grey = np.full((1, 1, 3), 60, np.uint8)
    values = [run(grey, gamma_prob=1, gamma_range=(0.5, 2.0))[0, 0, 0] for _ in range(1000)]
    gammas = np.log(np.array(values) / 255) / np.log(60 / 255)
    assert 0.49 < gammas.min() < 0.53 and 1.9 < gammas.max() < 2.05
    assert abs((gammas < 1).mean() - 0.5) < 0.09


def test_jpeg_qualities_include_both_ends_of_the_range():
    image = noise(24, 24)
    expected = {jpeg(image, quality).tobytes() for quality in (60, 61, 62)}
    assert len(expected) == 3
    assert {run(image, jpeg_prob=1, jpeg_quality=(60, 62)).tobytes() for _ in range(100)} == expected


def test_order_is_blur_gamma_jpeg():
    image = smooth(32)
    ranges = dict(blur_sigma=(0.8, 0.8), gamma_range=(1.4, 1.4), jpeg_quality=(70, 70))
    step = run(image, blur_prob=1, **ranges)
    step = run(step, gamma_prob=1, **ranges)
    expected = run(step, jpeg_prob=1, **ranges)
    np.testing.assert_array_equal(run(image, blur_prob=1, gamma_prob=1, jpeg_prob=1, **ranges), expected)


@pytest.mark.parametrize('effect', ['blur', 'gamma', 'jpeg'])
def test_each_has_its_own_probability(effect):
    image = noise(8, 8)
    options = {f'{effect}_prob': 0.3, 'gamma_range': (1.5, 1.6)}
    changed = sum((run(image, **options) != image).any() for _ in range(1500))
    assert abs(changed - 450) < 5 * (1500 * 0.3 * 0.7) ** 0.5


def test_defaults_are_mild():
    image = smooth(64)
    for _ in range(50):
        out = run(image, blur_prob=1, gamma_prob=1, jpeg_prob=1)
        assert np.abs(out.astype(int) - image).mean() < 20
        assert (run(np.full_like(image, 255), blur_prob=1, gamma_prob=1, jpeg_prob=1) == 255).all()


@pytest.mark.parametrize('shape', [(1, 1), (1, 9), (7, 1), (31, 45)])
def test_any_shape_and_view(shape):
    image = noise(*shape)
    out = run(image[:, ::-1], blur_prob=1, gamma_prob=1, jpeg_prob=1)
    assert out.shape == image.shape and out.dtype == np.uint8
