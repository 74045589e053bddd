import cv2
import numpy as np
import pytest
from mmengine.registry import init_default_scope
from mmseg.registry import TRANSFORMS

from mmseg_ignite.datasets.transforms.lab import LABJitter, RandStainNA, lab_statistics, map_lab
from mmseg_ignite.errors import IgniteError

TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
WHITE = TO_XYZ.sum(1)


def to_lab(bgr):
    """CIE L*a*b* of sRGB under D65 by the formulas of the standard, float64."""
    rgb = bgr[..., ::-1] / 255.0
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ TO_XYZ.T / WHITE
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def tissue(height=150, width=170):
    """Smooth pink and violet without glass, whose colours no small shift leads out of RGB."""
    rng = np.random.default_rng()
    mix = cv2.GaussianBlur(rng.random((height, width)), (0, 0), 4)
    mix = (mix - mix.min()) / np.ptp(mix)
    pink, violet = np.array([170, 120, 190]), np.array([130, 80, 110])
    return np.rint(mix[..., None] * pink + (1 - mix[..., None]) * violet).astype(np.uint8)


def with_glass():
    image = tissue()
    image[:60] = (240, 241, 239)
    return image


def test_statistics_are_those_of_the_tissue():
    image = with_glass()
    own = lab_statistics(image)
    # The grid holds every second pixel or so of an image this large.
    expected = to_lab(image[60:].astype(float)).reshape(-1, 3)
    assert np.abs(own.mean - expected.mean(0)).max() < 0.2
    assert np.abs(own.spread - expected.std(0)).max() < 0.2


@pytest.mark.parametrize('image', [np.full((50, 50, 3), 240, np.uint8), tissue()[:5, :5]])
def test_hardly_any_tissue_has_no_statistics_and_stays(image):
    assert lab_statistics(image) is None
    np.testing.assert_array_equal(LABJitter().transform(dict(img=image))['img'], image)


def test_a_map_is_linear_in_lab():
    image = tissue()
    scale, offset = np.array([0.9, 1.1, 1.05]), np.array([5.0, -2.0, 1.0])
    out = map_lab(image, scale, offset, glass=True)
    error = np.abs(to_lab(out.astype(float)) - (to_lab(image.astype(float)) * scale + offset))
    assert error.max() < 1.5  # rounded to 8 bits, one of which is up to 1 in a and b


def test_the_identity_changes_nothing():
    image = np.random.default_rng().integers(0, 256, (301, 77, 3), np.uint8)
    assert np.abs(map_lab(image, np.ones(3), np.zeros(3)).astype(int) - image).max() <= 1


def test_glass_stays_unless_it_is_to_change():
    image, change = with_glass(), (np.ones(3), np.array([-10.0, 5.0, 5.0]))
    np.testing.assert_array_equal(map_lab(image, *change)[:60], image[:60])
    assert (map_lab(image, *change)[60:] != image[60:]).any(-1).mean() > 0.99
    assert (map_lab(image, *change, glass=True)[:60] != image[:60]).any(-1).all()


def test_large_images_are_mapped_as_small_ones():
    image = tissue(700, 60)
    change = (np.array([1.1, 0.9, 1.0]), np.array([-3.0, 2.0, 0.0]))
    parts = [map_lab(np.ascontiguousarray(part), *change) for part in np.array_split(image, 7)]
    np.testing.assert_array_equal(map_lab(image, *change), np.concatenate(parts))


def test_jitter_moves_mean_and_spread_as_far_as_it_is_told():
    image = tissue()
    own, found = lab_statistics(image), []
    np.random.seed(int(np.random.default_rng().integers(2**31)))
    for _ in range(400):
        found.append(lab_statistics(LABJitter(mean=(4, 2, 3), spread=0.1).transform(dict(img=image.copy()))['img']))
    shift = np.array([f.mean for f in found]) - own.mean
    stretch = np.log(np.array([f.spread for f in found]) / own.spread)
    cut = 0.954  # standard deviation of a normal number cut at two of them
    # The standard error of a standard deviation of 400 draws is 3.5 %.
    np.testing.assert_allclose(shift.std(0), np.array([4, 2, 3]) * cut, rtol=0.16)
    np.testing.assert_allclose(stretch.std(0), 0.1 * cut, rtol=0.2)
    assert np.abs(shift.mean(0)).max() < 1.0


def test_a_probability_of_zero_changes_nothing_and_draws_the_same_numbers():
    image, states = tissue(), []
    for prob in (0.0, 1.0):
        np.random.seed(3)
        out = LABJitter(prob=prob).transform(dict(img=image.copy()))['img']
        assert (out == image).all() == (prob == 0.0)
        states.append(np.random.random())
    assert states[0] == states[1]


def test_it_is_registered_and_says_its_settings():
    init_default_scope('mmseg')
    jitter = TRANSFORMS.build(dict(type='LABJitter', mean=(1, 2, 3), spread=0.2, prob=0.5, glass=True))
    assert repr(jitter) == 'LABJitter(mean=(1, 2, 3), spread=0.2, prob=0.5, glass=True)'


@pytest.mark.parametrize(
    'wrong', [dict(mean=(1, 2)), dict(mean=5), dict(mean=(1, 2, 51)), dict(spread=-0.1), dict(spread=1.5), dict(prob=2)]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(IgniteError, match='expected'):
        LABJitter(**wrong)


def test_images_of_floats_are_refused():
    with pytest.raises(IgniteError, match='LABJitter got a float32 image'):
        LABJitter().transform(dict(img=np.zeros((9, 9, 3), np.float32)))


def test_randstainna_gives_the_drawn_statistics():
    image, found = tissue(), []
    np.random.seed(int(np.random.default_rng().integers(2**31)))
    # Near enough to the image's own colours to stay within RGB.
    own = lab_statistics(image)
    settings = dict(
        mean=tuple(own.mean), mean_between=(3, 2, 2), spread=tuple(own.spread), spread_between=(0.5, 0.3, 0.2)
    )
    for _ in range(400):
        found.append(lab_statistics(RandStainNA(**settings).transform(dict(img=image.copy()))['img']))
    cut = 0.954  # standard deviation of a normal number cut at two of them
    np.testing.assert_allclose(np.std([f.mean for f in found], 0), np.array([3, 2, 2]) * cut, rtol=0.16)
    np.testing.assert_allclose(np.mean([f.mean for f in found], 0), own.mean, atol=0.8)
    np.testing.assert_allclose(np.mean([f.spread for f in found], 0), own.spread, rtol=0.05)


def test_randstainna_maps_a_crop_by_the_statistics_of_its_roi(tmp_path):
    """Two halves of an ROI of which one is darker: both are mapped alike, so the darker one stays darker by as much."""
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


def test_randstainna_leaves_glass_draws_the_same_and_says_its_settings(tmp_path):
    image, states = with_glass(), []
    for prob in (0.0, 1.0):
        np.random.seed(3)
        out = RandStainNA(prob=prob).transform(dict(img=image.copy()))['img']
        np.testing.assert_array_equal(out[:60], image[:60])
        assert (out == image).all() == (prob == 0.0)
        states.append(np.random.random())
    assert states[0] == states[1]
    glass = np.full((50, 50, 3), 240, np.uint8)
    np.testing.assert_array_equal(RandStainNA().transform(dict(img=glass))['img'], glass)
    init_default_scope('mmseg')
    assert 'prob=0.25' in repr(TRANSFORMS.build(dict(type='RandStainNA', prob=0.25)))
    with pytest.raises(IgniteError, match='missing.npy cannot be read'):
        RandStainNA().transform(dict(img=image, img_path=str(tmp_path / 'missing.npy')))


@pytest.mark.parametrize(
    'wrong',
    [dict(mean=(1, 2)), dict(mean_between=-1), dict(spread=(0, 1, 1)), dict(spread_between=(1, 2, 30)), dict(prob=-1)],
)
def test_wrong_settings_of_randstainna_are_refused(wrong):
    with pytest.raises(IgniteError, match='expected'):
        RandStainNA(**wrong)
