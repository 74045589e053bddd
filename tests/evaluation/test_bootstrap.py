import numpy as np
import pytest

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.evaluation import Evaluation, bootstrap, compare, scores
from mmseg_ignite.evaluation.bootstrap import intervals, paired
from mmseg_ignite.evaluation.comparison import comparison_table
from mmseg_ignite.labels import CLASSES


def random_counts(rng, rois=14, patients=6, classes=16, extra=0):
    """Return matrices with absent classes, and their metadata."""
    matrices = rng.integers(0, 200, (rois, classes, classes + extra)) * (rng.random((rois, classes, 1)) < 0.5)
    matrices[:, range(classes), range(classes)] *= rng.integers(2, 9, (rois, 1))
    metadata = [dict(roi=f'roi{i}', patient=str(i % patients)) for i in range(rois)]
    return matrices, metadata


@pytest.mark.parametrize('extra', [0, 1])
def test_intervals_match_a_loop_over_samples(extra):
    """Score each of the same draws separately, from complete matrices."""
    rng = np.random.default_rng()
    matrices, metadata = random_counts(rng, extra=extra)
    found = intervals(matrices, metadata, CLASSES, 1500, seed=7)
    generator = np.random.Generator(np.random.Philox(7))
    by_patient = [matrices[p::6].sum(0) for p in range(6)]
    runs = []
    for size in (1000, 500):
        for counts in generator.multinomial(6, [1 / 6] * 6, size):
            runs.append(scores(sum(int(n) * m for n, m in zip(counts, by_patient)), CLASSES))
    for key in ('mIoU', 'mDice', 'mAcc', 'aAcc', 'fwIoU', 'kappa', 'mIoU_all_classes', 'mDice_all_classes'):
        assert found['figures'][key] == pytest.approx(list(np.percentile([r[key] for r in runs], [2.5, 97.5])))
    for i, name in enumerate(CLASSES):
        values = [v for r in runs if (v := r['classes'][name]['IoU']) is not None]
        assert found['classes'][name]['patients'] == sum(m[i].sum() > 0 for m in by_patient)
        if found['classes'][name]['patients']:
            assert found['classes'][name]['IoU'] == pytest.approx(list(np.percentile(values, [2.5, 97.5])))
        else:
            assert found['classes'][name]['IoU'] is None
    assert (found['unit'], found['patients'], found['level'], 'note' in found) == ('patient', 6, 95, False)


def test_samples_are_scored_in_blocks_of_bounded_size(monkeypatch):
    matrices, metadata = random_counts(np.random.default_rng())
    sizes, score = [], bootstrap.score_arrays
    monkeypatch.setattr(bootstrap, 'score_arrays', lambda pooled: sizes.append(len(pooled.truth)) or score(pooled))
    intervals(matrices, metadata, CLASSES, 25_500)
    assert max(sizes) <= 1000 and sum(sizes) == 25_500


def test_intervals_depend_on_the_seed_but_not_on_the_order():
    rng = np.random.default_rng()
    matrices, metadata = random_counts(rng)
    order = rng.permutation(len(metadata))
    one = intervals(matrices, metadata, CLASSES, 500)
    assert one == intervals(matrices[order], [metadata[i] for i in order], CLASSES, 500)
    assert one['figures'] != intervals(matrices, metadata, CLASSES, 500, seed=1)['figures']


def test_patients_are_resampled_rather_than_rois():
    """Copies of an ROI do not narrow the intervals, unless patients are unknown and ROIs are resampled."""
    matrices, metadata = random_counts(np.random.default_rng(), 6, 6)
    copies = np.repeat(matrices, 9, 0)
    by_patient = intervals(copies, [dict(roi=f'{i}', patient=str(i // 9)) for i in range(54)], CLASSES, 2000)
    few = intervals(matrices, metadata, CLASSES, 2000)['figures']
    assert all(by_patient['figures'][k] == pytest.approx(v) for k, v in few.items())
    by_roi = intervals(copies, [dict(roi=f'{i}') for i in range(54)], CLASSES, 2000)
    assert by_roi['unit'] == 'ROI' and 'too narrow' in by_roi['note']
    assert np.ptp(by_roi['figures']['aAcc']) < 0.6 * np.ptp(by_patient['figures']['aAcc'])


def test_coverage_of_the_intervals():
    """About 95 % of the intervals of 150 test sets of 30 patients contain the true accuracy."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(150):
        right = rng.beta(6, 2, 30)
        hits = np.round(10_000 * right).astype(int)
        matrices = np.zeros((30, 2, 2), int)
        matrices[:, 0, 0], matrices[:, 0, 1] = hits, 10_000 - hits
        metadata = [dict(roi=f'{i}', patient=f'{i}') for i in range(30)]
        low, high = intervals(matrices, metadata, ('a', 'b'), 500)['figures']['aAcc']
        covered += low <= 75 <= high
    assert 0.88 <= covered / 150 <= 0.99


def test_few_patients_and_few_samples():
    matrices, metadata = random_counts(np.random.default_rng(), 5, 2)
    assert 'only 2 patients' in intervals(matrices, metadata, CLASSES, 100)['note']
    with pytest.raises(IgniteError, match='samples'):
        intervals(matrices, metadata, CLASSES, 99)


def test_paired_bootstrap_matches_a_loop_over_samples():
    rng = np.random.default_rng()
    a, metadata = random_counts(rng)
    b = a.copy()
    b[:, :, :8] = b[:, :, 7::-1]  # different predictions, the same ground truth
    found = paired(a, b, metadata, CLASSES, 800, seed=3)
    generator = np.random.Generator(np.random.Philox(3))
    differences = []
    for counts in generator.multinomial(6, [1 / 6] * 6, 800):
        one, two = (scores(sum(int(n) * m[p::6].sum(0) for p, n in enumerate(counts)), CLASSES) for m in (a, b))
        differences.append([two[k] - one[k] for k in ('mIoU', 'mDice', 'aAcc')])
    differences = np.array(differences)
    one, two = scores(a.sum(0), CLASSES), scores(b.sum(0), CLASSES)
    for i, key in enumerate(('mIoU', 'mDice', 'aAcc')):
        row = found['figures'][key]
        assert row['difference'] == pytest.approx(two[key] - one[key])
        assert row['interval'] == pytest.approx(list(np.percentile(differences[:, i], [2.5, 97.5])))
        assert row['b_better'] == pytest.approx(100 * (differences[:, i] > 0).mean(), abs=0.2)  # rounding near ties
    for name in CLASSES:
        if one['classes'][name]['IoU'] is None:
            assert found['classes'][name]['difference'] is None
        else:
            assert found['classes'][name]['a'] == pytest.approx(one['classes'][name]['IoU'])


def evaluation(matrices, metadata, order=None):
    order = range(len(metadata)) if order is None else order
    return Evaluation(
        [metadata[i]['roi'] for i in order], matrices[order], CLASSES, [metadata[i] for i in order]
    )  # fmt: skip


def test_compare_matches_rois_by_name_and_is_antisymmetric():
    rng = np.random.default_rng()
    a, metadata = random_counts(rng)
    b = np.roll(a, 1, axis=2)
    forward = compare(evaluation(a, metadata), evaluation(b, metadata, rng.permutation(len(metadata))), 400)
    backward = compare(evaluation(b, metadata), evaluation(a, metadata), 400)
    for key in ('mIoU', 'aAcc'):
        one, two = forward['figures'][key], backward['figures'][key]
        assert one['difference'] == pytest.approx(-two['difference'])
        assert one['interval'] == pytest.approx([-x for x in two['interval'][::-1]])
        assert one['b_better'] == pytest.approx(100 - two['b_better'])
    assert 'B is worse than A' in comparison_table(forward) or 'No clear' in comparison_table(forward)


def test_verdict_on_equal_and_better_runs():
    rng = np.random.default_rng()
    a, metadata = random_counts(rng)
    same = compare(evaluation(a, metadata), evaluation(a, metadata), 200)
    assert same['figures']['mIoU'] | dict(a=0, b=0) == dict(a=0, b=0, difference=0, interval=[0, 0], b_better=50)
    perfect = np.zeros_like(a)
    perfect[:, range(16), range(16)] = a.sum(2)
    better = compare(evaluation(a, metadata), evaluation(perfect, metadata), 200)
    assert better['figures']['mIoU']['b_better'] == 100 and better['figures']['mIoU']['interval'][0] > 0
    assert 'B is better than A' in comparison_table(better)


def test_incomparable_runs_are_rejected():
    a, metadata = random_counts(np.random.default_rng())
    one = evaluation(a, metadata)
    with pytest.raises(IgniteError, match='only A has roi0, roi1, roi2 and 1 more'):
        compare(one, evaluation(a, metadata, list(range(4, 14))))
    with pytest.raises(IgniteError, match='ground truth of roi3 '):
        changed = a.copy()
        changed[3, 2, 1] += 1
        compare(one, evaluation(changed, metadata))
    with pytest.raises(IgniteError, match='different classes'):
        compare(one, Evaluation(one.names, a, tuple(c.upper() for c in CLASSES), metadata))
