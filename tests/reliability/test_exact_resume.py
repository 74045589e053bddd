"""A run that is stopped anywhere and resumed equals the uninterrupted one bit by bit."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from runs import Killed, assert_same_run, config

from mmseg_ignite.apis import train
from mmseg_ignite.engine import open_checkpoint
from mmseg_ignite.engine.interruption import TrainingStopped
from mmseg_ignite.engine.work_dirs import latest_checkpoint

pytestmark = pytest.mark.usefixtures('one_thread')
SETTINGS = {
    'plain': {},
    'averaged, accumulated': {
        'custom_hooks': [
            dict(type='ScoreSmoothingHook'),
            dict(type='EMAHook', momentum=0.1),
            dict(type='EarlyStoppingHook', monitor='mIoU_smoothed', rule='greater', patience=50),
        ],
        'optim_wrapper.accumulative_counts': 2,
    },
    'bfloat16, two workers': {
        'optim_wrapper.type': 'HalfOptimWrapper',
        'optim_wrapper.dtype': 'bfloat16',
        'train_dataloader.num_workers': 2,
        'train_dataloader.persistent_workers': True,
    },
    'float16': {'optim_wrapper.type': 'HalfOptimWrapper', 'optim_wrapper.dtype': 'float16'},
}
"""float16 scales the loss; 'plain' has dropout and drop path, which need the state of torch's generator."""
MOMENTS = [
    ('before_train_iter', 2),
    ('before_train_iter', 5),
    ('after_train_iter', 4),
    ('before_val_iter', 2),
    ('after_val_epoch', 1),
    ('after_val', 2),
]


@pytest.fixture(scope='module')
def uninterrupted(prepared, tmp_path_factory):
    """Work dirs of uninterrupted runs by setting."""
    done = {}

    def run(name):
        if name not in done:
            done[name] = tmp_path_factory.mktemp('uninterrupted') / 'run'
            train(config(prepared, done[name], SETTINGS[name]))
        return done[name]

    return run


@pytest.mark.parametrize(
    ('name', 'moment'),
    [('plain', moment) for moment in MOMENTS]
    + [('averaged, accumulated', MOMENTS[n]) for n in (1, 3)]
    + [('bfloat16, two workers', MOMENTS[2]), ('float16', MOMENTS[4])],
    ids=str,
)
def test_killed_run_equals_the_uninterrupted_one(prepared, uninterrupted, tmp_path, name, moment):
    """Weights, optimizer, schedules, averages, loss scale, scores, losses, and the checkpoints that are kept."""
    work_dir = tmp_path / 'run'
    with pytest.raises(Killed):
        train(config(prepared, work_dir, SETTINGS[name], dict(type='EndHook', moment=moment[0], call=moment[1])))
    assert bool(latest_checkpoint(work_dir)) == (moment != MOMENTS[0])
    train(config(prepared, work_dir, SETTINGS[name]), resume=True)
    assert_same_run(work_dir, uninterrupted(name))


@pytest.mark.parametrize(
    ('name', 'moment', 'number', 'saved'),
    [
        ('plain', ('before_train_iter', 5), signal.SIGTERM, 5),
        ('plain', ('before_val_iter', 2), signal.SIGINT, 3),
        ('averaged, accumulated', ('before_train_iter', 3), signal.SIGUSR1, 3),
        ('averaged, accumulated', ('before_val_iter', 3), signal.SIGTERM, 3),
    ],
    ids=str,
)
def test_signal_saves_the_run(prepared, uninterrupted, tmp_path, capsys, name, moment, number, saved):
    """The current iteration is completed; gradients in accumulation are saved; a validation is made up later."""
    work_dir, before = tmp_path / 'run', signal.getsignal(number)
    hook = dict(type='EndHook', moment=moment[0], call=moment[1], number=number)
    with pytest.raises(TrainingStopped) as stopped:
        train(config(prepared, work_dir, SETTINGS[name], hook))
    assert stopped.value.code == 128 + number and signal.getsignal(number) == before
    assert latest_checkpoint(work_dir).name == f'iter_{saved}.pth'
    message = f'stopped by {number.name} after {saved} iterations: saved iter_{saved}.pth; continue with --resume.'
    assert message in ''.join(capsys.readouterr())
    train(config(prepared, work_dir, SETTINGS[name]), resume=True)
    assert_same_run(work_dir, uninterrupted(name))


def test_signal_before_the_first_iteration_saves_nothing(prepared, tmp_path, capsys):
    hook = dict(type='EndHook', moment='before_train', call=1, number=signal.SIGTERM)
    with pytest.raises(TrainingStopped):
        train(config(prepared, tmp_path / 'run', {}, hook))
    assert 'nothing has been saved; start again' in ''.join(capsys.readouterr())
    assert not list((tmp_path / 'run').glob('*.pth'))


def test_second_ctrl_c_ends_at_once(prepared, tmp_path):
    hooks = [dict(type='EndHook', moment='before_train_iter', call=2, number=signal.SIGINT) for _ in range(2)]
    with pytest.raises(KeyboardInterrupt):
        train(config(prepared, tmp_path / 'run', {}, *hooks))


def test_time_budget_continues(prepared, tmp_path, monkeypatch):
    """With a clock that counts iterations, a resumed run of --minutes equals the uninterrupted one."""
    ticks = dict(now=0.0)

    def clock():
        ticks['now'] += 0.5
        return ticks['now']

    monkeypatch.setattr('mmseg_ignite.engine.hooks.time_budget_hook.time.perf_counter', clock)
    hook = dict(type='EndHook', moment='before_train_iter', call=4)
    train(config(prepared, tmp_path / 'whole'), minutes=4 / 60)
    with pytest.raises(Killed):
        train(config(prepared, tmp_path / 'run', {}, hook), minutes=4 / 60)
    ticks['now'] = 0.0
    train(config(prepared, tmp_path / 'run'), resume=True, minutes=4 / 60)
    assert_same_run(tmp_path / 'run', tmp_path / 'whole')


def test_two_processes_resume_exactly(prepared, tmp_path):
    """Each process has its own dropout, so each needs its own random state. A signal to one stops both together."""
    script = ROOT / 'tests' / 'reliability' / 'two_processes.py'
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(
        [sys.executable, script, prepared, tmp_path], capture_output=True, text=True, env=environment, timeout=600
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-3000:]
    stopped = 128 + signal.SIGTERM
    assert json.loads((tmp_path / 'statuses.json').read_text()) == [[0, 0], [stopped, stopped], [0, 0]], output[-3000:]
    assert 'stopped by SIGTERM after 3 iterations: saved iter_3.pth' in output and 'not equal' not in output
    assert_same_run(tmp_path / 'run', tmp_path / 'whole')
    states = open_checkpoint(latest_checkpoint(tmp_path / 'run'))['mmseg_ignite']['random']
    assert len(states) == 2 and not torch.equal(states[0]['torch'], states[1]['torch'])
