import cv2
import numpy as np
import pytest

from mmseg_ignite.datasets.transforms.lab import LABJitter, RandStainNA, lab_statistics, map_lab
from mmseg_ignite.errors import IgniteError

TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
WHITE = TO_XYZ.sum(1)


def to_lab(bgr):
    """Convert sRGB (D65) to CIE L*a*b* by the formulas of the standard, float64."""
    rgb = bgr[..., ::-1] / 255.0
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ TO_XYZ.T / WHITE
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def tissue(height=150, width=170):
    """Return smooth pink and violet without glass, which stays inside RGB after small shifts."""
    rng = np.random.default_rng()
    mix = cv2.GaussianBlur(rng.random((height, width)), (0, 0), 4)
    mix = (mix - mix.min()) / np.ptp(mix)
    pink, violet = np.array([170, 120, 190]), np.array([130, 80, 110])
    return np.rint(mix[..., None] * pink + (1 - mix[..., None]) * violet).astype(np.uint8)


def with_glass():
    image = tissue()
    image[:60] = (240, 241, 239)
    return image


def test_statistics_cover_the_tissue_only():
    image = with_glass()
    own = lab_statistics(image)
    # The grid samples about every second pixel of an image of this size.
    expected = to_lab(image[60:].astype(float)).reshape(-1, 3)
    assert np.abs(own.mean - expected.mean(0)).max() < 0.2
    assert np.abs(own.spread - expected.std(0)).max() < 0.2


@pytest.mark.parametrize('image', [np.full((50, 50, 3), 240, np.uint8), tissue()[:5, :5]])
def test_images_with_hardly_any_tissue_are_kept(image):
    assert lab_statistics(image) is None
    np.testing.assert_array_equal(LABJitter().transform(dict(img=image))['img'], image)


def test_map_is_linear_in_lab():
    image = tissue()
    scale, offset = np.array([0.9, 1.1, 1.05]), np.array([5.0, -2.0, 1.0])
    out = map_lab(image, scale, offset, glass=True)
    error = np.abs(to_lab(out.astype(float)) - (to_lab(image.astype(float)) * scale + offset))
    assert error.max() < 1.5  # 8-bit rounding; one intensity is up to 1 in a and b


def test_identity_changes_nothing():
    image = np.random.default_rng().integers(0, 256, (301, 77, 3), np.uint8)
    assert np.abs(map_lab(image, np.ones(3), np.zeros(3)).astype(int) - image).max() <= 1


def test_glass_changes_only_on_request():
    image, change = with_glass(), (np.ones(3), np.array([-10.0, 5.0, 5.0]))
    np.testing.assert_array_equal(map_lab(image, *change)[:60], image[:60])
    assert (map_lab(image, *change)[60:] != image[60:]).any(-1).mean() > 0.99
    assert (map_lab(image, *change, glass=True)[:60] != image[:60]).any(-1).all()


def test_large_images_are_mapped_like_small_ones():
    image = tissue(700, 60)
    change = (np.array([1.1, 0.9, 1.0]), np.array([-3.0, 2.0, 0.0]))
    parts = [map_lab(np.ascontiguousarray(part), *change) for part in np.array_split(image, 7)]
    np.testing.assert_array_equal(map_lab(image, *change), np.concatenate(parts))


def test_jitter_has_the_requested_standard_deviations():
    image = tissue()
    own, found = lab_statistics(image), []
    np.random.seed(int(np.random.default_rng().integers(2**31)))
    for _ in range(400):
        found.append(lab_statistics(LABJitter(mean=(4, 2, 3), spread=0.1).transform(dict(img=image.copy()))['img']))
    shift = np.array([f.mean for f in found]) - own.mean
    stretch = np.log(np.array([f.spread for f in found]) / own.spread)
    clipped = 0.954  # standard deviation of a normal number clipped at two of them
    # The standard error of a standard deviation of 400 samples is 3.5 %.
    np.testing.assert_allclose(shift.std(0), np.array([4, 2, 3]) * clipped, rtol=0.16)
    np.testing.assert_allclose(stretch.std(0), 0.1 * clipped, rtol=0.2)
    assert np.abs(shift.mean(0)).max() < 1.0


def test_randstainna_produces_the_sampled_statistics():
    image, found = tissue(), []
    np.random.seed(int(np.random.default_rng().integers(2**31)))
    # Close enough to the image's own colours to stay inside RGB; spreads below 1 would be clipped.
    own = lab_statistics(image)
    settings = dict(
        mean=tuple(own.mean), mean_between=(3, 2, 2), spread=tuple(own.spread + 0.5), spread_between=(0.5, 0.3, 0.2)
    )
    for _ in range(400):
        found.append(lab_statistics(RandStainNA(**settings).transform(dict(img=image.copy()))['img']))
    clipped = 0.954  # standard deviation of a normal number clipped at two of them
    np.testing.assert_allclose(np.std([f.mean for f in found], 0), np.array([3, 2, 2]) * clipped, rtol=0.16)
    np.testing.assert_allclose(np.mean([f.mean for f in found], 0), own.mean, atol=0.8)
    expected = (
        (own.spread + 0.5) * own.spread / np.maximum(own.spread, 1)
    )  # an image with less spread is not stretched more
    np.testing.assert_allclose(np.mean([f.spread for f in found], 0), expected, rtol=0.05)


def test_randstainna_maps_a_crop_with_the_statistics_of_its_roi(tmp_path):
    """Both halves of an ROI get the same map, so the darker half stays as much darker."""
    roi = tissue(200, 200)
    roi[:, :100] = (roi[:, :100] * 0.7).astype(np.uint8)
    np.save(tmp_path / 'roi.npy', roi[..., ::-1])
    own = lab_statistics(roi)
    settings = dict(
        mean=tuple(own.mean + 4), mean_between=(0, 0, 0), spread=tuple(own.spread), spread_between=(0, 0, 0)
    )
    halves = [roi[:, :100].copy(), roi[:, 100:].copy()]
    mapped = [
        RandStainNA(**settings).transform(dict(img=half, img_path=str(tmp_path / 'roi.npy')))['img'] for half in halves
    ]
    for half, out in zip(halves, mapped):
        np.testing.assert_allclose(lab_statistics(out).mean - lab_statistics(half).mean, 4, atol=0.5)
    alone = RandStainNA(**settings).transform(dict(img=halves[0]))['img']
    assert np.abs(lab_statistics(alone).mean - own.mean - 4).max() < 0.7


def test_randstainna_keeps_glass_and_names_a_missing_array(tmp_path):
    image, glass = with_glass(), np.full((50, 50, 3), 240, np.uint8)
    np.testing.assert_array_equal(RandStainNA().transform(dict(img=image.copy()))['img'][:60], image[:60])
    np.testing.assert_array_equal(RandStainNA().transform(dict(img=glass))['img'], glass)
    with pytest.raises(IgniteError, match='missing.npy cannot be read'):
        RandStainNA().transform(dict(img=image, img_path=str(tmp_path / 'missing.npy')))
