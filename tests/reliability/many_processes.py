"""Train in two processes started as by Slurm and MPI, and note what each does. For test_many_processes.py."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from forks import in_two
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmseg.registry import HOOKS, TRANSFORMS
from runs import config
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from mmseg_ignite.apis import load_config, test, train
from mmseg_ignite.apis.configuration import running
from mmseg_ignite.cli import run
from mmseg_ignite.engine.distributed import is_main_process

SETTINGS = {
    'custom_hooks': [dict(type='NoteHook')],
    'param_scheduler': [],
    'model.decode_head.dropout_ratio': 0.0,
    'model.decode_head.loss_decode.dice': 0.0,
    'train_dataloader.num_workers': 1,
    'train_dataloader.persistent_workers': True,
    'train_cfg.val_interval': 100,
}
"""What makes two processes equal to one: no dropout, a loss that is a mean over pixels. SGD, as AdamW's first steps have the
size of the learning rate whatever the size of the gradient, and so also where it is 0 but for rounding."""
ALONE = {'train_dataloader.batch_size': 4, 'train_cfg.max_iters': 2}
TOGETHER = {
    'train_dataloader.batch_size': 1, 'train_cfg.max_iters': 4,
    'launcher': 'slurm', 'randomness.diff_rank_seed': True,
}  # fmt: skip


@TRANSFORMS.register_module()
class AnnotateAll:
    """Give every pixel a class, so that the mean over the pixels of two processes is the mean of their means."""

    def __call__(self, sample):
        sample['gt_seg_map'][sample['gt_seg_map'] == 255] = 0
        return sample


@HOOKS.register_module()
class NoteHook(Hook):
    """Write what this process does to a file; keep the statistics of batch normalisation."""

    def before_train(self, runner):
        self.notes = dict(crops=[], reduced=[], main=is_main_process(), seed=runner.train_dataloader.sampler.seed)
        with torch.random.fork_rng(devices=[]):
            self.notes['dropout'] = torch.nn.functional.dropout(torch.ones(64)).tolist()
        self.notes['start'] = float(sum(p.detach().double().abs().sum() for p in runner.model.parameters()))
        if is_model_wrapper(runner.model):
            runner.model.register_comm_hook(None, self._reduce)

    def _reduce(self, state, bucket):
        self.notes['reduced'].append(self.iteration)
        return allreduce_hook(None, bucket)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.iteration = runner.iter
        self.notes['crops'].append([sample.crop for sample in data_batch['data_samples']])
        for module in runner.model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()

    def after_train(self, runner):
        path = Path(runner.work_dir) / f'rank{get_rank()}.json'
        path.write_text(json.dumps(self.notes, default=lambda x: x.tolist() if hasattr(x, 'tolist') else str(x)))


@HOOKS.register_module()
class FailHook(Hook):
    """Raise an exception in the second process."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.rank == 1 and runner.iter == 2:
            raise ValueError('the augmentation is broken')


def equal_config(prepared, work_dir, more):
    cfg = config(prepared, work_dir, SETTINGS | more)
    steps = 4 // cfg.train_dataloader.batch_size // (1 if cfg.launcher == 'none' else 2)
    cfg.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.05), accumulative_counts=steps)
    cfg.model.backbone.drop_path_rate = 0.0
    cfg.train_dataloader.dataset.pipeline.insert(0, dict(type='AnnotateAll'))
    cfg.default_hooks.checkpoint.interval = cfg.train_cfg.max_iters
    return cfg


def slurm(rank, port):
    """Return the variables of a Slurm task on the only machine of a job; those of an outer torchrun must not count."""
    step = dict(SLURM_PROCID=rank, SLURM_LOCALID=rank, SLURM_NTASKS=2, SLURM_NODELIST='here', SLURM_NNODES=1)
    return dict(step, MASTER_PORT=port, RANK=0, WORLD_SIZE=1, LOCAL_RANK=0)


def mpi(rank, port):
    """Return the variables of Open MPI."""
    values = dict(RANK=rank, SIZE=2, LOCAL_RANK=rank, LOCAL_SIZE=2)
    return dict({f'OMPI_COMM_WORLD_{name}': value for name, value in values.items()}, MASTER_PORT=port)


def failing(prepared, work_dir, hook):
    """Return a training with a hook; each process writes its messages to a file."""

    def main():
        sys.stderr = open(work_dir.with_name(f'{work_dir.name}{os.environ["OMPI_COMM_WORLD_RANK"]}.txt'), 'w')
        settings = {'launcher': 'mpi', 'env_cfg.dist_cfg.timeout': 60}
        cfg = config(prepared, work_dir, settings, hook)
        with running(cfg):
            train(cfg)

    return lambda: run(main)


def scoring(prepared, folder, launcher):
    """Return a test of three ROIs in which each process has a folder of its own, as on machines without a common disk."""

    def main():
        own = folder / f'{launcher}{os.environ.get("OMPI_COMM_WORLD_RANK", "")}'
        own.mkdir()
        os.chdir(own)
        cfg = config(prepared, 'work', {'launcher': launcher, 'test_dataloader.dataset.protocol': 'roi-8-1-1'})
        test(cfg, folder / 'two' / 'iter_4.pth', allow_seen_patients=True, report=None)

    return main


def run_all(prepared, folder):
    """Run all trainings and tests; write their exit statuses to ``found.json``."""
    found = dict(equal=in_two(lambda: train(equal_config(prepared, folder / 'two', TOGETHER)), slurm))
    killed = dict(type='EndHook', moment='before_train_iter', call=3, number=int(signal.SIGKILL), rank=1)
    for name, hook in (('killed', killed), ('failed', dict(type='FailHook'))):
        begin = time.monotonic()
        found[name] = in_two(failing(prepared, folder / name, hook), mpi)
        found[f'{name} after'] = time.monotonic() - begin
    found['refused'] = in_two(lambda: run(lambda: load_config('config.py', launcher='mpi')), lambda rank, port: {})
    found['scored'] = in_two(scoring(prepared, folder, 'mpi'), mpi)
    train(equal_config(prepared, folder / 'one', ALONE))  # last: processes forked later would have its loader's workers
    scoring(prepared, folder, 'none')()
    (folder / 'found.json').write_text(json.dumps(found))
