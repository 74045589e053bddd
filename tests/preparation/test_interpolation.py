"""Interpolated and JPEG-compressed masks are found although all values are valid ids; annotated masks pass."""

import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from mmseg_ignite.images.png import check_png, decode
from mmseg_ignite.labels import encode_mask
from mmseg_ignite.preparation import pictures
from mmseg_ignite.preparation.pictures import MAX_BETWEEN, MIN_FRINGE, fringe_classes, read_mask, share_between


def annotated(rng, size=240, regions=25, unannotated=False):
    """Return train ids of a Voronoi diagram with wavy boundaries and a random class per cell."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    for _ in range(3):
        (a, b), phase = rng.uniform(15, 40, 2), rng.uniform(0, 6, 2)
        y, x = y + 4 * np.sin(x / a + phase[0]), x + 4 * np.sin(y / b + phase[1])
    seeds = rng.uniform(0, size, (regions, 2))
    nearest = ((y[..., None] - seeds[:, 0]) ** 2 + (x[..., None] - seeds[:, 1]) ** 2).argmin(-1)
    classes = np.concatenate([np.arange(16), rng.integers(0, 16, regions - 16)])
    labels = rng.permutation(classes)[nearest].astype(np.uint8)
    if unannotated:
        labels[nearest < 3] = 255
    return labels


def scaled(factor, how):
    return lambda mask: cv2.resize(mask, None, fx=factor, fy=factor, interpolation=how)


def compressed(quality):
    def damage(mask):
        stream = io.BytesIO()
        Image.fromarray(mask).save(stream, 'JPEG', quality=quality)
        return np.array(Image.open(stream))

    return damage


DAMAGE = {
    **{f'bilinear {f}': scaled(f, cv2.INTER_LINEAR) for f in (0.5, 0.9, 1.3, 2)},
    'bicubic': scaled(0.9, cv2.INTER_CUBIC),
    'area': scaled(0.7, cv2.INTER_AREA),
    'turned': lambda m: cv2.warpAffine(m, cv2.getRotationMatrix2D((120, 120), 9, 1), m.shape, flags=cv2.INTER_LINEAR),
    **{f'JPEG {q}': compressed(q) for q in (75, 85, 95)},
}


def png(values, **options):
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, 'PNG', **options)
    return stream.getvalue()


def kinds(values):
    found = []
    read_mask(png(values), lambda kind, detail: found.append((kind, detail)))
    return dict(found)


@pytest.mark.parametrize('encoding', ['direct', 'complement'])
@pytest.mark.parametrize('name', DAMAGE)
def test_damaged_masks_are_refused_with_the_share(name, encoding):
    rng = np.random.default_rng()
    damaged = DAMAGE[name](encode_mask(annotated(rng), encoding))
    found = kinds(damaged)
    assert list(found) == ['mask-interpolated']
    assert f'{share_between(damaged):.1%} of its class boundaries' in found['mask-interpolated']


@pytest.mark.parametrize('encoding', ['direct', 'complement'])
@pytest.mark.parametrize('factor', [0.5, 0.9, 1, 1.3, 2])
@pytest.mark.parametrize('unannotated', [False, True])
def test_annotated_masks_pass_at_any_scale_without_interpolation(encoding, factor, unannotated):
    labels = annotated(np.random.default_rng(), unannotated=unannotated)
    mask = scaled(factor, cv2.INTER_NEAREST)(encode_mask(labels, encoding))
    assert kinds(mask) == {} and share_between(mask) < MAX_BETWEEN / 2


def test_gaps_of_one_pixel_between_regions_pass():
    """Annotators leave thin unannotated lines between regions; 0 is not between two classes."""
    mask = encode_mask(annotated(np.random.default_rng()), 'direct')
    edges = np.zeros(mask.shape, bool)
    edges[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    edges[1:] |= mask[1:] != mask[:-1]
    mask[edges] = 0
    assert kinds(mask) == {}


def test_jpeg_between_neighbouring_ids_leaves_fringes():
    """There is no value between 3 and 4, but ringing adds 2 and 5."""
    labels = np.where(annotated(np.random.default_rng(3)) % 2, 3, 2).astype(np.uint8)
    for encoding in ('direct', 'complement'):
        mask = encode_mask(labels, encoding)
        assert kinds(mask) == {}
        damaged = compressed(85)(mask)
        assert len(np.unique(damaged)) == 4  # two classes that were not annotated
        assert kinds(damaged).keys() & {'mask-fringes', 'mask-interpolated'}
    fringes, pixels = fringe_classes(damaged)
    assert set(fringes) == set(np.unique(damaged).tolist()) - set(np.unique(mask).tolist())
    assert pixels == np.isin(damaged, fringes).sum() > MIN_FRINGE


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=14), elements=st.integers(0, 6)))
def test_the_share_is_that_of_a_plain_loop(mask):
    between = steps = 0
    for lines in (mask.tolist(), mask.T.tolist()):
        for line in lines:
            for a, b, c in zip(line, line[1:], line[2:]):
                steps += abs(a - c) > 1
                between += abs(a - c) > 1 and (a < b < c or a > b > c)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, 'MIN_STEPS', 1)
        assert share_between(mask) == (between / steps if steps else 0)
    assert steps >= pictures.MIN_STEPS or share_between(mask) == 0


def test_no_mask_of_the_real_tissue_is_suspected(real_release):
    for path in sorted((real_release / 'annotations' / 'he').glob('*.png')):
        content = path.read_bytes()
        mask = decode(content, check_png(content))
        assert share_between(mask) < MAX_BETWEEN / 4 and fringe_classes(mask) == ([], 0), path.name
