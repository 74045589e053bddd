"""Train in two processes: uninterrupted, ended by a signal, resumed. Started by test_exact_resume.py.

python two_processes.py PREPARED FOLDER
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from conftest import ROOT  # noqa: F401
from runs import config
from yapf.yapflib import yapf_api

from mmseg_ignite.apis import train

SETTINGS = {'launcher': 'pytorch', 'train_cfg.max_iters': 4}


def in_two(work: Callable[[], object], variables: Callable[[int, int], dict]) -> list[int]:
    """Fork two processes that work together; return their exit statuses, as those of subprocess.

    Args:
        work: what each does.
        variables: from a rank and a free port, the environment variables of a launcher.
    """
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(2):
        if child := os.fork():
            children.append(child)
            continue
        status = 1
        os.environ.update({name: str(value) for name, value in variables(rank, port).items()})
        try:
            work()
            status = 0
        except SystemExit as end:
            status = end.code
        except BaseException as error:
            print(f'{type(error).__name__}: {error}', file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def torchrun(rank: int, port: int) -> dict:
    """Return the variables that torchrun sets."""
    return dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2, MASTER_ADDR='127.0.0.1', MASTER_PORT=port)


def train_in_two(prepared: str, work_dir: Path, *hooks: dict) -> list[int]:
    """Train one network in two processes; return their exit statuses."""
    return in_two(lambda: train(config(prepared, work_dir, SETTINGS, *hooks), resume=True), torchrun)


if __name__ == '__main__':
    torch.set_num_threads(1)
    yapf_api.FormatCode = lambda text, **_: (text, True)
    prepared, folder = sys.argv[1], Path(sys.argv[2])
    ended = dict(type='EndHook', moment='before_train_iter', call=1, number=int(signal.SIGTERM), rank=1)
    statuses = [train_in_two(prepared, folder / 'whole'), train_in_two(prepared, folder / 'run', ended)]
    statuses.append(train_in_two(prepared, folder / 'run'))
    (folder / 'statuses.json').write_text(json.dumps(statuses))
