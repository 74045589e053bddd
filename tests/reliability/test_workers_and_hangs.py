"""Loader workers and processes that fail, are killed or stop end a run with one sentence."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import DEMO_CONFIG, ROOT, cfg_options, single_error, small_config, small_options, tool
from forks import start_fork
from mmengine.config import Config
from torch.utils.data import DataLoader, Dataset

from mmseg_ignite.apis import load_config, train
from mmseg_ignite.apis.configuration import resolved, running
from mmseg_ignite.cli import run
from mmseg_ignite.datasets.prepared import image_path, read_index
from mmseg_ignite.engine.distributed import prepare_launch, process_errors
from mmseg_ignite.engine.loader_errors import loader_errors
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.labels import MaskError

pytestmark = [
    pytest.mark.usefixtures('one_thread', 'no_figures'),
    pytest.mark.skipif(not hasattr(os, 'fork'), reason='loader workers are forked'),
]


class Unsendable:
    def __reduce__(self):
        raise TypeError('cannot pickle it')


def fail(kind):
    """Let this loader worker fail, or return a sample that cannot be sent."""
    if kind == 'ours':
        raise IgniteError('x.npy cannot be read: prepare the data again.')
    if kind == 'mask':
        raise MaskError('mask-format', 'm.png', 'has no mask')
    if kind == 'missing':
        open('/no/such/file')
    if kind == 'memory':
        raise MemoryError
    if kind == 'status':
        os._exit(3)
    if kind == 'full':  # as with a full /dev/shm, the file of a tensor in shared memory cannot get its size
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    if kind.startswith('SIG'):
        os.kill(os.getpid(), getattr(signal, kind))
    return Unsendable() if kind == 'unsendable' else torch.zeros(100, 100)


class Samples(Dataset):
    def __init__(self, kind):
        self.kind = kind

    def __len__(self):
        return 8

    def __getitem__(self, number):
        return fail(self.kind) if number == 5 else torch.zeros(100, 100)


@pytest.mark.parametrize(
    ('kind', 'sentence'),
    [
        ('ours', r'^x\.npy cannot be read: prepare the data again\.$'),
        ('mask', r'^m\.png has no mask: export the mask again as an 8-bit grayscale or palette PNG, or replace it\.$'),
        ('missing', r"^loader worker \d failed at .+\.py, line \d+ \(FileNotFoundError: .*'/no/such/file'\): correct"),
        ('memory', r'^loader worker \d has no memory left at .*: use fewer workers'),
        ('status', r'^loader worker \(pid \d+\) ended with status 3: num_workers=0'),
        ('full', r'^the shared memory \(/dev/shm\)'),
        ('unsendable', r'^loader worker \(pid \d+\) could not send a batch, .* cannot be pickled'),
        (
            'SIGKILL',
            r'^loader worker \(pid \d+\) was ended by the signal "Killed", as the system does when memory runs',
        ),
        ('SIGSTOP', r'^the workers of a data loader have sent no batch for 2 s \(timeout of the loader\)'),
    ],
)
def test_failed_worker_is_one_sentence(kind, sentence, capfd):
    timeout = 2 if kind == 'SIGSTOP' else 60
    before = multiprocessing.active_children()
    loader = DataLoader(Samples(kind), 2, num_workers=2, timeout=timeout, persistent_workers=True, collate_fn=list)
    with pytest.raises(IgniteError, match=sentence) as raised, loader_errors():
        list(loader)
    assert '\n' not in str(raised.value)
    if kind == 'SIGSTOP':  # Python would wait for a stopped worker when it exits
        assert set(multiprocessing.active_children()) <= set(before)
    del raised, loader
    assert 'Traceback' not in capfd.readouterr().err


def test_other_errors_and_later_loaders_are_unchanged():
    with pytest.raises(KeyError, match='mine'), loader_errors():
        raise KeyError('mine')
    with loader_errors():
        assert len(list(DataLoader(Samples(''), 2, num_workers=1, timeout=20))) == 4


def test_loaders_with_workers_have_a_timeout(prepared):
    options = {'data_root': str(prepared), 'val_dataloader.timeout': 30, 'test_dataloader.num_workers': 0}
    cfg = load_config(DEMO_CONFIG, options)
    assert [cfg[f'{part}_dataloader'].get('timeout') for part in ('train', 'val', 'test')] == [600, 30, None]
    cfg.val_dataloader.num_workers = 0
    assert 'timeout' not in resolved(cfg).val_dataloader
    with pytest.raises(IgniteError, match=r'train_dataloader\.timeout is -1; a finite number of 0 or more'):
        load_config(DEMO_CONFIG, {'train_dataloader.timeout': -1})
    with pytest.raises(IgniteError, match=r'env_cfg\.dist_cfg\.timeout is 0; a number above 0'):
        load_config(DEMO_CONFIG, {'env_cfg.dist_cfg.timeout': 0})


@pytest.fixture(scope='module')
def damaged(release, tmp_path_factory):
    """A prepared data set with a truncated image in each part, and a checkpoint that was trained before."""
    from mmseg_ignite.preparation import prepare

    root = tmp_path_factory.mktemp('damaged')
    prepare(release, root / 'data')
    train(small_config(root / 'data', root / 'work', 1))
    for names in read_index(root / 'data')['splits']['patient-8-1-1'].values():
        for name in names:
            path = image_path(root / 'data', name)
            path.write_bytes(path.read_bytes()[: np.load(path, mmap_mode='r').offset + 20])
    return root


WORKERS = {f'{part}_dataloader.num_workers': 2 for part in ('train', 'val', 'test')}


def test_damaged_array_ends_a_training_with_one_sentence(damaged, tmp_path, capfd):
    cfg = small_config(damaged / 'data', tmp_path, 2, **WORKERS)
    with pytest.raises(IgniteError, match=r'^\S+\.npy cannot be read \(.*\): prepare the data again\.$'), running(cfg):
        train(cfg)
    assert 'Traceback' not in capfd.readouterr().err


def test_damaged_array_ends_a_validation_with_one_sentence(damaged, prepared, tmp_path, capfd):
    options = {**WORKERS, 'train_dataloader.dataset.data_root': str(prepared), 'train_cfg.val_interval': 1}
    cfg = small_config(damaged / 'data', tmp_path, 2, **options)
    with pytest.raises(IgniteError, match=r'^\S+\.npy cannot be read \(.*\): prepare the data again\.$'), running(cfg):
        train(cfg)
    assert 'Traceback' not in capfd.readouterr().err


def test_damaged_array_ends_a_test_with_one_sentence(damaged, tmp_path, capsys):
    options = cfg_options(damaged / 'data', 'test_dataloader.num_workers=2')
    assert tool('test', DEMO_CONFIG, damaged / 'work', '--work-dir', tmp_path, *options) == 2
    assert '.npy cannot be read' in single_error(capsys)
    assert not (tmp_path / 'metrics.json').exists()


def member(rank, size, fault, store, folder):
    """Run a process of a gloo group in which the last process has a fault; write its messages to a file."""
    sys.stderr = open(folder / f'{rank}.txt', 'w', buffering=1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(store.port), TORCHELASTIC_USE_AGENT_STORE='True')
    cfg = Config(dict(launcher='pytorch', model=dict(), env_cfg=dict(dist_cfg=dict(timeout=3))))

    def work():
        with process_errors(cfg):
            prepare_launch(cfg)
            torch.distributed.barrier()
            if rank == size - 1:
                fail(fault)
            torch.distributed.barrier()

    run(work)


@pytest.mark.parametrize(
    ('fault', 'sentence'),
    [
        ('SIGSTOP', 'error: a process of the distributed run has not answered for 3 s (env_cfg.dist_cfg.timeout)'),
        ('SIGKILL', 'error: another process of the distributed run ended without an error message'),
        ('ours', 'error: x.npy cannot be read'),
    ],
)
def test_processes_that_wait_in_vain_end_and_one_of_them_says_why(fault, sentence, tmp_path):
    """The store runs in this process, as torchrun's does."""
    store = torch.distributed.TCPStore('127.0.0.1', 0, None, True, wait_for_workers=False)
    context = multiprocessing.get_context('fork')
    group = [context.Process(target=member, args=(rank, 3, fault, store, tmp_path)) for rank in range(3)]
    for process in group:
        process.start()
    for process in group[:2]:
        process.join(30)
    group[2].kill()
    group[2].join()
    assert [process.exitcode for process in group[:2]] == [2, 2]
    messages = [path.read_text() for path in sorted(tmp_path.glob('*.txt'))]
    assert ''.join(messages).count('error: ') == 1 and sentence in ''.join(messages)
    assert 'Traceback' not in ''.join(messages)


TRAINING = """
import os, signal, sys, time
from pathlib import Path
from mmengine.hooks import Hook
from mmseg.registry import HOOKS
from mmseg_ignite.apis import load_config, train
from mmseg_ignite.apis.configuration import running
from mmseg_ignite.cli import run

@HOOKS.register_module()
class StoppedHook(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 1 and runner.rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)

def main():
    cfg = load_config(sys.argv[1], eval(sys.argv[2]), sys.argv[3], 'pytorch')
    cfg.custom_hooks = [dict(type='StoppedHook')]
    folder = Path(sys.argv[3])
    folder.joinpath('ready' + os.environ['RANK']).touch()
    while len(list(folder.glob('ready*'))) < 2:
        time.sleep(0.05)
    with running(cfg):
        train(cfg)

run(main)
"""


def test_training_with_a_stopped_process_ends_with_one_sentence(prepared, tmp_path):
    """From start to exit of the interpreter that waits, with the gradients exchanged by gloo."""
    store = torch.distributed.TCPStore('127.0.0.1', 0, None, True, wait_for_workers=False)
    options = {**small_options(prepared, 50), 'env_cfg.dist_cfg.timeout': 10}
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    environment |= dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(store.port), TORCHELASTIC_USE_AGENT_STORE='True')
    command = [sys.executable, '-c', TRAINING, str(DEMO_CONFIG), repr(options), str(tmp_path)]

    def stopped():
        os.environ.update(environment, RANK='1', LOCAL_RANK='1', WORLD_SIZE='2')
        sys.argv = command[2:]
        exec(TRAINING, {})

    other = start_fork(stopped, tmp_path / 'stopped.txt')
    own = environment | dict(RANK='0', LOCAL_RANK='0', WORLD_SIZE='2')
    waiting = subprocess.Popen(command, env=own, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        messages = waiting.communicate(timeout=120)[1]
    finally:
        waiting.kill()
        other.kill()
        other.join()
    assert waiting.returncode == 2, messages
    assert messages.count('error: ') == 1 and 'Traceback' not in messages, messages
    assert 'has not answered for 10 s (env_cfg.dist_cfg.timeout)' in messages
