import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.registry import init_default_scope
from mmseg.registry import TRANSFORMS

from mmseg_ignite.datasets.transforms.orientation import RandomDihedral, apply_dihedral


def coordinates(height, width):
    """Return a crop whose pixels and labels encode their position; the labels have several dtypes."""
    y, x = np.mgrid[:height, :width]
    return dict(
        img=np.stack([y, x, y ^ x], -1).astype(np.uint8),
        gt_seg_map=(y * width + x).astype(np.int64),
        gt_edge_map=y.astype(np.uint8),
        gt_depth=(x / 2).astype(np.float32),
        gt_large=(y * width + x)[..., None] + 2**40,
        seg_fields=['gt_seg_map', 'gt_edge_map', 'gt_depth', 'gt_large'],
        img_shape=(height, width),
    )


def by_hand(array, number):
    array = np.rot90(array, number % 4)
    return array[:, ::-1] if number >= 4 else array


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40))
def test_labels_move_with_the_pixels(height, width):
    before = coordinates(height, width)
    after = RandomDihedral()(dict(before))
    number = after['dihedral']
    for key in ('img', *before['seg_fields']):
        np.testing.assert_array_equal(after[key], by_hand(before[key], number))
        assert after[key].dtype == before[key].dtype and after[key].flags['C_CONTIGUOUS']
    assert after['img'].shape == before['img'].shape == (*after['img_shape'], 3)
    assert after['gt_large'].shape == before['gt_large'].shape
    y, x = after['gt_edge_map'].astype(int), (after['gt_depth'] * 2).astype(int)
    np.testing.assert_array_equal(after['img'], np.stack([y, x, y ^ x], -1))
    np.testing.assert_array_equal(after['gt_seg_map'], y * width + x)


def test_the_eight_symmetries_are_distinct():
    image = np.random.default_rng().integers(0, 256, (9, 9, 3), np.uint8)
    seen = [apply_dihedral(image, number).tobytes() for number in range(8)]
    assert len(set(seen)) == 8
    assert seen[0] == image.tobytes()


@pytest.mark.parametrize(('shape', 'numbers'), [((6, 6), range(8)), ((6, 7), (0, 2, 4, 6)), ((7, 6), (0, 2, 4, 6))])
def test_symmetries_are_equally_likely(shape, numbers):
    transform, draws = RandomDihedral(), 4000
    seen = [transform(coordinates(*shape))['dihedral'] for _ in range(draws)]
    assert set(seen) == set(numbers)
    share = 1 / len(numbers)
    for number in numbers:
        assert abs(seen.count(number) - draws * share) < 5 * (draws * share * (1 - share)) ** 0.5


def test_draws_one_random_number_for_any_shape():
    seed = int(np.random.default_rng().integers(2**31))
    after, numbers = set(), set()
    for shape in ((5, 5), (5, 5), (5, 8), (1, 1)):
        np.random.seed(seed)
        numbers.add(RandomDihedral()(coordinates(*shape))['dihedral'] & ~1)
        after.add(np.random.random())
    assert len(after) == len(numbers) == 1


def test_views_become_contiguous():
    crop = coordinates(8, 8)
    crop['img'], crop['gt_seg_map'] = crop['img'][:, ::-1], crop['gt_seg_map'][::-1]
    expected = {key: crop[key].copy() for key in ('img', 'gt_seg_map')}
    for _ in range(20):
        after = RandomDihedral()(dict(crop))
        for key, array in expected.items():
            assert after[key].flags['C_CONTIGUOUS']
            np.testing.assert_array_equal(after[key], by_hand(array, after['dihedral']))


def test_within_a_stock_pipeline():
    init_default_scope('mmseg')
    assert repr(RandomDihedral()) == 'RandomDihedral()'
    results = coordinates(16, 16)
    results['seg_fields'] = ['gt_seg_map']
    for step in (
        dict(type='RandomFlip', prob=1.0),
        dict(type='RandomDihedral'),
        dict(type='PackSegInputs', meta_keys=('dihedral',)),
    ):
        results = TRANSFORMS.build(step)(results)
    y, x = results['inputs'][0].long(), results['inputs'][1].long()
    assert (results['data_samples'].gt_sem_seg.data[0] == y * 16 + x).all()
    assert results['data_samples'].dihedral in range(8)
