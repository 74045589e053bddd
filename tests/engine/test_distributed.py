"""Ending the process group of a distributed run."""

import os

import pytest
import torch
from forks import forked
from mmengine.config import Config

from mmseg_ignite.engine import distributed


def gloo_threads():
    names = [open(f'/proc/self/task/{t}/comm').read() for t in os.listdir('/proc/self/task')]
    return sum('gloo' in name for name in names)


@pytest.mark.skipif(not os.path.isdir('/proc/self/task'), reason='threads are counted in /proc of Linux')
def test_threads_end_with_the_process_group(tmp_path):
    """A remaining thread may abort a process that has finished its work."""

    def work():
        os.environ.update(RANK='0', WORLD_SIZE='1', LOCAL_RANK='0', MASTER_ADDR='127.0.0.1', MASTER_PORT='0')
        distributed.prepare_launch(Config(dict(launcher='pytorch', model=dict())))
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
        model.self = [model]  # a reference cycle, as in mmengine's runner
        del model
        assert gloo_threads() > 0
        distributed._end_group()
        assert gloo_threads() == 0

    status = forked(work, tmp_path / 'output.txt')
    assert status == 0, (tmp_path / 'output.txt').read_text()[-2000:]
