import warnings

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmseg_ignite.datasets.transforms.stain import (
    HED,
    HEDJitter,
    MacenkoAugment,
    MacenkoNormalize,
    estimate_stains,
    map_density,
)
from mmseg_ignite.errors import IgniteError

RUIFROK_JOHNSTON = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
ODD_SHAPES = [(1, 1), (1, 7), (5, 1), (33, 47), (301, 211), (2, 20011), (20011, 1)]
ROUNDED = 0.51  # half an intensity, plus a margin for float32 arithmetic


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def density(image, light=255.0):
    """Return optical densities, (H, W, 3) float64 in R, G, B, by the plain formula."""
    rgb = image[..., ::-1].astype(float)
    return -np.log(np.where(rgb == 0, 0.4, rgb) / light)


def intensity(optical_density, light=255.0):
    """Return BGR intensities, saturated but not rounded."""
    return np.clip(light * np.exp(-optical_density), 0, 255)[..., ::-1]


def noise(shape):
    return np.random.default_rng().integers(0, 256, (*shape, 3), np.uint8)


def every_pair():
    """Return an image with all pairs of blue and green values and random red."""
    image = noise((256, 256))
    image[..., 0], image[..., 1] = np.mgrid[:256, :256]
    return image


def tissue(size=128, light=240.0):
    """Return an H&E image and its random stains: a fifth each of glass, pure H and pure E, the rest mixed."""
    rng = np.random.default_rng()
    vectors = unit(np.array([[0.56, 0.72, 0.41], [0.21, 0.80, 0.55]]) + rng.uniform(-0.03, 0.03, (2, 3)))
    amounts = rng.uniform(1.0, 1.8, (size, size, 2))
    kind = rng.integers(0, 5, (size, size))
    amounts[kind == 0] = 0
    amounts[kind == 1, 1] = 0
    amounts[kind == 2, 0] = 0
    return intensity(amounts @ vectors, light).round().astype(np.uint8), vectors


def macenko_by_hand(image, light=240.0):
    """Follow the paper step by step in float64 on every pixel; return vectors (2, 3) and 99th percentiles."""
    rows = density(image, light).reshape(-1, 3)
    rows = rows[(rows >= 0.15).all(1)]
    plane = np.linalg.svd(rows, full_matrices=False)[2][:2]
    if plane[0].sum() < 0:
        plane[0] *= -1
    angles = np.arctan2(rows @ plane[1], rows @ plane[0])
    ends = [np.cos(a) * plane[0] + np.sin(a) * plane[1] for a in np.percentile(angles, [1, 99])]
    vectors = np.array(sorted(ends, key=lambda v: -v[0]))
    amounts = np.linalg.lstsq(vectors.T, rows.T, rcond=None)[0]
    return vectors, np.percentile(amounts, 99, axis=1)


def degrees_between(one, other):
    return np.degrees(np.arccos(np.clip((unit(one) * unit(other)).sum(-1), -1, 1)))


def run(transform, image):
    return transform.transform(dict(img=image))['img']


def fixed(values):
    """Return ranges that contain only ``values``."""
    return tuple((v, v) for v in values)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-3, 3), min_size=9, max_size=9),
    st.lists(st.floats(-5, 5), min_size=3, max_size=3),
    st.sampled_from(ODD_SHAPES[:4]),
)
def test_map_density_is_the_plain_formula(entries, offset, shape):
    image, matrix = noise(shape), np.reshape(entries, (3, 3))
    out = map_density(image, matrix, offset)
    assert out.dtype == np.uint8 and out.shape == image.shape
    assert np.abs(out - intensity(density(image) @ matrix + offset)).max() <= ROUNDED


@pytest.mark.parametrize('shape', ODD_SHAPES)
def test_map_density_on_any_shape_and_view(shape):
    matrix, offset = np.random.default_rng().uniform(-1, 1, (3, 3)), np.zeros(3)
    image = noise(shape)
    expected = intensity(density(image) @ matrix)
    assert np.abs(map_density(image, matrix, offset) - expected).max() <= ROUNDED
    mirrored = map_density(image[:, ::-1], matrix, offset)  # mmcv's flip returns such views
    assert np.abs(mirrored - expected[:, ::-1]).max() <= ROUNDED


def test_map_density_identity_keeps_all_values():
    image = every_pair()
    np.testing.assert_array_equal(map_density(image, np.eye(3), np.zeros(3)), image)
    np.testing.assert_array_equal(map_density(image, np.eye(3), np.zeros(3), np.linspace(0, 1, 256)), image)


def test_values_far_above_white_saturate():
    assert (map_density(noise((9, 9)), -5 * np.eye(3), np.full(3, -50.0)) == 255).all()


def test_share_depends_on_green():
    image = every_pair()
    matrix, offset, share = np.random.default_rng().uniform(-1, 1, (3, 3)), np.full(3, 0.3), np.linspace(1, 0, 256)
    before = density(image)
    change = before @ matrix + offset - before
    expected = intensity(before + share[image[..., 1]][..., None] * change)
    assert np.abs(map_density(image, matrix, offset, share) - expected).max() <= ROUNDED


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=3, max_size=3), st.lists(st.floats(-1, 1), min_size=3, max_size=3))
def test_hed_jitter_is_deconvolution_scaled_and_shifted(sigma, bias):
    image = noise((32, 33))
    amounts = density(image) @ np.linalg.inv(RUIFROK_JOHNSTON)
    expected = intensity((amounts * (1 + np.array(sigma)) + bias) @ RUIFROK_JOHNSTON)
    assert np.abs(run(HEDJitter(fixed(sigma), fixed(bias)), image) - expected).max() <= ROUNDED


def test_hed_matrix_equals_scikit_image():
    color = pytest.importorskip('skimage.color')
    np.testing.assert_allclose(HED, color.rgb_from_hed)


def test_hed_jitter_samples_its_whole_ranges():
    """Infer the shift of haematoxylin from the red of a grey image."""
    grey = np.full((1, 1, 3), 200, np.uint8)
    jitter = HEDJitter(sigma=0, bias=((0.2, 0.6), 0, 0))
    reds = np.array([run(jitter, grey)[0, 0, 2] for _ in range(300)])
    shifts = np.log(200 / reds) / 0.65
    assert 0.19 < shifts.min() < 0.23 and 0.57 < shifts.max() < 0.61
    jitter = HEDJitter(sigma=(0.5, 0, 0), bias=0)
    violet = intensity(np.full((1, 1, 1), 1.0) * RUIFROK_JOHNSTON[0]).round().astype(np.uint8)  # H alone
    scales = np.array([density(run(jitter, violet))[0, 0, 0] / density(violet)[0, 0, 0] for _ in range(300)])
    assert 0.49 < scales.min() < 0.56 and 1.44 < scales.max() < 1.51


def test_hed_jitter_defaults_keep_glass_nearly_white():
    glass = np.full((4, 4, 3), 245, np.uint8)
    assert min(run(HEDJitter(), glass).min() for _ in range(200)) >= 230


@pytest.mark.parametrize('size', [128, 127, 96])
def test_estimate_matches_the_paper_on_every_pixel(size):
    image, _ = tissue(size)
    vectors, strengths = macenko_by_hand(image)
    found = estimate_stains(image)
    np.testing.assert_allclose(found.vectors, vectors, atol=1e-4)
    np.testing.assert_allclose(found.strengths, strengths, rtol=1e-3)


def test_estimate_on_a_sample_is_close():
    image, _ = tissue(700)
    vectors, strengths = macenko_by_hand(image)
    found = estimate_stains(image)
    assert degrees_between(found.vectors, vectors).max() < 0.5
    np.testing.assert_allclose(found.strengths, strengths, rtol=0.03)


@pytest.mark.parametrize('light', [225.0, 240.0, 255.0])
def test_known_stain_vectors_are_recovered(light):
    image, vectors = tissue(256, light)
    assert degrees_between(estimate_stains(image, light).vectors, vectors).max() < 1.0


def test_normalize_matches_the_paper():
    image, _ = tissue()
    image[:8] = noise((8, 128))  # colours that are not a mixture of the stains
    target, strengths = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]]), np.array([1.9705, 1.0308])
    vectors, own = macenko_by_hand(image)
    amounts = np.linalg.lstsq(vectors.T, density(image, 240).reshape(-1, 3).T, rcond=None)[0]
    expected = intensity((amounts.T * (strengths / own) @ target).reshape(image.shape), 240)
    # The published vectors have unit length to 0.02 %.
    assert np.abs(run(MacenkoNormalize(), image) - expected).max() <= 1


def test_normalized_images_have_the_stains_of_the_target():
    reference, vectors = tissue()
    normalize = MacenkoNormalize.from_image(reference)
    found = estimate_stains(run(normalize, tissue()[0]))
    assert degrees_between(found.vectors, vectors).max() < 1.5
    np.testing.assert_allclose(found.strengths, estimate_stains(reference).strengths, rtol=0.03)


def test_normalizing_the_reference_to_itself_changes_nothing():
    image, _ = tissue()
    assert np.abs(run(MacenkoNormalize.from_image(image), image).astype(int) - image).max() <= 2


def test_reference_without_two_stains():
    with pytest.raises(IgniteError, match='7 x 5 px shows no two stains'):
        MacenkoNormalize.from_image(noise((5, 7)))
    with pytest.raises(IgniteError, match='float32 image of shape'):
        MacenkoNormalize.from_image(np.zeros((4, 5, 3), np.float32))


def test_macenko_augment_keeps_the_residual():
    image, _ = tissue()
    image[:8] = noise((8, 128))
    rng = np.random.default_rng()
    sigma, bias = rng.uniform(-0.5, 0.5, 2), rng.uniform(-0.2, 0.2, 2)
    vectors, _ = macenko_by_hand(image)
    before = density(image, 240)
    amounts = before @ np.linalg.pinv(vectors)
    residual = before - amounts @ vectors
    expected = intensity((amounts * (1 + sigma) + bias) @ vectors + residual, 240)
    out = run(MacenkoAugment(fixed(sigma), fixed(bias), glass=True), image)
    assert np.abs(out - expected).max() <= 1


def test_macenko_augment_keeps_glass():
    image, _ = tissue()
    image[:8] = 243
    options = dict(sigma=fixed((0.3, -0.3)), bias=fixed((0.2, 0.2)))
    out, everywhere = run(MacenkoAugment(**options), image), run(MacenkoAugment(**options, glass=True), image)
    green = density(image, 240)[..., 1]
    assert (green < 0.1).any() and (green > 0.25).any()
    np.testing.assert_array_equal(out[green < 0.1], image[green < 0.1])
    assert np.abs(out[green > 0.25].astype(int) - everywhere[green > 0.25]).max() <= 1
    assert (everywhere[:8] < 243).any()


@pytest.mark.parametrize('glass', [False, True])
def test_identity_parameters_keep_all_values(glass):
    values = every_pair()
    np.testing.assert_array_equal(run(HEDJitter(0, 0), values), values)
    np.testing.assert_array_equal(run(HEDJitter(1, 5, prob=0), values), values)
    image = np.vstack([values, tissue(256)[0]])
    assert estimate_stains(image) is not None
    np.testing.assert_array_equal(run(MacenkoAugment(0, 0, glass=glass), image), image)
    np.testing.assert_array_equal(run(MacenkoAugment(1, 5, prob=0), image), image)


def one_stain(noise_level):
    """Return an image of eosin alone, from pale to strong."""
    rng = np.random.default_rng()
    amount = rng.uniform(0.9, 1.8, (128, 128, 1))
    image = intensity(amount * np.array([0.2159, 0.8012, 0.5581]), 240)
    return (image + rng.normal(0, noise_level, image.shape)).clip(0, 255).round().astype(np.uint8)


FEATURELESS = {
    'glass': lambda: np.full((64, 64, 3), 243, np.uint8),
    'white': lambda: np.full((64, 64, 3), 255, np.uint8),
    'noisy glass': lambda: np.random.default_rng().integers(225, 256, (64, 64, 3), np.uint8),
    'black': lambda: np.zeros((64, 64, 3), np.uint8),
    'black and white': lambda: np.repeat(np.random.default_rng().integers(0, 2, (64, 64, 1), np.uint8) * 255, 3, 2),
    'constant': lambda: np.full((64, 64, 3), (160, 90, 170), np.uint8),
    'single stain': lambda: one_stain(0),
    'single stain and noise': lambda: one_stain(1),
    'one pixel': lambda: noise((1, 1)),
    'tiny': lambda: noise((15, 17)),
    'line': lambda: noise((1, 200)),
}


@pytest.mark.parametrize('name', FEATURELESS)
def test_macenko_keeps_images_without_two_stains(name):
    image = FEATURELESS[name]()
    with warnings.catch_warnings(), np.errstate(all='raise'):
        warnings.simplefilter('error')
        for transform in (MacenkoNormalize(), MacenkoAugment(), MacenkoAugment(glass=True)):
            np.testing.assert_array_equal(run(transform, image.copy()), image)
        out = run(HEDJitter(0.2, 0.05), image)
    assert out.dtype == np.uint8 and out.shape == image.shape


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 255), st.integers(1, 256))
def test_macenko_never_fails_on_random_colours(height, width, lowest, span):
    image = np.random.default_rng().integers(lowest, min(256, lowest + span), (height, width, 3), np.uint8)
    with warnings.catch_warnings(), np.errstate(all='raise'):
        warnings.simplefilter('error')
        for transform in (MacenkoNormalize(), MacenkoAugment()):
            out = run(transform, image)
            assert out.dtype == np.uint8 and out.shape == image.shape


def test_random_numbers_differ_between_crops():
    image = tissue(64)[0]
    for transform in (HEDJitter(), MacenkoAugment()):
        assert len({run(transform, image).tobytes() for _ in range(5)}) == 5


def test_prob_is_the_fraction_of_changed_images():
    image = noise((2, 2))
    jitter = HEDJitter(sigma=fixed((0.2,) * 3), bias=fixed((0.5,) * 3), prob=0.3)
    changed = sum((run(jitter, image) != image).any() for _ in range(2000))
    assert abs(changed - 600) < 5 * (2000 * 0.3 * 0.7) ** 0.5


def test_real_tissue_has_stains(real_release):
    for path in sorted((real_release / 'images' / 'he').glob('*_roi1.png')):
        stains = estimate_stains(cv2.imread(str(path)))
        assert stains is not None, path.name
        assert 10 < degrees_between(*stains.vectors) < 40, path.name
        assert (stains.vectors > 0).all() and (stains.strengths > 0.5).all(), path.name
