"""TissueMetric: agreement with mmseg's IoUMetric, and independence of the order of the ROIs."""

import numpy as np
import pytest
import torch
from mmseg.evaluation import IoUMetric

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.evaluation import TissueMetric
from mmseg_ignite.evaluation.text_table import table
from mmseg_ignite.labels import CLASSES


def samples(rng, present, rois=4, **extra):
    return [
        dict(
            roi=f'roi{i}',
            patient=str(i % 3),
            um_per_px=0.5,
            metadata=dict(organ='lung' if i % 2 else 'liver'),
            gt_sem_seg=dict(data=torch.from_numpy(rng.choice([*present, 255], (1, 30, 40)))),
            pred_sem_seg=dict(data=torch.from_numpy(rng.choice(16, (1, 30, 40)))),
            **{k: v() for k, v in extra.items()},
        )
        for i in range(rois)
    ]


def on(device, data):
    """Move the maps of samples to a device, as networks leave them."""
    for sample in data:
        for value in sample.values():
            if isinstance(value, dict) and 'data' in value:
                value['data'] = value['data'].to(device)
    return data


def run(metric, data, batch=1, size=None):
    metric.dataset_meta = dict(classes=CLASSES)
    for i in range(0, len(data), batch):
        metric.process({}, data[i : i + batch])
    return metric.evaluate(size or len(data))


@pytest.mark.parametrize('absent', [(), (2, 7)])
def test_scores_match_mmseg_iou_metric(device, absent):
    """mmseg's means equal ours over all classes, and our logged means if every class is present."""
    rng = np.random.default_rng()
    data = on(device, samples(rng, [c for c in range(16) if c not in absent]))
    ours = TissueMetric()
    logged, stock = run(ours, data, 2), run(IoUMetric(iou_metrics=['mIoU', 'mDice']), data, 2)
    for key in ('mIoU', 'mDice'):
        assert ours.summary[f'{key}_all_classes'] == pytest.approx(stock[key], abs=0.006)  # stock rounds to two digits
        if not absent:
            assert logged[key] == pytest.approx(stock[key], abs=0.006)
        else:
            assert logged[key] > stock[key]
    assert logged['aAcc'] == pytest.approx(stock['aAcc'], abs=0.006)
    if not absent:
        assert logged['mAcc'] == pytest.approx(stock['mAcc'], abs=0.006)


def test_absent_classes_are_none_and_excluded_from_means():
    rng = np.random.default_rng()
    metric, data = TissueMetric(), samples(rng, [1, 3, 5])
    logged = run(metric, data)
    result = metric.summary
    assert result['classes_present'] == 3
    truth = np.concatenate([d['gt_sem_seg']['data'].numpy().ravel() for d in data])
    prediction = np.concatenate([d['pred_sem_seg']['data'].numpy().ravel() for d in data])[truth != 255]
    truth = truth[truth != 255]
    ious = []
    for i, name in enumerate(CLASSES):
        row = result['classes'][name]
        if i in (1, 3, 5):
            both, either = ((truth == i) & (prediction == i)).sum(), ((truth == i) | (prediction == i)).sum()
            ious.append(100 * both / either)
            assert row['IoU'] == pytest.approx(ious[-1])
        else:
            assert row['IoU'] is None
    assert result['mIoU'] == logged['mIoU'] == pytest.approx(np.mean(ious))
    assert result['aAcc'] == pytest.approx(100 * (truth == prediction).mean())
    assert table(result).count('absent') == 13


@pytest.mark.parametrize('order', ['padded', 'shuffled', 'batches'])
def test_scores_do_not_depend_on_the_order_of_rois(order):
    """Simulate several processes: repeated ROIs, any order, any batch size."""
    rng = np.random.default_rng()
    data = samples(rng, range(16), 7)
    arriving = {
        'padded': [*data[::2], data[0], *data[1::2], data[1], data[0]],
        'shuffled': [data[i] for i in rng.permutation([*range(7), 2, 2, 5])],
        'batches': data,
    }[order]
    metrics = [TissueMetric(), TissueMetric()]
    run(metrics[0], data)
    run(metrics[1], arriving, 3, size=7)  # the length of the data set, as in mmengine's loops
    one, two = (m.evaluation.metrics(samples=200) for m in metrics)
    assert one == two and one['rois'] == 7
    assert [n for n, _ in metrics[1].rois] == [f'roi{i}' for i in range(7)]


def test_metadata_boundaries_and_calibration_are_kept(device):
    rng = np.random.default_rng()
    logits = [torch.from_numpy(rng.normal(size=(16, 30, 40)).astype(np.float32)) for _ in range(4)]
    data = samples(rng, range(16))
    for sample, one in zip(data, logits):
        sample['seg_logits'] = dict(data=one)
    metric = TissueMetric(
        boundary_tolerance_um=1.0, calibration=True, groupings={'two': {'a': ['Muscle'], 'b': 'rest'}}
    )
    run(metric, on(device, data))
    assert metric.evaluation.metadata[1] == dict(roi='roi1', patient='1', um_per_px=0.5, organ='lung')
    result = metric.evaluation.metrics(**metric.options | dict(samples=100))
    assert set(result['groupings']) == {'ignite-6', 'two'} and set(result['strata']) == {'patient', 'organ'}
    assert result['boundary']['tolerance_um'] == 1.0 and result['boundary']['mean_NSD'] > 0
    annotated = sum(int((d['gt_sem_seg']['data'] != 255).sum()) for d in data)
    assert sum(b['pixels'] for b in result['calibration']['bins']) == annotated
    for sample, one in zip(data, logits):
        del sample['seg_logits']
        sample['seg_probabilities'] = dict(data=one.softmax(0).to(device))
    run(metric, data)
    assert metric.evaluation.metrics(samples=100)['calibration']['ece'] == pytest.approx(result['calibration']['ece'])


@pytest.mark.parametrize('key', ['seg_logits', 'seg_probabilities'])
def test_logits_and_probabilities_are_distinguished_by_key(device, key):
    """Use scores that could be either: positive values that sum to 1."""
    rng = np.random.default_rng()
    data = samples(rng, range(16))
    both = [torch.from_numpy(rng.dirichlet(np.ones(16), (30, 40)).transpose(2, 0, 1)) for _ in data]
    for sample, one in zip(data, both):
        sample[key] = dict(data=one)
    metric = TissueMetric(calibration=True)
    run(metric, on(device, data))
    expected = np.stack([one.numpy() for one in both])
    if key == 'seg_logits':
        expected = np.exp(expected) / np.exp(expected).sum(1, keepdims=True)
    truth = np.concatenate([d['gt_sem_seg']['data'].cpu().numpy() for d in data])
    bins = metric.evaluation.metrics(samples=100)['calibration']['bins']
    sums = [b['pixels'] * b['confidence'] for b in bins if b['pixels']]
    assert sum(sums) == pytest.approx(100 * expected.max(1)[truth != 255].sum(), rel=1e-5)


def test_calibration_requires_scores_of_every_class():
    data = samples(np.random.default_rng(), range(16), 1)
    with pytest.raises(IgniteError, match='keep_logits'):
        run(TissueMetric(calibration=True), data)
    data[0]['seg_logits'] = dict(data=torch.rand(1, 30, 40))  # as stored by a head with one output channel
    with pytest.raises(IgniteError, match='1 channels.*16 classes'):
        run(TissueMetric(calibration=True), data)


def test_invalid_settings_are_rejected_early():
    data = samples(np.random.default_rng(), range(16), 1)
    with pytest.raises(IgniteError, match='Bone'):
        run(TissueMetric(groupings={'g': {'a': ['Bone']}}), data)
    with pytest.raises(IgniteError, match='tolerance'):
        TissueMetric(boundary_tolerance_um=-1)
    with pytest.raises(IgniteError, match='samples'):
        TissueMetric(bootstrap_samples=3)
    del data[0]['um_per_px']
    with pytest.raises(IgniteError, match='um_per_px'):
        run(TissueMetric(boundary_tolerance_um=1), data)
    del data[0]['roi']
    with pytest.raises(IgniteError, match='img_path'):
        run(TissueMetric(), data)
