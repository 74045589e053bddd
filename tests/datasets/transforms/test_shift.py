import cv2
import numpy as np
import pytest
from PIL import Image

from mmseg_ignite.datasets.transforms.lab import lab_statistics
from mmseg_ignite.datasets.transforms.shift import LABORATORIES, SHIFTS, StainShift
from mmseg_ignite.datasets.transforms.stain import estimate_stains
from mmseg_ignite.errors import IgniteError


def h_and_e(vectors, glass=True):
    """Return an image of two stains on a white slide, BGR."""
    rng = np.random.default_rng()
    size = (300, 320)
    nuclei, stroma = (cv2.GaussianBlur(rng.random(size), (0, 0), s) for s in (3, 9))
    nuclei, stroma = (np.clip(x - np.quantile(x, q), 0, None) for x, q in ((nuclei, 0.6), (stroma, 0.0)))
    amounts = np.stack([2.4 * nuclei / nuclei.max(), 0.3 + 0.9 * stroma / stroma.max()], -1)
    density = amounts @ np.array(vectors)
    if glass:
        density[:80] = 0
    return np.rint(240 * np.exp(-density))[..., ::-1].astype(np.uint8)


def shifted(image, kind, **options):
    return StainShift(kind, **options).transform(dict(img=image, roi='roi'))['img']


@pytest.mark.parametrize('kind', SHIFTS)
@pytest.mark.parametrize('own', LABORATORIES)
def test_tissue_gets_the_colours_of_the_other_laboratory(kind, own):
    image = h_and_e(LABORATORIES[own].vectors)
    before, after = lab_statistics(image), lab_statistics(shifted(image, kind))
    target = max(LABORATORIES.values(), key=lambda lab: np.linalg.norm(before.mean - lab.mean))
    if kind == 'lab':
        # Within one standard deviation between its ROIs, plus the effect of blur, JPEG and the edge of the glass.
        assert (np.abs(after.mean - target.mean) < np.array(target.mean_between) + 2.5).all()
    assert np.linalg.norm(after.mean - before.mean) > 4


def test_scanner_shift_rotates_stain_vectors_like_another_laboratory():
    image = h_and_e(LABORATORIES['wsss4luad'].vectors, glass=False)
    before, after = estimate_stains(image), estimate_stains(shifted(image, 'scanner'))
    turned = np.rad2deg(np.arccos(np.clip((before.vectors * after.vectors).sum(1), -1, 1)))
    own, other = (
        np.array(lab.vectors) / np.linalg.norm(lab.vectors, axis=1, keepdims=True) for lab in LABORATORIES.values()
    )
    between = np.rad2deg(np.arccos((own * other).sum(1)))
    # The camera matrix rotates them too, by up to about 8 degrees.
    assert (turned > between - 8).all() and (turned < between + 12).all() and turned.max() > 3


def test_glass_stays_white_or_is_tinted():
    image = h_and_e(LABORATORIES['wsss4luad'].vectors)
    glass = slice(0, 70)
    assert np.abs(shifted(image, 'lab')[glass].astype(int) - 240).max() < 12
    tint = shifted(image, 'lab-tinted')[glass].reshape(-1, 3).mean(0) / 240
    assert ((0.83 < tint) & (tint < 1.01)).all() and tint.min() < 0.99
    # They differ only in the light.
    plain = shifted(image, 'lab').astype(float)
    assert np.abs(plain * tint - shifted(image, 'lab-tinted'))[glass].mean() < 2


def test_shift_depends_only_on_seed_and_name():
    image = h_and_e(LABORATORIES['glas'].vectors)
    for kind in SHIFTS:
        np.random.seed(1)
        first = shifted(image, kind)
        np.random.seed(2)
        np.testing.assert_array_equal(first, shifted(image, kind))
        assert (first != shifted(image, kind, seed=1)).mean() > 0.3
        other = StainShift(kind).transform(dict(img=image, img_path='folder/other.png'))['img']
        assert (first != other).mean() > 0.3
        same = StainShift(kind).transform(dict(img=image, img_path='folder/roi.png'))['img']
        np.testing.assert_array_equal(first, same)


def test_input_is_not_modified():
    image = h_and_e(LABORATORIES['glas'].vectors)
    copy = image.copy()
    for kind in SHIFTS:
        assert shifted(image, kind).shape == image.shape
    np.testing.assert_array_equal(image, copy)


@pytest.mark.parametrize('image', [np.full((40, 60, 3), 240, np.uint8), np.zeros((1, 1, 3), np.uint8)])
@pytest.mark.parametrize('kind', SHIFTS)
def test_images_without_tissue_or_of_one_pixel_are_accepted(image, kind):
    assert shifted(image, kind).shape == image.shape


def test_documented_statistics_match_the_real_tissue(real_release):
    for source, numbers in (('wsss4luad', range(1, 32)), ('glas', range(32, 40))):
        paths = [p for n in numbers for p in sorted((real_release / 'images').rglob(f'patient{n}_he_roi*.png'))]
        paths = [p for p in paths if 'context' not in p.name]
        assert len(paths) == {'wsss4luad': 31, 'glas': 23}[source]
        images = [np.asarray(Image.open(p).convert('RGB'))[..., ::-1].copy() for p in paths]
        found, lab = [lab_statistics(image) for image in images], LABORATORIES[source]
        np.testing.assert_allclose(np.mean([f.mean for f in found], 0), lab.mean, atol=0.3)
        np.testing.assert_allclose(np.std([f.mean for f in found], 0), lab.mean_between, atol=0.3)
        np.testing.assert_allclose(np.mean([f.spread for f in found], 0), lab.spread, atol=0.3)
        np.testing.assert_allclose(np.std([f.spread for f in found], 0), lab.spread_between, atol=0.3)
        stains = [s for s in map(estimate_stains, images) if s is not None]
        np.testing.assert_allclose(np.mean([s.vectors for s in stains], 0), lab.vectors, atol=0.002)
        np.testing.assert_allclose(np.mean([s.strengths for s in stains], 0), lab.strengths, atol=0.02)
        np.testing.assert_allclose(np.std([s.strengths for s in stains], 0), lab.strengths_between, atol=0.02)


def test_unknown_kinds_and_negative_seeds_are_refused():
    with pytest.raises(IgniteError, match="kind of StainShift is 'macenko'"):
        StainShift('macenko')
    with pytest.raises(IgniteError, match='seed of StainShift is -1'):
        StainShift(seed=-1)
