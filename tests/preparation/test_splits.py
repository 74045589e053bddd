import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.preparation.splits import assert_no_leak, divide_patients, make_splits


def rois_of(rng, patients, rois):
    owner = np.r_[np.arange(patients), rng.integers(patients, size=rois - patients)]
    test = rng.random(patients) < 0.3
    return [
        dict(
            name=f'r{i}',
            patient=str(p),
            official_split='test' if test[p] else 'train',
            pixels=(rng.integers(0, 9999, 16) * (rng.random(16) < 0.4)).tolist(),
        )
        for i, p in enumerate(owner)
    ]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.integers(3, 40), st.integers(0, 60))
def test_splits_are_whole_disjoint_deterministic_and_never_leak(seed, patients, more):
    rois = rois_of(np.random.default_rng(seed), patients, patients + more)
    splits = make_splits(rois)
    assert splits == make_splits(rois)
    for protocol, parts in splits.items():
        names = [n for part in parts.values() for n in part]
        assert sorted(names) == sorted(r['name'] for r in rois)
        assert all(parts.values())
        assert_no_leak(rois, parts, protocol)
    if 'official' in splits:
        assert set(splits['official']['test']) == {r['name'] for r in rois if r['official_split'] == 'test'}


def test_shares_come_near_8_1_1_with_many_patients():
    rng = np.random.default_rng(3)
    features = rng.integers(0, 1000, (155, 17)).astype(float)
    part = divide_patients(features, (8, 1, 1))
    shares = np.stack([features[part == p].sum(0) for p in range(3)]) / features.sum(0)
    assert np.abs(shares - np.array([[0.8], [0.1], [0.1]])).max() < 0.04


def test_a_class_of_three_patients_stands_in_all_parts():
    features = np.ones((60, 2))
    features[:, 1] = 0
    features[[4, 30, 51], 1] = 500
    part = divide_patients(features, (8, 1, 1))
    assert set(part[[4, 30, 51]]) == {0, 1, 2}


def test_two_patients_cannot_be_split():
    with pytest.raises(IgniteError, match='three'):
        make_splits(rois_of(np.random.default_rng(0), 2, 9))


def test_a_leak_is_an_error():
    rois = [dict(name='a', patient='1'), dict(name='b', patient='1')]
    with pytest.raises(IgniteError, match='patient 1'):
        assert_no_leak(rois, dict(train=['a'], test=['b']), 'index.json')
