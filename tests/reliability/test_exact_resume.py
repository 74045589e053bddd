"""A run that is stopped anywhere and resumed equals the uninterrupted one bit by bit."""

import json
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from forks import forked, in_two
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
        'train_dataloader.dataset.defer_colours': True,
        'train_dataloader.dataset.pipeline': [
            dict(type=name) for name in ('RandomDihedral', 'HEDJitter', 'RandomScannerEffects', 'PackTissueInputs')
        ],
    },
    'float16': {'optim_wrapper.type': 'HalfOptimWrapper', 'optim_wrapper.dtype': 'float16'},
}
"""float16 scales the loss; 'plain' has dropout and drop path, which need the state of torch's generator."""
TERM, INT, USR1 = signal.SIGTERM, signal.SIGINT, signal.SIGUSR1
ENDS = {
    'plain': [
        ('before_train_iter', 2, None),
        ('before_val_iter', 2, INT),
        ('before_val_iter', 3, None),
        ('before_train_iter', 2, None),
        ('after_train_iter', 1, None),
        ('before_train_iter', 1, TERM),
        ('after_val_epoch', 1, None),
        ('after_val', 1, None),
    ],
    'averaged, accumulated': [
        ('before_train_iter', 3, USR1),
        ('before_val_iter', 2, None),
        ('before_train_iter', 2, None),
        ('before_val_iter', 3, TERM),
    ],
    'bfloat16, two workers': [('after_train_iter', 4, None)],
    'float16': [('after_val_epoch', 1, None)],
}
"""How each process of one run ends: the n-th call of a method of a hook, by an exception like a kill or by a signal."""


@pytest.mark.parametrize('name', ENDS)
def test_run_that_is_ended_again_and_again_equals_the_uninterrupted_one(prepared, tmp_path, capsys, name):
    """Weights, optimizer, schedules, averages, loss scale, scores, losses, and the checkpoints that are kept.

    At a signal, the current iteration is completed; gradients in accumulation are saved; a validation is made up later.
    """
    train(config(prepared, tmp_path / 'whole', SETTINGS[name]))
    work_dir = tmp_path / 'run'
    for moment, call, number in ENDS[name]:
        before, hook = signal.getsignal(number or TERM), dict(type='EndHook', moment=moment, call=call, number=number)
        with pytest.raises(TrainingStopped if number else Killed) as ended:
            train(config(prepared, work_dir, SETTINGS[name], hook), resume=True)
        assert signal.getsignal(number or TERM) == before
        output, latest = ''.join(capsys.readouterr()), latest_checkpoint(work_dir)
        assert bool(latest) == ((moment, call) != ('before_train_iter', 2) or 'resumed from' in output)
        if not latest:
            time.sleep(1)  # the folder of a run's logs is named after the second
        if number:
            saved = latest.stem.removeprefix('iter_')
            message = f'stopped by {number.name} after {saved} iterations: saved {latest.name}; continue with --resume.'
            assert ended.value.code == 128 + number and message in output
    train(config(prepared, work_dir, SETTINGS[name]), resume=True)
    assert_same_run(work_dir, tmp_path / 'whole')


ON_CUDA = {
    'float32': {},
    'bfloat16': SETTINGS['bfloat16, two workers'],
    'float16': SETTINGS['float16'],
    'averaged, accumulated': SETTINGS['averaged, accumulated'],
    'two workers, pinned': {
        'train_dataloader.num_workers': 2,
        'train_dataloader.persistent_workers': True,
        'train_dataloader.pin_memory': True,
    },
}


@pytest.mark.cuda
@pytest.mark.parametrize('name', ON_CUDA)
def test_run_on_cuda_that_is_ended_equals_the_uninterrupted_one(prepared, tmp_path, name):
    """torch promises equal bits on CUDA only with deterministic algorithms."""
    settings = {'randomness.deterministic': True, **ON_CUDA[name]}
    runner = train(config(prepared, tmp_path / 'whole', settings))
    assert next(runner.model.parameters()).is_cuda and torch.are_deterministic_algorithms_enabled()
    killed = dict(type='EndHook', moment='before_train_iter', call=4)
    stopped = dict(type='EndHook', moment='before_train_iter', call=2, number=TERM)
    for hook, end in ((killed, Killed), (stopped, TrainingStopped)):
        with pytest.raises(end):
            train(config(prepared, tmp_path / 'run', settings, hook), resume=True)
    train(config(prepared, tmp_path / 'run', settings), resume=True)
    assert_same_run(tmp_path / 'run', tmp_path / 'whole')


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

    monkeypatch.setattr('mmseg_ignite.engine.hooks.time_budget_hook.time', SimpleNamespace(perf_counter=clock))
    hook = dict(type='EndHook', moment='before_train_iter', call=4)
    train(config(prepared, tmp_path / 'whole'), minutes=4 / 60)
    with pytest.raises(Killed):
        train(config(prepared, tmp_path / 'run', {}, hook), minutes=4 / 60)
    ticks['now'] = 0.0
    train(config(prepared, tmp_path / 'run'), resume=True, minutes=4 / 60)
    assert_same_run(tmp_path / 'run', tmp_path / 'whole')


def test_two_processes_resume_exactly(prepared, tmp_path):
    """Each process has its own dropout, so each needs its own random state. A signal to one stops both together."""
    settings = {'launcher': 'pytorch', 'train_cfg.max_iters': 4}
    ended = dict(type='EndHook', moment='before_train_iter', call=1, number=int(signal.SIGTERM), rank=1)

    def train_in_two(name, *hooks):
        return in_two(lambda: train(config(prepared, tmp_path / name, settings, *hooks), resume=True))

    def work():
        statuses = [train_in_two('whole'), train_in_two('run', ended), train_in_two('run')]
        (tmp_path / 'statuses.json').write_text(json.dumps(statuses))

    status, output = forked(work, tmp_path / 'output.txt'), (tmp_path / 'output.txt').read_text()
    assert status == 0, output[-3000:]
    stopped = 128 + signal.SIGTERM
    assert json.loads((tmp_path / 'statuses.json').read_text()) == [[0, 0], [stopped, stopped], [0, 0]], output[-3000:]
    assert 'stopped by SIGTERM after 3 iterations: saved iter_3.pth' in output and 'not equal' not in output
    assert_same_run(tmp_path / 'run', tmp_path / 'whole')
    states = open_checkpoint(latest_checkpoint(tmp_path / 'run'))['mmseg_ignite']['random']
    assert len(states) == 2 and not torch.equal(states[0]['torch'], states[1]['torch'])
