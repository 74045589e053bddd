"""What the console shows, and what only the log file has."""

import io
import logging
import os
import subprocess
import sys
import warnings

import mmengine
import pytest
from conftest import DEMO_CONFIG, ROOT

from mmseg_ignite.messages import on_console, quiet_console, quiet_warnings

MMENGINE = mmengine.__path__[0] + '/'


def record(message, path, level=logging.INFO):
    return logging.LogRecord('mmengine', level, path, 1, message, (), None)


@pytest.mark.parametrize(
    ('message', 'path', 'level', 'shown'),
    [
        ('Iter(train) [1/4] loss: 3.7', MMENGINE + 'hooks/logger_hook.py', logging.INFO, True),
        ('Saving checkpoint at 2 iterations', MMENGINE + 'hooks/checkpoint_hook.py', logging.INFO, True),
        ('resumed from work/iter_4.pth', MMENGINE + 'logging/logger.py', logging.INFO, True),
        ('Did not find last_checkpoint', MMENGINE + 'logging/logger.py', logging.INFO, True),
        ('time is over', str(ROOT / 'mmseg_ignite/engine/hooks/time_budget_hook.py'), logging.INFO, True),
        ('of a third package', '/home/mmseg/mine/hook.py', logging.INFO, True),
        ('Config: model = ...', MMENGINE + 'runner/runner.py', logging.INFO, False),
        ('paramwise_options -- x', MMENGINE + 'logging/logger.py', logging.INFO, False),
        ('Exp name: x', MMENGINE + 'hooks/logger_hook.py', logging.INFO, False),
        ('The prefix is not set in metric class X', MMENGINE + 'logging/logger.py', logging.WARNING, False),
        ('the model and the checkpoint differ', MMENGINE + 'logging/logger.py', logging.WARNING, True),
        ('it failed', MMENGINE + 'runner/runner.py', logging.ERROR, True),
        ('asked for by log_level', MMENGINE + 'runner/runner.py', logging.DEBUG, True),
    ],
)
def test_which_records_reach_the_console(message, path, level, shown):
    assert on_console(record(message, path, level)) is shown


def test_training_shows_only_its_progress(prepared, tmp_path):
    """Check every line of the tool's output."""
    options = [
        f'data_root={prepared}', 'train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'crops.crop_size=(64,64)',
        'model.data_preprocessor.size=(64,64)', 'train_dataloader.batch_size=2', 'default_hooks.logger.interval=1',
        'default_hooks.checkpoint.interval=2',
        *(f'{p}_dataloader.{k}' for p in ('train', 'val') for k in ('num_workers=0', 'persistent_workers=False')),
    ]  # fmt: skip
    run = [sys.executable, ROOT / 'tools' / 'train.py', DEMO_CONFIG, '--work-dir', 'work', '--cfg-options', *options]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'MMSEG_IGNITE_VERBOSE': '0'}
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0 and not done.stderr, done.stderr
    lines = done.stdout.splitlines()
    assert sum('Iter(train)' in x and 'loss: ' in x and 'eta: ' in x for x in lines) == 2
    assert any('Iter(val)' in x and 'mIoU: ' in x for x in lines) and any('Saving checkpoint' in x for x in lines)
    wanted = ('Iter(', 'heckpoint', 'curves.png')
    assert all(any(word in x for word in wanted) for x in lines), done.stdout
    (log,) = (tmp_path / 'work').glob('*/*.log')
    full = log.read_text()
    for words in ('System environment', 'Hooks will be executed', 'paramwise_options', 'Iter(train)'):
        assert words in full


@pytest.mark.parametrize(('value', 'shown'), [(None, False), ('', False), ('0', False), ('1', True)])
def test_an_environment_variable_shows_the_whole_log(monkeypatch, tmp_path, value, shown):
    monkeypatch.delenv('MMSEG_IGNITE_VERBOSE', raising=False)
    if value is not None:
        monkeypatch.setenv('MMSEG_IGNITE_VERBOSE', value)
    logger, stream = logging.Logger('x'), io.StringIO()
    logger.addHandler(logging.StreamHandler(stream))
    logger.addHandler(logging.FileHandler(tmp_path / 'log'))
    quiet_console(logger)
    logger.handle(record('Config: model = ...', MMENGINE + 'runner/runner.py'))
    logger.handlers[1].close()
    assert ('Config' in stream.getvalue()) == shown and 'Config' in (tmp_path / 'log').read_text()


def test_other_warnings_are_shown():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        quiet_warnings()
        warnings.warn("'pin_memory' argument is set as true but no accelerator is found, ...")
        warnings.warn('another')
    assert [str(w.message) for w in caught] == ['another']
