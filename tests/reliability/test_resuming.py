"""What a resumed run says and refuses: nothing that does not fit is loaded, not even half of it."""

import math
import signal
import time

import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from runs import config

from mmseg_ignite.apis import train
from mmseg_ignite.apis.configuration import build_runner
from mmseg_ignite.engine import TissueRunner, open_checkpoint
from mmseg_ignite.engine.checkpoints.writing import write_checkpoint
from mmseg_ignite.engine.interruption import TrainingStopped
from mmseg_ignite.errors import IgniteError

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def trained(prepared, tmp_path_factory):
    """The checkpoint of a run of four iterations; tests must not change it."""
    work_dir = tmp_path_factory.mktemp('trained') / 'run'
    train(config(prepared, work_dir, {'train_cfg.max_iters': 4}))
    return work_dir / 'iter_4.pth'


def half(mapping):
    return dict(list(mapping.items())[::2])


def changed(checkpoint, *keys, value):
    """Change a value in nested containers in place."""
    *path, last = keys
    for key in path:
        checkpoint = checkpoint[key]
    checkpoint[last] = value(checkpoint[last]) if callable(value) else value


FAULTS = {
    'half of the weights': (lambda c: changed(c, 'state_dict', value=half), 'another model'),
    'a weight of another shape': (
        lambda c: changed(c, 'state_dict', 'decode_head.conv_seg.weight', value=torch.ones(3)), 'another model',
    ),
    'a weight of another kind': (
        lambda c: changed(c, 'state_dict', 'decode_head.conv_seg.bias', value=torch.ones(16, dtype=torch.long)),
        'another model',
    ),
    'no weights': (lambda c: changed(c, 'state_dict', value={}), 'another model'),
    'NaN weights': (
        lambda c: changed(c, 'state_dict', 'decode_head.conv_seg.bias', value=torch.full((16,), math.nan)), 'NaN',
    ),
    'no optimizer': (lambda c: c.pop('optimizer'), 'no optimizer state'),
    'half of the optimizer': (lambda c: changed(c, 'optimizer', 'state', value=half), None),
    'an optimizer state of another shape': (
        lambda c: changed(c, 'optimizer', 'state', 0, 'exp_avg', value=torch.ones(2, 2)), 'shape',
    ),
    'a flat optimizer state': (
        lambda c: changed(c, 'optimizer', 'state', 0, 'exp_avg_sq', value=lambda t: t.flatten()), 'shape',
    ),
    'an optimizer state of integers': (
        lambda c: changed(c, 'optimizer', 'state', 0, 'exp_avg', value=lambda t: t.long()), 'not finite or of shape',
    ),
    'a NaN in the optimizer': (
        lambda c: changed(c, 'optimizer', 'state', 1, 'exp_avg', value=lambda t: t * math.nan), 'not finite',
    ),
    'a missing average': (lambda c: c['optimizer']['state'][3].pop('exp_avg_sq'), 'different values'),
    'a negative step': (lambda c: changed(c, 'optimizer', 'state', 0, 'step', value=torch.tensor(-1.0)), 'step'),
    'other parameter groups': (lambda c: c['optimizer']['param_groups'].pop(), 'parameter groups'),
    'wrong parameter numbers': (
        lambda c: changed(c, 'optimizer', 'param_groups', 0, 'params', 0, value=10**9), 'other parameters',
    ),
    'an infinite learning rate': (
        lambda c: changed(c, 'optimizer', 'param_groups', 0, 'lr', value=math.inf), 'lr of its optimizer',
    ),
    'text as a learning rate': (
        lambda c: changed(c, 'optimizer', 'param_groups', 0, 'lr', value='fast'), 'lr of its optimizer',
    ),
    'no schedules': (lambda c: c.pop('param_schedulers'), 'no learning-rate schedules'),
    'a schedule less': (lambda c: c['param_schedulers'].pop(), 'it has 1 learning-rate schedules'),
    'a schedule with a NaN': (lambda c: changed(c, 'param_schedulers', 0, 'base_values', 0, value=math.nan), 'LinearLR'),
    'a schedule with a method': (lambda c: changed(c, 'param_schedulers', 0, 'step', value=3), 'LinearLR'),
    'a negative iteration': (lambda c: changed(c, 'meta', 'iter', value=-1), 'iter is -1'),
    'a huge iteration': (lambda c: changed(c, 'meta', 'iter', value=2**62), 'iter is 4611686018427387904'),
    'a NaN iteration': (lambda c: changed(c, 'meta', 'iter', value=math.nan), 'iter is nan'),
    'an iteration that is text': (lambda c: changed(c, 'meta', 'iter', value='4'), 'iter is 4'),
    'no iteration': (lambda c: c['meta'].pop('iter'), 'iter is None'),
    'no meta': (lambda c: c.pop('meta'), 'iter is None'),
    'more iterations than the config': (lambda c: changed(c, 'meta', 'iter', value=99), 'config ends after 7'),
    'a log history that is repeated': (
        lambda c: c['mmseg_ignite'].update(
            history=dict.fromkeys(
                map(str, range(60)), dict(values=torch.zeros(10**6), counts=torch.zeros(10**6), max_length=10**6)
            )
        ),
        'more than 50,000,000 values',
    ),
    'a log history of text': (lambda c: changed(c, 'mmseg_ignite', 'history', 'train/loss', value='x'), 'log history'),
    'a random state of zeros': (
        lambda c: changed(c, 'mmseg_ignite', 'random', 0, 'torch', value=torch.zeros(7, dtype=torch.uint8)), 'random state',
    ),
    'a random position beyond the state': (
        lambda c: changed(c, 'mmseg_ignite', 'random', 0, 'numpy', 'position', value=10**6), 'random state',
    ),
}  # fmt: skip


@pytest.fixture(scope='module')
def runner(prepared, tmp_path_factory):
    """A run that has not started."""
    return build_runner(config(prepared, tmp_path_factory.mktemp('runner') / 'run'), training=True)


AT_START = ['a random state of zeros', 'a random position beyond the state']
"""Faults that are noticed when the training starts, not when the checkpoint is loaded."""


@pytest.mark.parametrize('fault', [fault for fault in FAULTS if fault not in AT_START])
def test_checkpoint_that_does_not_fit_is_refused(runner, trained, tmp_path, fault):
    """With a valid checksum, as a hostile file would have, so the content itself is checked."""
    spoil, expected = FAULTS[fault]
    checkpoint = open_checkpoint(trained)
    spoil(checkpoint)
    if fault == 'half of the optimizer':  # in our own file the checksum vouches for the number of states
        del checkpoint['mmseg_ignite']
        expected = 'lacks'
    write_checkpoint(checkpoint, tmp_path / 'iter_4.pth')
    with pytest.raises(IgniteError, match=expected) as refused:
        runner.resume(str(tmp_path / 'iter_4.pth'))
    assert 'iter_4.pth' in str(refused.value)
    assert (tmp_path / 'iter_4.pth').is_file()


@pytest.mark.parametrize('fault', ['half of the weights', 'no optimizer', *AT_START])
def test_training_does_not_start_from_a_checkpoint_that_does_not_fit(prepared, trained, tmp_path, fault):
    """Those that are noticed at different moments."""
    spoil, expected = FAULTS[fault]
    checkpoint = open_checkpoint(trained)
    spoil(checkpoint)
    (tmp_path / 'run').mkdir()
    write_checkpoint(checkpoint, tmp_path / 'run' / 'iter_4.pth')
    with pytest.raises(IgniteError, match=expected):
        train(config(prepared, tmp_path / 'run'), resume=True)
    assert (tmp_path / 'run' / 'iter_4.pth').is_file()


def test_nothing_is_loaded_if_the_last_check_fails(prepared, trained, tmp_path):
    checkpoint = open_checkpoint(trained)
    checkpoint['param_schedulers'].pop()
    write_checkpoint(checkpoint, tmp_path / 'x.pth')
    runner = build_runner(config(prepared, tmp_path / 'run'), training=True)
    before = {key: value.clone() for key, value in runner.model.state_dict().items()}
    with pytest.raises(IgniteError, match='nothing was loaded'):
        runner.resume(str(tmp_path / 'x.pth'))
    assert runner.iter == 0 and not runner.optim_wrapper.optimizer.state
    assert all(torch.equal(value, before[key]) for key, value in runner.model.state_dict().items())


def test_changed_settings_are_listed_with_their_effect(prepared, trained, tmp_path, capsys):
    (tmp_path / 'run').mkdir()
    write_checkpoint(open_checkpoint(trained), tmp_path / 'run' / 'iter_4.pth')
    changes = {
        'train_dataloader.batch_size': 3,
        'crops.class_probability': 0.9,
        'optim_wrapper.optimizer.weight_decay': 0.5,
        'default_hooks.logger.interval': 2,
        'train_cfg.val_interval': 100,
    }
    train(config(prepared, tmp_path / 'run', {**changes, 'train_cfg.max_iters': 5}), resume=True)
    output = ''.join(capsys.readouterr())
    for line in (
        'resumed from',
        'train_dataloader.batch_size: 2 -> 3 (changes the training)',
        'optim_wrapper.optimizer.weight_decay: 0.01 -> 0.5 (is ignored: the optimizer continues as in the checkpoint)',
        'default_hooks.logger.interval: 1 -> 2 (has no effect on the weights)',
        'train_cfg.val_interval: 3 -> 100 (changes the training)',
        'images per process: 2 before, 3 now, so the resumed run is not equal to an uninterrupted one',
    ):
        assert line in output, line
    assert output.index('(changes the training)') < output.index('(has no effect')


def test_unchanged_run_says_nothing(prepared, trained, tmp_path, capsys):
    (tmp_path / 'run').mkdir()
    write_checkpoint(open_checkpoint(trained), tmp_path / 'run' / 'iter_4.pth')
    train(config(prepared, tmp_path / 'run', {'train_cfg.max_iters': 4}), resume=True)
    output = ''.join(capsys.readouterr())
    assert 'resumed from' in output and '->' not in output and 'not equal' not in output


def test_another_number_of_processes_is_said(prepared, trained, tmp_path, capsys):
    checkpoint = open_checkpoint(trained)
    checkpoint['mmseg_ignite'].update(processes=8, random=[])
    (tmp_path / 'run').mkdir()
    write_checkpoint(checkpoint, tmp_path / 'run' / 'iter_4.pth')
    runner = train(config(prepared, tmp_path / 'run', {'train_cfg.max_iters': 5}), resume=True)
    output = ''.join(capsys.readouterr())
    assert runner.iter == 5 and 'processes: 8 before, 1 now, so the resumed run is not equal' in output


def test_checkpoint_of_mmengine_is_resumed_with_its_history(prepared, tmp_path, capsys):
    """Written by mmengine's own runner and hook: NumPy values, no random state, no checksum."""
    cfg = config(prepared, tmp_path / 'stock', {'train_cfg.max_iters': 4})
    cfg.default_hooks.checkpoint.type = 'CheckpointHook'
    Runner.from_cfg(cfg).train()
    (tmp_path / 'run').mkdir()
    (tmp_path / 'stock' / 'iter_4.pth').rename(tmp_path / 'run' / 'iter_4.pth')
    losses = torch.load(tmp_path / 'run' / 'iter_4.pth', weights_only=False)['message_hub']['log_scalars']['train/loss']
    runner = train(config(prepared, tmp_path / 'run', {'train_cfg.max_iters': 5}), resume=True)
    assert 'without the state of the random number generators' in ''.join(capsys.readouterr())
    history = runner.message_hub.log_scalars['train/loss']
    assert isinstance(history, HistoryBuffer) and runner.iter == 5
    assert history.data[0][:4].tolist() == losses.data[0].tolist() and len(history.data[0]) == 5


def test_mmengine_resumes_our_checkpoint(prepared, trained, tmp_path):
    """The keys are mmengine's, and its restricted loading needs no NumPy."""
    assert torch.load(trained, weights_only=True)['meta']['iter'] == 4
    cfg = config(prepared, tmp_path / 'stock', {'train_cfg.max_iters': 5})
    cfg.default_hooks.checkpoint.type = 'CheckpointHook'
    cfg.resume, cfg.load_from = True, str(trained)
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 5


def test_config_text_in_a_checkpoint_is_never_executed(prepared, trained, tmp_path):
    """mmengine's own runner executes ``meta['config']`` when it resumes."""
    mark = tmp_path / 'ran'
    code = f'import os\nos.mkdir({str(mark)!r})\n'
    checkpoint = open_checkpoint(trained)
    checkpoint['meta'].update(config=code, cfg=code)
    checkpoint['message_hub']['runtime_info']['cfg'] = code
    checkpoint['mmseg_ignite']['settings'] = {'model': f'__import__("os").mkdir({str(mark)!r})'}
    (tmp_path / 'run').mkdir()
    write_checkpoint(checkpoint, tmp_path / 'run' / 'iter_4.pth')
    train(config(prepared, tmp_path / 'run', {'train_cfg.max_iters': 5}), resume=True)
    assert not mark.exists()


def test_paths_in_a_checkpoint_are_not_followed(prepared, trained, tmp_path):
    """mmengine deletes the file or folder that ``best_ckpt`` names when a better one is saved."""
    outside, folder = tmp_path / 'best_thesis.pth', tmp_path / 'best_folder.pth'
    outside.write_text('mine')
    folder.mkdir()
    (folder / 'file').write_text('mine')
    for target in (outside, folder):
        checkpoint = open_checkpoint(trained)
        checkpoint['message_hub']['runtime_info'].update(
            best_ckpt=str(target), best_score=-1.0, last_ckpt=str(target), keep_ckpt_ids=[str(target), '../../x', 1, 2]
        )
        work_dir = tmp_path / f'run_{target.stem}'
        work_dir.mkdir()
        (work_dir / target.name).symlink_to(target)  # and its name leads out of the folder
        write_checkpoint(checkpoint, work_dir / 'iter_4.pth')
        train(config(prepared, work_dir, {'train_cfg.max_iters': 6}), resume=True)
        assert (work_dir / 'best_mIoU_iter_6.pth').is_file()
    assert outside.read_text() == 'mine' and (folder / 'file').read_text() == 'mine'


def test_load_from_of_another_model_is_refused_and_of_a_part_is_said(prepared, trained, tmp_path, capsys):
    checkpoint = open_checkpoint(trained)
    weights = checkpoint['state_dict']
    few = {key: value for key, value in weights.items() if key.startswith('decode_head')}
    torch.save(dict(state_dict=few), tmp_path / 'few.pth')
    with pytest.raises(IgniteError, match='another model'):
        train(config(prepared, tmp_path / 'a', {'load_from': str(tmp_path / 'few.pth')}))
    most = {key: value for key, value in weights.items() if 'conv_seg' not in key}
    torch.save(dict(state_dict=most), tmp_path / 'most.pth')
    train(config(prepared, tmp_path / 'b', {'load_from': str(tmp_path / 'most.pth'), 'train_cfg.max_iters': 1}))
    assert '2 of' in (output := ''.join(capsys.readouterr())) and 'keep initial values' in output


def test_tools_of_mmseg_use_our_runner(prepared, tmp_path):
    """They build what ``runner_type`` names, before any scope is set."""
    cfg = config(prepared, tmp_path)
    assert cfg.runner_type == 'TissueRunner' and type(RUNNERS.build(cfg)) is TissueRunner


@pytest.mark.parametrize('moment', ['before_train', 'before_val_iter'])
def test_signal_before_a_resumed_run_has_saved_names_its_checkpoint(prepared, trained, tmp_path, capsys, moment):
    """Also in the validation that it makes up."""
    checkpoint = open_checkpoint(trained)
    checkpoint['mmseg_ignite']['validation_pending'] = True
    (tmp_path / 'run').mkdir()
    write_checkpoint(checkpoint, tmp_path / 'run' / 'iter_4.pth')
    hook = dict(type='EndHook', moment=moment, call=1, number=signal.SIGTERM)
    with pytest.raises(TrainingStopped):
        train(config(prepared, tmp_path / 'run', {}, hook), resume=True)
    assert 'after 4 iterations: saved iter_4.pth; continue with --resume' in ''.join(capsys.readouterr())


def test_checkpoints_elsewhere_are_refused(prepared, tmp_path):
    """A resumed run would not find them and start anew."""
    with pytest.raises(IgniteError, match='out_dir of the checkpoint hook is elsewhere.*remove out_dir'):
        train(config(prepared, tmp_path / 'run', {'default_hooks.checkpoint.out_dir': 'elsewhere'}))


def test_runs_of_one_second_share_no_history(prepared, tmp_path, monkeypatch):
    """mmengine names the history of a run by the second in which it starts."""
    monkeypatch.setattr('mmengine.runner.runner.time.localtime', lambda *_: time.gmtime(0))
    for name in ('first', 'second'):
        runner = train(config(prepared, tmp_path / name, {'train_cfg.max_iters': 2}))
        assert len(runner.message_hub.log_scalars['train/loss'].data[0]) == 2
