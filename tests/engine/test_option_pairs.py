"""Pairwise test of the training options in docs/training.md: every on/off combination trains and resumes."""

import itertools
import random

import pytest
import torch
from conftest import small_config

from mmseg_ignite.apis import train
from mmseg_ignite.engine import open_checkpoint

pytestmark = pytest.mark.usefixtures('one_thread')

OPTIONS = {
    'gradient clipping': {'optim_wrapper.clip_grad.max_norm': 1},
    'gradient accumulation': {'optim_wrapper.accumulative_counts': 2},
    'gradient checkpointing': {'model.backbone.with_cp': True},
    'layer-wise learning rates': {'optim_wrapper.paramwise_cfg.custom_keys': {'backbone.layers.0': dict(lr_mult=0.4)}},
    'drop path and dropout': {'model.backbone.drop_path_rate': 0.2, 'model.decode_head.dropout_ratio': 0.2},
    'class weights': {'model.decode_head.loss_decode.temperature': 0.5},
    'focal loss': {'model.decode_head.loss_decode.gamma': 2.0},
    'deterministic': {'randomness.deterministic': True},
    'best checkpoint by smoothed score': {'default_hooks.checkpoint.save_best': 'mIoU_smoothed'},
    'context': {'crops.use_context': True, 'val_dataloader.dataset.use_context': True},
    'test-time augmentation': {'model.test_cfg.symmetries': 2},
}
HOOKS = {
    'weight averaging': dict(type='EMAHook', momentum=0.1, update_buffers=True),
    'compilation': dict(type='CompileHook', backend='eager'),
}
ARGUMENTS = ('half precision', 'time budget')
NAMES = (*OPTIONS, *HOOKS, *ARGUMENTS)


def covering(names, seed=0):
    """Return sets of names that contain, for each pair, both, neither, and each one without the other (greedy search)."""
    rng = random.Random(seed)
    uncovered = {(a, b, x, y) for a, b in itertools.combinations(names, 2) for x in (0, 1) for y in (0, 1)}
    rows = []
    while uncovered:
        candidates = [{name: rng.randint(0, 1) for name in names} for _ in range(200)]
        remaining = [{(a, b, x, y) for a, b, x, y in uncovered if (row[a], row[b]) != (x, y)} for row in candidates]
        best = min(range(len(remaining)), key=lambda number: len(remaining[number]))
        uncovered = remaining[best]
        rows.append([name for name in names if candidates[best][name]])
    return rows


ROWS = covering(NAMES)


def test_every_pair_is_covered():
    for a, b in itertools.combinations(NAMES, 2):
        assert {(a in row, b in row) for row in ROWS} == {(x, y) for x in (False, True) for y in (False, True)}
    assert len(ROWS) < 16


def configured(prepared, work_dir, chosen, iterations):
    options = {
        'crops.crop_size': (32, 32),
        'model.data_preprocessor.size': (32, 32),
        '+val_dataloader.dataset.indices': 1,
        'train_cfg.val_interval': 2,
        'default_hooks.checkpoint.interval': 2,
    }
    for name in chosen:
        options.update(OPTIONS.get(name, {}))
    cfg = small_config(prepared, work_dir, iterations, **options)
    cfg.custom_hooks += [HOOKS[name] for name in chosen if name in HOOKS]
    return cfg


@pytest.mark.parametrize('row', range(len(ROWS)))
def test_options_train_and_resume_together(prepared, tmp_path, monkeypatch, row):
    chosen = ROWS[row]
    timed = 'time budget' in chosen
    ends = []
    try:
        for part in (1, 2):  # 2: resumed
            runner = train(
                configured(prepared, tmp_path, chosen, 2 * part),
                resume=part == 2,
                amp='half precision' in chosen,
                minutes=part * 0.015 if timed else None,
            )
            ends.append(runner.iter)
            assert all(value.isfinite().all() for value in runner.model.state_dict().values())
    finally:
        torch.use_deterministic_algorithms(False)
    assert 0 < ends[0] < ends[1] and (timed or ends == [2, 4])
    assert open_checkpoint(tmp_path / f'iter_{ends[1]}.pth')['meta']['iter'] == ends[1]
