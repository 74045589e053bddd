"""What all colour transforms have in common."""

import re

import numpy as np
import pytest
from mmengine.registry import init_default_scope
from mmseg.registry import TRANSFORMS

from mmseg_ignite.datasets.transforms import (
    HEDJitter,
    LABJitter,
    MacenkoAugment,
    MacenkoNormalize,
    RandomScannerEffects,
    RandStainNA,
    StainShift,  # noqa: F401  built from its repr
)
from mmseg_ignite.errors import IgniteError

SCANNER = dict(blur_prob=1, gamma_prob=1, jpeg_prob=1)
OPTIONS = [
    dict(type='HEDJitter', sigma=(0.1, (0, 0.2), 0), bias=0.05),
    dict(type='MacenkoAugment', glass=True, light=230),
    dict(type='MacenkoNormalize'),
    dict(type='LABJitter', mean=(1, 2, 3), spread=0.2, glass=True),
    dict(type='RandStainNA', mean=(56, 39, -20)),
    dict(type='RandomScannerEffects', gamma_range=(1.2, 1.4), jpeg_quality=(70, 80), **SCANNER),
    dict(type='StainShift', kind='scanner', seed=3),
]
RANDOM = [options for options in OPTIONS if options['type'] not in ('MacenkoNormalize', 'StainShift')]


def names(options):
    return options['type']


def build(options, **changes):
    init_default_scope('mmseg')
    return TRANSFORMS.build({**options, **changes})


def tissue():
    """Return glass, two pure stains and mixtures of them, (64, 64, 3) uint8 BGR."""
    rng = np.random.default_rng()
    amounts = rng.uniform(1.0, 1.8, (64, 64, 2))
    kind = rng.integers(0, 5, (64, 64))
    amounts[kind == 0], amounts[kind == 1, 1], amounts[kind == 2, 0] = 0, 0, 0
    density = amounts @ np.array([[0.56, 0.72, 0.41], [0.21, 0.80, 0.55]])
    return (240 * np.exp(-density))[..., ::-1].round().astype(np.uint8)


@pytest.mark.parametrize('options', RANDOM, ids=names)
def test_random_numbers_depend_only_on_the_seed(options):
    """Neither on the image nor on the probability, which decides whether the image changes."""
    image, seed = tissue(), int(np.random.default_rng().integers(2**31))
    off = dict.fromkeys(SCANNER if options['type'] == 'RandomScannerEffects' else ['prob'], 0)
    outputs, states = [], []
    for crop, changes in ((image, {}), (image, {}), (np.full_like(image, 255), {}), (image[:1, :1], {}), (image, off)):
        np.random.seed(seed)
        outputs.append(build(options, **changes).transform(dict(img=crop.copy()))['img'])
        states.append(np.random.random())
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert (outputs[0] != image).any() and len(set(states)) == 1
    np.testing.assert_array_equal(outputs[-1], image)


@pytest.mark.parametrize('options', OPTIONS, ids=names)
def test_an_mmseg_pipeline_accepts_them(options):
    labels = np.random.default_rng().integers(0, 16, (64, 64), np.uint8)
    results = dict(img=tissue(), img_shape=(64, 64), ori_shape=(64, 64), gt_seg_map=labels, seg_fields=['gt_seg_map'])
    steps = (dict(type='RandomFlip', prob=1.0), options, dict(type='PhotoMetricDistortion'), options)
    for step in (*steps, dict(type='PackSegInputs')):
        results = build(step)(results)
    assert results['inputs'].shape == (3, 64, 64)
    np.testing.assert_array_equal(results['data_samples'].gt_sem_seg.data[0].numpy(), labels[:, ::-1])


@pytest.mark.parametrize('options', OPTIONS, ids=names)
@pytest.mark.parametrize('image', [np.zeros((4, 5, 3), np.float32), np.zeros((4, 5), np.uint8)])
def test_only_8_bit_colour_is_accepted(options, image):
    with pytest.raises(IgniteError, match=f'{options["type"]} got a {image.dtype} image of shape'):
        build(options).transform(dict(img=image))


@pytest.mark.parametrize('options', OPTIONS, ids=names)
def test_repr_builds_the_same_again(options):
    transform = build(options)
    assert repr(eval(repr(transform))) == repr(transform)
    assert all(f'{key}={value!r}' in repr(transform) for key, value in options.items() if key != 'type')


INVALID = {
    HEDJitter: dict(
        sigma=[-0.1, 1.5, (0.1, 0.2), (0.1, (0.3, 0.2), 0.1), 'strong', None], bias=[float('nan')], prob=[1.1, 'often']
    ),
    MacenkoAugment: dict(sigma=[(0.1, 0.2, 0.3)], bias=[6], light=[0]),
    MacenkoNormalize: dict(
        vectors=[((1, 2, 3), (2, 4, 6)), ((1, 2), (3,))], strengths=[(1, 0), (1, float('inf'))], light=[256]
    ),
    LABJitter: dict(mean=[(1, 2), 5, (1, 2, 51), ('1', 2, 3)], spread=[-0.1, 1.5], prob=[2]),
    RandStainNA: dict(mean=[(1, 2)], mean_between=[-1], spread=[(0, 1, 1)], spread_between=[(1, 2, 30)], prob=[-1]),
    RandomScannerEffects: dict(
        blur_prob=[-0.1],
        gamma_prob=[2],
        jpeg_prob=[None],
        blur_sigma=[(0, 1), 0.5],
        gamma_range=[(1.2, 0.8), (0.8, float('nan'))],
        jpeg_quality=[(50, 101)],
    ),
}


@pytest.mark.parametrize(
    ('transform', 'name', 'value'),
    [(t, name, value) for t, names in INVALID.items() for name, values in names.items() for value in values],
)
def test_invalid_arguments_are_refused(transform, name, value):
    with pytest.raises(IgniteError, match=re.escape(f'{name} is {value!r}; ') + '.* expected'):
        transform(**{name: value})
