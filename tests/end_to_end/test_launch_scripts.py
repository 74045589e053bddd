"""tools/dist_train.sh and slurm_train.sh start processes that train together; errors are one sentence with the usage."""

import os
import socket
import subprocess
import sys

import pytest
from conftest import DEMO_CONFIG, ROOT, cfg_options

from mmseg_ignite.engine import open_checkpoint

SRUN = """#!/usr/bin/env bash
# Start the tasks of a job on this machine, as srun does.
while [[ $1 == -* ]]; do
    echo "$1" >> "$0.log"
    case $1 in --ntasks=*) tasks=${1#*=} ;; esac
    shift
done
for ((task = 0; task < tasks; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=$tasks SLURM_NNODES=1 SLURM_NODELIST=here "$@" &
    started+=($!)
done
for process in "${started[@]}"; do wait "$process" || status=$?; done
exit ${status:-0}
"""


CONFIG = f"""
# mmengine lays out the config for seconds.
setattr(__import__('yapf.yapflib.yapf_api', fromlist=['FormatCode']), 'FormatCode', lambda text, **_: (text, True))
_base_ = {str(DEMO_CONFIG)!r}
custom_hooks = []
model = dict(
    backbone=dict(embed_dims=8, num_layers=[1, 1, 1, 1]), decode_head=dict(in_channels=[8, 16, 40, 64], channels=16))
"""


def start(name, *arguments, **variables):
    """Start ``bash tools/NAME ARGUMENTS``."""
    environment = {**os.environ, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    command = ['bash', ROOT / 'tools' / name, *map(str, arguments)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, env={**environment, **variables}, **pipes)


def test_two_machines_train_and_slurm_continues(prepared, tmp_path):
    """Two machines of one process each, on localhost; then two tasks of a job continue on one machine."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    config = tmp_path / 'tiny.py'
    config.write_text(CONFIG)
    (tmp_path / 'srun').write_text(SRUN)
    (tmp_path / 'srun').chmod(0o755)
    where = dict(NNODES='2', MASTER_ADDR='127.0.0.1', PORT=port)
    work = ['--work-dir', tmp_path / 'work', '--resume']
    machines = [
        start('dist_train.sh', config, 1, *work, *cfg_options(prepared), NODE_RANK=str(rank), **where)
        for rank in range(2)
    ]
    messages = [machine.communicate(timeout=300) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], messages
    assert 'checkpoints, logs' in messages[0][0] and 'checkpoints, logs' not in messages[1][0]
    path = dict(
        PATH=f'{tmp_path}{os.pathsep}{os.environ["PATH"]}', GPUS='2', SRUN_ARGS='--qos=high --mem=1G', MASTER_PORT=port
    )
    job = start('slurm_train.sh', 'gpu', 'b0', config, *work, *cfg_options(prepared, iterations=4), **path)
    output, errors = job.communicate(timeout=300)
    assert job.returncode == 0, errors
    assert output.count('resumed from') == 1 and 'not equal' not in output + errors, output + errors
    assert open_checkpoint(tmp_path / 'work' / 'iter_4.pth')['mmseg_ignite']['processes'] == 2
    options = (tmp_path / 'srun.log').read_text().split()
    assert {'--partition=gpu', '--gres=gpu:2', '--ntasks-per-node=2', '--cpus-per-task=5', '--mem=1G'} < set(options)


@pytest.mark.parametrize(
    ('name', 'arguments', 'variables', 'sentence'),
    [
        ('dist_train.sh', ['c.py'], {}, 'dist_train.sh got 1 arguments; a config and the GPUs of each machine'),
        ('dist_train.sh', ['c.py', 'two'], {}, "GPUS is 'two'; a number was expected"),
        ('dist_train.sh', ['c.py', '0'], {}, 'GPUS is 0; at least 1 was expected'),
        ('dist_train.sh', ['c.py', '2'], dict(NNODES='2'), 'NNODES is 2, but MASTER_ADDR'),
        ('dist_train.sh', ['c.py', '2'], dict(NODE_RANK='1'), 'NODE_RANK is 1; 0 to NNODES - 1'),
        ('dist_test.sh', ['c.py', '2'], {}, 'dist_test.sh got 2 arguments; a config, a checkpoint and'),
        ('slurm_train.sh', ['gpu', 'name'], {}, 'slurm_train.sh got 2 arguments; a partition'),
        (
            'slurm_train.sh',
            ['p', 'n', 'c'],
            dict(GPUS='6', GPUS_PER_NODE='4'),
            'GPUS is 6; a multiple of GPUS_PER_NODE, 4,',
        ),
        ('slurm_train.sh', ['p', 'n', 'c'], dict(PATH='/usr/bin:/bin'), 'there is no srun on this machine'),
    ],
)
def test_wrong_calls_are_one_sentence_with_the_usage(name, arguments, variables, sentence):
    process = start(name, *arguments, **variables)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and not output
    assert errors.startswith(f'error: {sentence}') and errors.count('\n') == 1
    assert 'usage: [' in errors and f'{name} ' in errors
