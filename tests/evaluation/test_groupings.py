import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.evaluation.groupings import (
    IGNITE_6,
    check_groupings,
    group_matrix,
    group_members,
    group_scores,
    published_scores,
)
from mmseg_ignite.labels import CLASSES


@given(st.integers(0, 2**32))
def test_group_matrix_matches_relabelled_pixels(seed):
    """Include classes in no group and pixels without a prediction (id 16)."""
    rng = np.random.default_rng(seed)
    truth, prediction = rng.integers(0, 16, 400), rng.integers(0, 17, 400)
    which = rng.integers(-1, 3, 16)  # -1: in no group
    which[:3] = 0, 1, 2
    grouping = {f'g{g}': [CLASSES[i] for i in np.flatnonzero(which == g)] for g in range(3)}
    matrix, expected = np.zeros((16, 17), np.int64), np.zeros((3, 4), np.int64)
    for t, p in zip(truth, prediction):
        matrix[t, p] += 1
        if which[t] >= 0:
            expected[which[t], which[p] if p < 16 and which[p] >= 0 else 3] += 1
    np.testing.assert_array_equal(group_matrix(matrix, group_members(grouping, CLASSES)), expected)


def test_ignite_6_contains_every_class_once():
    members = group_members(IGNITE_6, CLASSES)
    assert sorted(i for ids in members.values() for i in ids) == list(range(16))
    assert len(members['Rest']) == 10 and members['Stroma + Inflammation'] == [3, 4]


def test_confusion_within_a_group_is_correct():
    matrix = np.zeros((16, 16), np.int64)
    matrix[3, 4], matrix[4, 3], matrix[1, 3] = 30, 20, 50
    found = group_scores(matrix[None], group_members(IGNITE_6, CLASSES))
    assert found['aAcc'] == 50 and found['classes_present'] == 2
    assert found['groups']['Stroma + Inflammation']['IoU'] == 50 and found['groups']['Rest']['IoU'] is None


@given(st.integers(0, 2**32))
def test_published_dice_matches_pixels(seed):
    """Remove the pixels whose truth is Background and compute the Dice of each class and group."""
    rng = np.random.default_rng(seed)
    truth, prediction = rng.integers(0, 12, 500), rng.integers(0, 16, 500)
    prediction = np.where(rng.random(500) < 0.5, truth, prediction)
    matrix = np.zeros((16, 16), np.int64)
    np.add.at(matrix, (truth, prediction), 1)
    found = published_scores(matrix[None])
    truth, prediction = truth[truth != 0], prediction[truth != 0]

    def dice(t, p):
        return 200 * (t & p).sum() / (t.sum() + p.sum())

    each = [dice(truth == c, prediction == c) for c in range(1, 12)]
    assert list(found['classes']) == list(CLASSES)
    assert [found['classes'][CLASSES[c]] for c in range(1, 12)] == pytest.approx(each)
    assert found['classes']['Background'] is None and found['classes']['Liver'] is None
    assert found['mean_dice'] == pytest.approx(np.mean(each))
    assert found['micro_dice'] == pytest.approx(100 * (truth == prediction).mean())
    group = np.array([0, 1, 5, 2, 2, 5, 5, 3, 5, 5, 5, 5, 4, 5, 5, 5])
    t, p = group[truth], group[prediction]
    names = ['Background', 'Tumor', 'Stroma + Inflammation', 'Necrotic', 'Macrophages', 'Rest']
    assert list(found['groups']) == names
    each = {n: dice(t == g, p == g) for g, n in enumerate(names) if (t == g).any()}
    assert {n: v for n, v in found['groups'].items() if v is not None} == pytest.approx(each)
    assert found['groups_micro_dice'] == pytest.approx(100 * (t == p).mean())
    assert found['groups_mean_dice'] == pytest.approx(np.mean(list(each.values())))


def test_published_scores_without_annotated_pixels_are_none():
    found = published_scores(np.zeros((1, 16, 16), np.int64))
    assert found['micro_dice'] is found['mean_dice'] is found['groups_mean_dice'] is None


@pytest.mark.parametrize('extra', [0, 1])
def test_intervals_of_groups_and_published_scores_match_a_loop(extra):
    """Score each of the same draws separately; only the published scores ignore pixels without a prediction."""
    rng = np.random.default_rng()
    counts = rng.integers(0, 99, (12, 16, 16 + extra)) * (rng.random((12, 16, 1)) < 0.6)
    metadata = [dict(roi=f'roi{i}', patient=str(i % 6)) for i in range(12)]
    by_patient = [counts[p::6].sum(0) for p in range(6)]
    draws = np.random.Generator(np.random.Philox(5)).multinomial(6, [1 / 6] * 6, 300)
    pooled = [sum(int(n) * m for n, m in zip(draw, by_patient)) for draw in draws]

    def middle(values):
        known = [v for v in values if v is not None]
        return pytest.approx(list(np.percentile(known, [2.5, 97.5]))) if known else None

    found = published_scores(counts, metadata, 300, 5)['intervals']
    each = [published_scores(p[None]) for p in pooled]
    for key in ('micro_dice', 'mean_dice', 'groups_micro_dice', 'groups_mean_dice'):
        assert found[key] == middle([one[key] for one in each])
    for key in ('classes', 'groups'):
        for name, interval in found[key].items():
            assert interval == middle([one[key][name] for one in each])
    assert found['patients']['classes']['Background'] == 0
    assert found['patients']['classes']['Stroma'] == sum(m[3, :16].any() for m in by_patient)

    members = group_members(IGNITE_6, CLASSES)
    found = group_scores(counts, members, metadata, 300, 5)['intervals']
    each = [group_scores(p[None], members) for p in pooled]
    for key in ('mIoU', 'mDice', 'mAcc', 'aAcc'):
        assert found['figures'][key] == middle([one[key] for one in each])
    for name in members:
        assert found['groups'][name]['IoU'] == middle([one['groups'][name]['IoU'] for one in each])


@pytest.mark.parametrize(
    ('grouping', 'word'),
    [
        ({'a': ['Bone']}, "'Bone'"),
        ({'a': ['Muscle'], 'b': ['Liver', 'Muscle']}, "'Muscle'"),
        ({'a': ['Muscle', 'Muscle']}, 'once'),
        ({'a': 'Muscle'}, 'list'),
        ({'a': []}, 'list'),
        ({'a': 3}, 'list'),
        ({'a': [3]}, 'names 3'),
        ({'a': 'rest', 'b': 'rest'}, 'both'),
        ({'a': list(CLASSES), 'b': 'rest'}, 'no class is left'),
        ({}, 'expected'),
        (['Muscle'], 'expected'),
    ],
)
def test_invalid_groupings_are_rejected(grouping, word):
    with pytest.raises(IgniteError, match=word) as error:
        check_groupings({'mine': grouping}, CLASSES)
    assert 'mine' in str(error.value)


def test_built_in_groupings_require_the_16_classes():
    assert list(check_groupings(None, CLASSES)) == ['ignite-6']
    assert check_groupings({'x': {'a': ['Muscle']}}, ('Muscle', 'Liver')) == {'x': {'a': [0]}}
    with pytest.raises(IgniteError, match='groupings'):
        check_groupings(['x'], CLASSES)
