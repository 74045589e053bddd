"""Ending the process group of a distributed run."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

CODE = """
import os
import torch
from mmengine.config import Config
from mmseg_ignite.engine import distributed

def threads():
    names = [open(f'/proc/self/task/{t}/comm').read() for t in os.listdir('/proc/self/task')]
    return sum('gloo' in name for name in names)

distributed.prepare_launch(Config(dict(launcher='pytorch', model=dict())))
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
model.self = [model]  # a reference cycle, as in mmengine's runner
del model
assert threads() > 0
distributed._end_group()
assert threads() == 0
"""


@pytest.mark.skipif(not os.path.isdir('/proc/self/task'), reason='threads are counted in /proc of Linux')
def test_threads_end_with_the_process_group():
    """A remaining thread may abort a process that has finished its work."""
    group = dict(RANK='0', WORLD_SIZE='1', LOCAL_RANK='0', MASTER_ADDR='127.0.0.1', MASTER_PORT='0')
    environment = {**os.environ, **group, 'CUDA_VISIBLE_DEVICES': '', 'PYTHONPATH': str(ROOT)}
    done = subprocess.run([sys.executable, '-c', CODE], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
