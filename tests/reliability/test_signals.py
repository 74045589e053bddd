"""Signals to the process group of the tool, as a terminal or a scheduler sends them: workers get them too."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import DEMO_CONFIG, ROOT, cfg_options
from runs import TINY

from mmseg_ignite.engine.work_dirs import latest_checkpoint


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_signal_to_the_tool_and_its_workers_saves_without_a_traceback(prepared, tmp_path, number):
    tiny = (f'{key}={value}'.replace(', ', ',') for key, value in TINY.items())
    workers = ('train_dataloader.num_workers=2', 'train_dataloader.persistent_workers=True')
    arguments = [
        sys.executable, ROOT / 'tools' / 'train.py', DEMO_CONFIG, '--work-dir', tmp_path / 'run',
        *cfg_options(prepared, *tiny, *workers, 'default_hooks.checkpoint.interval=2', iterations=100_000),
    ]  # fmt: skip
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    tool = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )
    end = time.monotonic() + 120
    while latest_checkpoint(tmp_path / 'run') is None and time.monotonic() < end and tool.poll() is None:
        time.sleep(0.05)
    os.killpg(tool.pid, number)
    output = tool.communicate(timeout=60)[0]
    assert tool.returncode == 128 + number, (output[:6000], output[-500:])
    assert 'Traceback' not in output and 'Error' not in output, output[-3000:]
    assert output.count(f'stopped by {number.name} after ') == 1
    assert f'saved {latest_checkpoint(tmp_path / "run").name}; continue with --resume' in output
