"""Private attributes of mmengine are used in one file only and exist in the installed version."""

import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.runner import IterBasedTrainLoop
from mmengine.visualization import LocalVisBackend
from torch import nn

import mmseg_ignite
from mmseg_ignite.engine import compatibility
from mmseg_ignite.engine.worker_errors import WorkerErrors

PRIVATE = re.compile(r'\b(?:runner|cfg|visualizer|loop|hook|hub|wrapper|CheckpointLoader|data_preprocessor)\._[a-z]\w*')


def test_private_attributes_of_mmengine_are_used_in_one_file_only():
    found = {
        path.name: PRIVATE.findall(path.read_text(encoding='utf-8'))
        for path in Path(mmseg_ignite.__file__).parent.rglob('*.py')
        if '.mim' not in path.parts
    }
    assert {name for name, fields in found.items() if fields} == {'compatibility.py'}


def test_installed_mmengine_has_these_attributes(tmp_path):
    from mmengine.runner import Runner

    runner = Runner(nn.Linear(1, 1), str(tmp_path), experiment_name='compatibility')
    assert not compatibility.is_training(runner)
    assert [type(backend) for backend in compatibility.visualization_backends(runner)] == [LocalVisBackend]
    assert {'', 'http://'} <= compatibility.checkpoint_loaders().keys()
    assert Path(compatibility.mmengine_home()).name
    loop = IterBasedTrainLoop.__new__(IterBasedTrainLoop)
    compatibility.set_last_iteration(SimpleNamespace(train_loop=loop), 7)
    compatibility.set_position(SimpleNamespace(train_loop=loop), 5, 1)
    assert (loop.max_iters, loop.iter, loop.epoch) == (7, 5, 1)
    compatibility.mark_resumed(runner.message_hub, 'loss')
    assert runner.message_hub.state_dict()['resumed_keys']['loss']
    wrapper = OptimWrapper(torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1), accumulative_counts=3)
    assert compatibility.accumulation_steps(wrapper) == 3


def test_death_of_a_worker_does_not_interrupt_an_iteration():
    """It is reported when the next batch is due, and not at all once the process ends."""

    def died(*_):
        raise RuntimeError('a worker died')

    errors, before = WorkerErrors(), signal.signal(signal.SIGCHLD, died)
    steps = []
    try:
        with errors.late():
            os.kill(os.getpid(), signal.SIGCHLD)
            steps.append('complete')
            for _ in range(2):
                with pytest.raises(RuntimeError, match='a worker died'), errors.at_once():
                    os.kill(os.getpid(), signal.SIGCHLD)
        assert steps == ['complete'] and signal.getsignal(signal.SIGCHLD) is died
        with errors.late():
            errors.off()
            os.kill(os.getpid(), signal.SIGCHLD)
        os.kill(os.getpid(), signal.SIGCHLD)
        errors.on()
        assert signal.getsignal(signal.SIGCHLD) is died
    finally:
        signal.signal(signal.SIGCHLD, before)
