"""Every pair of the training options of docs/training.md, switched on and off, trains and resumes."""

import itertools
import random

import pytest
import torch
from conftest import DEMO_CONFIG, small_options

from mmseg_ignite.apis import load_config, train
from mmseg_ignite.engine import open_checkpoint

pytestmark = pytest.mark.usefixtures('one_thread')

OPTIONS = {
    'gradient clipping': {'optim_wrapper.clip_grad.max_norm': 1},
    'gradient accumulation': {'optim_wrapper.accumulative_counts': 2},
    'less memory for time': {'model.backbone.with_cp': True},
    'layer-wise learning rates': {'optim_wrapper.paramwise_cfg.custom_keys': {'backbone.layers.0': dict(lr_mult=0.4)}},
    'drop path and dropout': {'model.backbone.drop_path_rate': 0.2, 'model.decode_head.dropout_ratio': 0.2},
    'class weights': {'model.decode_head.loss_decode.temperature': 0.5},
    'focal loss': {'model.decode_head.loss_decode.gamma': 2.0},
    'deterministic': {'randomness.deterministic': True},
    'smoothed score': {'default_hooks.checkpoint.save_best': 'mIoU_smoothed'},
    'context': {'crops.use_context': True, 'val_dataloader.dataset.use_context': True},
    'symmetries': {'model.test_cfg.symmetries': 2},
}
HOOKS = {
    'mean of the weights': dict(type='EMAHook', momentum=0.1, update_buffers=True),
    'compiled': dict(type='CompileHook', backend='eager'),
}
ARGUMENTS = ('half precision', 'a time instead of iterations')
NAMES = (*OPTIONS, *HOOKS, *ARGUMENTS)


def covering(names, seed=0):
    """Sets of names such that each pair of names is, in one of them, both in, both out, and one in without the other."""
    rng = random.Random(seed)
    missing = {(a, b, x, y) for a, b in itertools.combinations(names, 2) for x in (0, 1) for y in (0, 1)}
    rows = []
    while missing:
        candidates = [{name: rng.randint(0, 1) for name in names} for _ in range(200)]
        left = [{(a, b, x, y) for a, b, x, y in missing if (row[a], row[b]) != (x, y)} for row in candidates]
        best = min(range(len(left)), key=lambda number: len(left[number]))
        missing = left[best]
        rows.append([name for name in names if candidates[best][name]])
    return rows


ROWS = covering(NAMES)


def test_every_pair_is_tried():
    for a, b in itertools.combinations(NAMES, 2):
        assert {(a in row, b in row) for row in ROWS} == {(x, y) for x in (False, True) for y in (False, True)}
    assert len(ROWS) < 16


def configured(prepared, work_dir, chosen, iterations):
    options = {
        **small_options(prepared, iterations),
        'train_cfg.val_interval': 2,
        'default_hooks.checkpoint.interval': 2,
    }
    for name in chosen:
        options.update(OPTIONS.get(name, {}))
    cfg = load_config(DEMO_CONFIG, options, str(work_dir))
    kept = [
        hook for hook in cfg.custom_hooks if hook.type not in ('TrainingCurvesHook', 'ValidationOverlayHook')
    ]  # slow
    cfg.custom_hooks = [*kept, *(HOOKS[name] for name in chosen if name in HOOKS)]
    return cfg


@pytest.mark.parametrize('row', range(len(ROWS)))
def test_options_train_and_resume_together(prepared, tmp_path, monkeypatch, row):
    chosen = ROWS[row]
    timed = 'a time instead of iterations' in chosen
    ended = []
    try:
        for share in (1, 2):  # 2: resumed
            runner = train(
                configured(prepared, tmp_path, chosen, 2 * share),
                resume=share == 2,
                amp='half precision' in chosen,
                minutes=share * 0.015 if timed else None,
            )
            ended.append(runner.iter)
            assert all(value.isfinite().all() for value in runner.model.state_dict().values())
    finally:
        torch.use_deterministic_algorithms(False)
    assert 0 < ended[0] < ended[1] and (timed or ended == [2, 4])
    assert open_checkpoint(tmp_path / f'iter_{ended[1]}.pth')['meta']['iter'] == ended[1]
