import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmseg_ignite.datasets.prepared import FOLDS, PARTS, PROTOCOLS, assert_no_leak, is_grouped, leaking_patients
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.labels import CLASSES
from mmseg_ignite.preparation.splits import classes_not_in_all_parts, divide, make_splits

# Number of the release's 408 ROIs with each class.
HOLDERS = (313, 245, 79, 349, 124, 81, 16, 218, 263, 47, 73, 23, 199, 12, 15, 21)


def roi_of(name, patient, split='train', pixels=(1,) * 16):
    return dict(name=name, patient=patient, official_split=split, pixels=list(pixels))


def rois_of(rng, patients, rois, tested=0.3):
    """Return random ROIs; each patient has at least one and is either in train or in test."""
    owner = np.r_[np.arange(patients), rng.integers(patients, size=rois - patients)]
    test = rng.random(patients) < tested
    pixels = rng.integers(0, 9999, (rois, 16)) * (rng.random((rois, 16)) < 0.4)
    return [roi_of(f'r{i}', f'p{p}', 'test' if test[p] else 'train', pixels[i].tolist()) for i, p in enumerate(owner)]


def ignite_like(rng, patients=155):
    """Return 408 ROIs with the release's class frequencies; amounts and patients' shares of a class are skewed."""
    owner = np.r_[np.arange(patients), rng.integers(patients, size=408 - patients)]
    pixels = np.zeros((408, 16), int)
    for number, count in enumerate(HOLDERS):
        affinity = rng.lognormal(0, 1.5, patients)[owner]
        holders = rng.choice(408, count, replace=False, p=affinity / affinity.sum())
        pixels[holders, number] = np.maximum(1, rng.lognormal(11.5, 1.6, count))
    test = rng.random(patients) < 0.2
    return [roi_of(f'r{i}', f'p{p}', 'test' if test[p] else 'train', pixels[i].tolist()) for i, p in enumerate(owner)]


def shares_of(rois, parts):
    """Return the (3, 16) shares of each class's pixels."""
    pixels = {r['name']: np.array(r['pixels']) for r in rois}
    amounts = np.array([sum(pixels[n] for n in parts[part]) for part in PARTS])
    return amounts / amounts.sum(0)


def deviation(rois, parts):
    return np.abs(shares_of(rois, parts) - np.array([[0.8], [0.1], [0.1]])).mean()


def missing(features, part_of, parts):
    """Count the (part, feature) pairs without any amount, for features of at least as many units as parts."""
    needed = (features > 0).sum(0) >= parts
    return sum(int((features[part_of == part][:, needed].sum(0) == 0).sum()) for part in range(parts))


def brute_force_leaks(rois, parts):
    found = set()
    for a, b in itertools.permutations(rois, 2):
        sides = [{part for part in parts if r['name'] in parts[part]} for r in (a, b)]
        if a['patient'] == b['patient'] and sides[0] != sides[1]:
            found.add(a['patient'])
    return sorted(found)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.integers(3, 40), st.integers(0, 50))
def test_every_protocol_is_complete_disjoint_and_leaks_as_declared(seed, patients, more):
    rois = rois_of(np.random.default_rng(seed), patients, patients + more)
    for protocol, parts in make_splits(rois).items():
        assert tuple(parts) == PARTS
        assert all(parts.values()), protocol
        assert sorted(n for part in parts.values() for n in part) == sorted(r['name'] for r in rois)
        leaks = brute_force_leaks(rois, parts)
        assert list(leaking_patients(rois, parts)) == leaks
        if is_grouped(protocol):
            assert not leaks
            assert_no_leak(rois, parts, protocol)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.integers(3, 40), st.integers(0, 50))
def test_the_order_of_the_rois_does_not_matter(seed, patients, more):
    rng = np.random.default_rng(seed)
    rois = rois_of(rng, patients, patients + more)
    splits = make_splits(rois)
    assert make_splits([rois[i] for i in rng.permutation(len(rois))]) == splits
    assert list(splits) == [p for p in PROTOCOLS if p in splits]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.integers(8, 40), st.integers(0, 50), st.sampled_from([0.0, 0.3]))
def test_folds_validate_every_roi_outside_one_test_part_once(seed, patients, more, tested):
    rois = rois_of(np.random.default_rng(seed), patients, patients + more, tested)
    splits = make_splits(rois)
    test = splits.get('official', splits['patient-8-1-1'])['test']
    outside = sorted({r['name'] for r in rois} - set(test))
    if len({r['patient'] for r in rois if r['name'] in outside}) < 5:
        assert not set(FOLDS) & set(splits)
        return
    assert sorted(n for fold in FOLDS for n in splits[fold]['val']) == outside
    for fold in FOLDS:
        assert splits[fold]['test'] == test
        assert sorted(splits[fold]['train'] + splits[fold]['val']) == outside


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.integers(5, 40))
def test_official_tests_on_exactly_the_rows_marked_test(seed, patients):
    rois = rois_of(np.random.default_rng(seed), patients, 2 * patients)
    for split, of in (('test', 'p0'), ('train', 'p1'), ('train', 'p2')):
        for roi in rois:
            if roi['patient'] == of:
                roi['official_split'] = split
    parts = make_splits(rois)['official']
    assert set(parts['test']) == {r['name'] for r in rois if r['official_split'] == 'test'}


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32))
def test_a_class_of_three_patients_is_in_all_parts(seed):
    """Each rare class has its own three patients, so all classes can be in all parts."""
    rng = np.random.default_rng(seed)
    rois = [roi_of(f'r{i}', f'p{i}', pixels=[5] + [0] * 15) for i in range(60)]
    for number, holders in enumerate(rng.permutation(60)[:45].reshape(15, 3), 1):
        for holder in holders:
            rois[holder]['pixels'][number] = int(rng.lognormal(8, 3)) + 1
    parts = make_splits(rois)['patient-8-1-1']
    assert (shares_of(rois, parts) > 0).all()
    assert classes_not_in_all_parts(rois, parts) == []


@pytest.mark.parametrize(
    'shares, units', [((8, 1, 1), 12), ((8, 1, 1), 60), ((8, 1), 6), ((1,) * 5, 12), ((1,) * 5, 40)]
)
@pytest.mark.parametrize('seed', range(4))
def test_a_planted_division_with_every_class_in_every_part_is_found(shares, units, seed):
    """Units get hidden parts; then one unit of each hidden part gets each class."""
    rng = np.random.default_rng(seed)
    parts = len(shares)
    secret = np.r_[np.arange(parts), rng.integers(parts, size=units - parts)]
    features = np.zeros((units, 17))
    features[:, 16] = 1
    for number, part in itertools.product(range(16), range(parts)):
        features[rng.choice(np.flatnonzero(secret == part)), number] = int(rng.lognormal(10, 2)) + 1
    assert missing(features, divide(features, shares), parts) == 0


@pytest.mark.parametrize('seed', range(6))
def test_if_not_every_class_fits_as_many_as_possible_do(seed):
    rng = np.random.default_rng(seed)
    features = np.zeros((6, 17))
    features[:, 16] = 1
    for number in range(16):
        features[rng.choice(6, 3, replace=False), number] = rng.integers(1, 10**6, 3)
    least = min(missing(features, np.array(p), 3) for p in itertools.product(range(3), repeat=6))
    assert least > 0
    assert missing(features, divide(features, (8, 1, 1)), 3) == least


def test_a_small_division_is_near_the_best_of_all():
    features = np.random.default_rng(8).integers(1, 1000, (9, 3)).astype(float)
    wanted = np.array([[0.5], [0.25], [0.25]])

    def cost(part_of):
        shares = np.array([features[part_of == part].sum(0) for part in range(3)]) / features.sum(0)
        return np.abs(shares / wanted - 1).mean()

    every = sorted(cost(np.array(p)) for p in itertools.product(range(3), repeat=9) if len(set(p)) == 3)
    assert cost(divide(features, (2, 1, 1))) <= every[len(every) // 1000]


def test_shares_approximate_8_1_1_with_many_patients():
    rng = np.random.default_rng(3)
    features = rng.integers(0, 1000, (155, 17)).astype(float)
    part = divide(features, (8, 1, 1))
    shares = np.stack([features[part == p].sum(0) for p in range(3)]) / features.sum(0)
    assert np.abs(shares - np.array([[0.8], [0.1], [0.1]])).max() < 0.02


def test_a_release_like_the_real_one():
    rois = ignite_like(np.random.default_rng(11))
    splits = make_splits(rois)
    assert tuple(splits) == PROTOCOLS
    assert deviation(rois, splits['patient-8-1-1']) < 0.02
    assert deviation(rois, splits['roi-8-1-1']) < 0.01
    assert classes_not_in_all_parts(rois, splits['patient-8-1-1']) == []
    assert leaking_patients(rois, splits['roi-8-1-1'])


def test_at_least_as_near_as_scikit_learn():
    selection = pytest.importorskip('sklearn.model_selection')
    for seed in range(2):
        rois = ignite_like(np.random.default_rng(seed))
        pixels = np.array([r['pixels'] for r in rois])
        counts = np.ceil(pixels * (20_000 / pixels.sum())).astype(int)  # one sample per so many pixels
        roi, label = np.nonzero(counts)
        samples, labels = np.repeat(roi, counts[roi, label]), np.repeat(label, counts[roi, label])
        patients = np.array([rois[i]['patient'] for i in samples])
        folds = selection.StratifiedGroupKFold(10).split(samples, labels, patients)
        names = [sorted({rois[i]['name'] for i in samples[fold]}) for _, fold in folds]
        theirs = dict(train=sum(names[:8], []), val=names[8], test=names[9])
        ours = make_splits(rois)['patient-8-1-1']
        assert deviation(rois, ours) <= deviation(rois, theirs)
        assert (shares_of(rois, ours) == 0).sum() <= (shares_of(rois, theirs) == 0).sum()


def test_three_patients_are_one_for_each_part():
    rois = [roi_of(f'r{i}', f'p{i % 3}') for i in range(7)]
    splits = make_splits(rois)
    assert set(splits) == {'patient-8-1-1', 'roi-8-1-1'}
    patients = [{int(n[1:]) % 3 for n in part} for part in splits['patient-8-1-1'].values()]
    assert sorted(patients, key=min) == [{0}, {1}, {2}]


def test_without_test_rows_the_folds_test_on_the_default_split():
    splits = make_splits([roi_of(f'r{i}', f'p{i}') for i in range(20)])
    assert 'official' not in splits
    assert {tuple(splits[fold]['test']) for fold in FOLDS} == {tuple(splits['patient-8-1-1']['test'])}


def test_a_patient_on_both_official_sides_omits_official():
    rois = [roi_of(f'r{i}', f'p{i}', 'test' if i < 5 else 'train') for i in range(20)]
    assert 'official' in make_splits(rois)
    splits = make_splits([*rois, roi_of('more', 'p0')])
    assert 'official' not in splits
    assert splits['fold0']['test'] == splits['patient-8-1-1']['test']


@pytest.mark.parametrize('train', [1, 2, 4, 5])
def test_too_few_training_patients_omit_protocols(train):
    rois = [roi_of(f'r{i}', f'p{i}', 'train' if i < train else 'test') for i in range(train + 3)]
    splits = make_splits(rois)
    assert ('official' in splits, 'fold0' in splits) == (train >= 2, train >= 5)


def test_a_class_that_cannot_be_in_all_parts_is_named():
    rois = [roi_of(f'r{i}', f'p{min(i, 3)}') for i in range(6)]
    for i, roi in enumerate(rois):
        roi['pixels'][6] = int(i < 3)  # three patients
        roi['pixels'][13] = int(i < 2)  # two patients: not required
        roi['pixels'][14] = int(i >= 3)  # three ROIs of one patient: not required
    parts = dict(train=['r0', 'r1'], val=['r2'], test=['r3', 'r4', 'r5'])
    assert classes_not_in_all_parts(rois, parts) == [CLASSES[6]]


def test_only_the_split_by_roi_is_not_grouped():
    assert [p for p in PROTOCOLS if not is_grouped(p)] == ['roi-8-1-1']


@pytest.mark.parametrize('patients', [0, 1, 2])
def test_fewer_than_three_patients_cannot_be_split(patients):
    with pytest.raises(IgniteError, match=rf'{patients} patient\(s\).*three'):
        make_splits([roi_of(f'r{i}', f'p{i % patients}') for i in range(9 * bool(patients))])


def test_a_leak_is_an_error():
    rois = [dict(name='a', patient='1'), dict(name='b', patient='1')]
    with pytest.raises(IgniteError, match='patient 1'):
        assert_no_leak(rois, dict(train=['a'], test=['b']), 'index.json')
