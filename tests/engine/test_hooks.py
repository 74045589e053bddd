"""What the hooks add to a training."""

import math
from types import SimpleNamespace

import pytest
from mmengine.logging import MessageHub, MMLogger

from mmseg_ignite.engine.hooks import ScoreSmoothingHook, ValidationOverlayHook
from mmseg_ignite.errors import IgniteError


def runner(name, training=True):
    return SimpleNamespace(message_hub=MessageHub.get_instance(name), _train_loop=object() if training else None)


def test_smoothed_score_is_the_weighted_mean_of_all_validations(request):
    """Against the sum written out; a hook that goes on from the stored state gives the same."""
    hub, scores = runner(request.node.name), [40.0, 44.0, 20.0, 60.0]
    for number, score in enumerate(scores):
        metrics = dict(mIoU=score)
        ScoreSmoothingHook(weight=0.3).after_val_epoch(hub, metrics)
        weights = [0.3 * 0.7**age for age in range(number, -1, -1)]
        expected = sum(w * s for w, s in zip(weights, scores)) / sum(weights)
        assert metrics['mIoU_smoothed'] == pytest.approx(expected)
        assert metrics['mIoU'] == score


@pytest.mark.parametrize('wrong', [math.nan, math.inf])
def test_a_score_that_is_not_finite_is_left_out_and_said_once(request, tmp_path, wrong):
    """The mean of the others, by one hook and by those of resumed runs; also after a NaN that an older version stored."""
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
    assert (tmp_path / 'log').read_text().count('leaves such validations out') == 1
    hub.message_hub.update_info('mIoU_smoothed', (math.nan, 0.5))
    hook.after_val_epoch(hub, metrics := dict(mIoU=30.0))
    assert metrics['mIoU_smoothed'] == pytest.approx(30)


def test_a_validation_of_its_own_is_not_smoothed(request):
    metrics = dict(mIoU=1.0)
    ScoreSmoothingHook().after_val_epoch(runner(request.node.name, training=False), metrics)
    assert metrics == dict(mIoU=1.0)


@pytest.mark.parametrize('weight', [0, -1, 1.1])
def test_weights_out_of_range(weight):
    with pytest.raises(IgniteError, match='weight'):
        ScoreSmoothingHook(weight=weight)


def test_a_score_that_is_not_there(request):
    with pytest.raises(IgniteError, match='mDice.*mIoU'):
        ScoreSmoothingHook('mDice').after_val_epoch(runner(request.node.name), dict(mIoU=1.0))


@pytest.mark.parametrize('rois', [0, 1.5])
def test_overlays_of_no_roi(rois):
    with pytest.raises(IgniteError, match='rois'):
        ValidationOverlayHook(rois)
