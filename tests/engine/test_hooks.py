"""Score smoothing and validation overlays."""

import math
from types import SimpleNamespace

import pytest
from mmengine.logging import MessageHub, MMLogger

from mmseg_ignite.engine.hooks import ScoreSmoothingHook, ValidationOverlayHook
from mmseg_ignite.errors import IgniteError


def runner(name, training=True):
    return SimpleNamespace(message_hub=MessageHub.get_instance(name), _train_loop=object() if training else None)


def test_smoothed_score_is_the_weighted_mean_of_all_validations(request):
    """Compare with the explicit sum; each call uses a new hook, which continues from the stored state."""
    hub, scores = runner(request.node.name), [40.0, 44.0, 20.0, 60.0]
    for number, score in enumerate(scores):
        metrics = dict(mIoU=score)
        ScoreSmoothingHook(weight=0.3).after_val_epoch(hub, metrics)
        weights = [0.3 * 0.7**age for age in range(number, -1, -1)]
        expected = sum(w * s for w, s in zip(weights, scores)) / sum(weights)
        assert metrics['mIoU_smoothed'] == pytest.approx(expected)
        assert metrics['mIoU'] == score


@pytest.mark.parametrize('wrong', [math.nan, math.inf])
def test_non_finite_score_is_skipped_and_logged_once(request, tmp_path, wrong):
    """The mean covers the finite scores only, also if an older version stored a NaN."""
    MMLogger.get_instance(request.node.name, log_file=str(tmp_path / 'log'))
    hub, hook, finite = runner(request.node.name), ScoreSmoothingHook(weight=0.3), []
    for score in (wrong, 40.0, wrong, 20.0, wrong):
        metrics = dict(mIoU=score)
        hook.after_val_epoch(hub, metrics)
        finite += [score] if math.isfinite(score) else []
        weights = [0.3 * 0.7**age for age in range(len(finite) - 1, -1, -1)]
        if finite:
            expected = sum(w * s for w, s in zip(weights, finite)) / sum(weights)
            assert metrics['mIoU_smoothed'] == pytest.approx(expected)
        else:
            assert math.isnan(metrics['mIoU_smoothed'])
    assert (tmp_path / 'log').read_text().count('skips such validations') == 1
    hub.message_hub.update_info('mIoU_smoothed', (math.nan, 0.5))
    hook.after_val_epoch(hub, metrics := dict(mIoU=30.0))
    assert metrics['mIoU_smoothed'] == pytest.approx(30)


def test_validation_outside_training_is_not_smoothed(request):
    metrics = dict(mIoU=1.0)
    ScoreSmoothingHook().after_val_epoch(runner(request.node.name, training=False), metrics)
    assert metrics == dict(mIoU=1.0)


@pytest.mark.parametrize('weight', [0, -1, 1.1])
def test_weight_out_of_range_is_refused(weight):
    with pytest.raises(IgniteError, match='weight'):
        ScoreSmoothingHook(weight=weight)


def test_missing_score_is_refused(request):
    with pytest.raises(IgniteError, match='mDice.*mIoU'):
        ScoreSmoothingHook('mDice').after_val_epoch(runner(request.node.name), dict(mIoU=1.0))


@pytest.mark.parametrize('rois', [0, 1.5])
def test_invalid_number_of_overlays_is_refused(rois):
    with pytest.raises(IgniteError, match='rois'):
        ValidationOverlayHook(rois)
