import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmseg.evaluation import IoUMetric

from mmseg_ignite.evaluation import TissueMetric, confusion_matrix, scores
from mmseg_ignite.evaluation.confusion import table
from mmseg_ignite.labels import CLASSES


@given(st.integers(0, 2**32), st.integers(1, 5))
def test_confusion_is_a_brute_force_count(seed, classes):
    rng = np.random.default_rng(seed)
    truth = rng.choice([*range(classes), 255], (7, 6)).astype(np.uint8)
    prediction = rng.integers(0, classes, (7, 6)).astype(np.uint8)
    expected = np.zeros((classes, classes), np.int64)
    for t, p in zip(truth.ravel(), prediction.ravel()):
        if t != 255:
            expected[t, p] += 1
    found = confusion_matrix(truth, prediction, classes)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)


def samples(rng, present, rois=4):
    return [
        dict(
            roi=f'roi{i}',
            gt_sem_seg=dict(data=torch.from_numpy(rng.choice([*present, 255], (1, 30, 40)))),
            pred_sem_seg=dict(data=torch.from_numpy(rng.choice(16, (1, 30, 40)))),
        )
        for i in range(rois)
    ]


def test_scores_are_those_of_stock_iou_metric():
    rng = np.random.default_rng()
    data = samples(rng, range(16))
    metrics = []
    for metric in (TissueMetric(), IoUMetric(iou_metrics=['mIoU', 'mDice'])):
        metric.dataset_meta = dict(classes=CLASSES)
        for i in range(0, 4, 2):
            metric.process({}, data[i : i + 2])
        metrics.append(metric.evaluate(4))
    ours, stock = metrics
    for key in ('mIoU', 'mDice', 'mAcc', 'aAcc'):
        assert ours[key] == pytest.approx(stock[key], abs=0.006)  # stock rounds to two digits


def test_absent_classes_are_none_and_in_no_mean():
    rng = np.random.default_rng()
    metric = TissueMetric()
    metric.dataset_meta = dict(classes=CLASSES)
    data = samples(rng, [1, 3, 5])
    metric.process({}, data)
    metric.evaluate(4)
    result = metric.summary
    assert result['classes_present'] == 3
    truth = np.concatenate([d['gt_sem_seg']['data'].numpy().ravel() for d in data])
    prediction = np.concatenate([d['pred_sem_seg']['data'].numpy().ravel() for d in data])[truth != 255]
    truth = truth[truth != 255]
    ious = []
    for i, name in enumerate(CLASSES):
        row = result['classes'][name]
        assert row['pixels'] == (truth == i).sum()
        if i in (1, 3, 5):
            both, either = ((truth == i) & (prediction == i)).sum(), ((truth == i) | (prediction == i)).sum()
            ious.append(100 * both / either)
            assert row['IoU'] == pytest.approx(ious[-1])
            assert row['Precision'] == pytest.approx(100 * both / (prediction == i).sum())
            assert row['Recall'] == pytest.approx(100 * both / (truth == i).sum())
        else:
            assert row['IoU'] is None
    assert result['mIoU'] == pytest.approx(np.mean(ious))
    assert result['aAcc'] == pytest.approx(100 * (truth == prediction).mean())
    assert table(result).count('absent') == 13


def test_nothing_annotated_is_said_and_not_nan():
    result = scores(np.zeros((16, 16), np.int64), CLASSES)
    assert result['mIoU'] is None and result['aAcc'] is None
    assert 'nothing to score' in table(result)
