"""Counts and scores compared with loops and scikit-learn."""

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from mmseg_ignite.evaluation import confusion_matrix, scores
from mmseg_ignite.evaluation.confusion import OVERALL, PER_CLASS, Marginals, score_arrays
from mmseg_ignite.evaluation.text_table import table
from mmseg_ignite.labels import CLASSES


@given(st.integers(0, 2**32), st.integers(1, 20), st.sampled_from([np.uint8, np.int64]))
def test_confusion_matrix_matches_brute_force(seed, classes, dtype):
    rng = np.random.default_rng(seed)
    truth = rng.choice([*range(classes), 255], (7, 6)).astype(dtype)
    prediction = rng.integers(0, classes, (7, 6)).astype(dtype)
    prediction[truth == 255] = rng.integers(0, 256)  # must be ignored
    expected = np.zeros((classes, classes), np.int64)
    for t, p in zip(truth.ravel(), prediction.ravel()):
        if t != 255:
            expected[t, p] += 1
    found = confusion_matrix(truth, prediction, classes)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)


def test_counts_are_exact_beyond_float32():
    truth = np.full((4100, 4100), 15, np.uint8)  # 16.81 million px, more than 2 ** 24
    truth[0, :3] = 0, 255, 255
    found = confusion_matrix(truth, np.full_like(truth, 15), 16)
    assert found[15, 15] == 4100 * 4100 - 3 and found[0, 15] == 1 and found.sum() == 4100 * 4100 - 2


@pytest.mark.parametrize('classes', [3, 16, 19])
def test_large_maps_match_scikit_learn(classes):
    rng = np.random.default_rng()
    truth, prediction = rng.integers(0, classes, (2, 911, 777)).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.1] = 255
    kept = truth != 255
    expected = sklearn.metrics.confusion_matrix(truth[kept], prediction[kept], labels=range(classes))
    np.testing.assert_array_equal(confusion_matrix(truth, prediction, classes), expected)
    np.testing.assert_array_equal(confusion_matrix(truth.T, prediction.T, classes), expected)  # not contiguous


@pytest.mark.parametrize('dtype', [np.uint8, np.int64])
@pytest.mark.parametrize(
    ('truth', 'prediction', 'word'),
    [(16, 0, 'truth'), (254, 3, 'truth'), (0, 16, 'prediction'), (2, 255, 'prediction')],
)
def test_ids_out_of_range_are_rejected(dtype, truth, prediction, word):
    with pytest.raises(ValueError, match=f'the {word} holds'):
        confusion_matrix(np.array([[0, truth]], dtype), np.array([[0, prediction]], dtype), 16)


def test_different_shapes_are_rejected():
    with pytest.raises(ValueError, match='shape'):
        confusion_matrix(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), 16)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 16))
def test_scores_match_scikit_learn(seed, classes):
    rng = np.random.default_rng(seed)
    truth, prediction = rng.integers(0, classes, (2, 300))
    truth = np.where(rng.random(300) < 0.4, prediction, truth)
    names = CLASSES[:classes]
    found = scores(confusion_matrix(truth, prediction, classes), names)
    assert found['aAcc'] == pytest.approx(100 * sklearn.metrics.accuracy_score(truth, prediction))
    assert found['kappa'] == pytest.approx(sklearn.metrics.cohen_kappa_score(truth, prediction))
    ids = list(range(classes))
    for key, score in (('IoU', sklearn.metrics.jaccard_score), ('Dice', sklearn.metrics.f1_score),
                       ('Precision', sklearn.metrics.precision_score), ('Recall', sklearn.metrics.recall_score)):  # fmt: skip
        undefined_score = (
            0 if key == 'IoU' else np.nan
        )  # for a class in neither map; jaccard_score does not support NaN
        expected = 100 * score(truth, prediction, labels=ids, average=None, zero_division=undefined_score)
        for i, name in enumerate(names):
            row = found['classes'][name]
            assert row['pixels'] == (truth == i).sum() and row['predicted_pixels'] == (prediction == i).sum()
            wanted = expected[i] if row['pixels'] and np.isfinite(expected[i]) else None
            assert row[key] == (pytest.approx(wanted) if wanted is not None else None)
    weighted = sklearn.metrics.jaccard_score(truth, prediction, average='weighted', zero_division=0)
    assert found['fwIoU'] == pytest.approx(100 * weighted)


@given(st.integers(0, 2**32))
def test_means_over_present_and_over_all_classes(seed):
    """A class in neither map is in no mean; one that is only predicted counts 0 in the means over all classes."""
    rng = np.random.default_rng(seed)
    matrix = rng.integers(0, 50, (6, 6)) * (rng.random((6, 6)) < 0.5)
    matrix[rng.integers(6)] = 0
    ious, everywhere = [], []
    for c in range(6):
        union = matrix[c].sum() + matrix[:, c].sum() - matrix[c, c]
        if union:
            everywhere.append(100 * matrix[c, c] / union)
            ious += everywhere[-1:] if matrix[c].sum() else []
    found = scores(matrix, CLASSES[:6])
    assert found['mIoU'] == (pytest.approx(np.mean(ious)) if ious else None)
    assert found['mIoU_all_classes'] == (pytest.approx(np.mean(everywhere)) if everywhere else None)
    assert found['classes_present'] == len(ious)


@given(st.integers(0, 2**32), st.integers(2, 9), st.integers(2, 50))
def test_properties_of_the_scores(seed, classes, factor):
    rng = np.random.default_rng(seed)
    matrix, names = rng.integers(1, 1000, (classes, classes)), CLASSES[:classes]
    one = scores(matrix, names)
    assert all(0 <= one[k] <= 100 for k in OVERALL if k != 'kappa') and -1 <= one['kappa'] <= 1
    for row in one['classes'].values():
        assert row['Dice'] == pytest.approx(200 * row['IoU'] / (100 + row['IoU']))
    more = scores(matrix * factor, names)  # independent of the number of pixels
    order = rng.permutation(classes)
    turned = scores(matrix[np.ix_(order, order)], [names[i] for i in order])  # and of the class order
    swapped = scores(matrix.T, names)
    for key in OVERALL:
        assert more[key] == pytest.approx(one[key]) and turned[key] == pytest.approx(one[key])
    for key in ('mIoU', 'mDice', 'aAcc', 'kappa'):
        assert swapped[key] == pytest.approx(one[key])
    for name in names:
        assert swapped['classes'][name]['Precision'] == pytest.approx(one['classes'][name]['Recall'])
        assert turned['classes'][name]['IoU'] == pytest.approx(one['classes'][name]['IoU'])


def test_pixels_without_prediction_lower_only_their_own_class():
    matrix = np.diag([100, 100, 100])
    found = scores(np.hstack([matrix, [[100], [0], [0]]]), CLASSES[:3])
    assert [found['classes'][c]['IoU'] for c in CLASSES[:3]] == [50, 100, 100]
    assert found['classes'][CLASSES[0]]['Precision'] == 100 and found['classes'][CLASSES[0]]['Recall'] == 50
    assert found['aAcc'] == 75


def test_stacked_matrices_are_scored_independently():
    rng = np.random.default_rng()
    matrices = rng.integers(0, 9, (5, 4, 8, 9)) * (rng.random((5, 4, 8, 1)) < 0.7)
    found = score_arrays(Marginals.of(matrices))
    for index in np.ndindex(5, 4):
        one = scores(matrices[index], CLASSES[:8])
        for key in OVERALL:
            assert found[key][index] == pytest.approx(one[key] if one[key] is not None else np.nan, nan_ok=True)
        for i, name in enumerate(CLASSES[:8]):
            for key in PER_CLASS:
                if one['classes'][name][key] is not None:
                    assert found[key][index][i] == one['classes'][name][key]


def test_scores_without_annotated_pixels_are_none():
    result = scores(np.zeros((16, 16), np.int64), CLASSES)
    assert all(result[key] is None for key in OVERALL)
    assert 'nothing to score' in table(result)
