"""Starting several processes on machines with and without CUDA."""

import atexit
import gc
import os

import torch
from mmengine.config import Config, ConfigDict


def prepare_launch(cfg: Config) -> None:
    """Make a distributed run possible without CUDA, and see to its orderly end.

    mmengine's own start-up selects a CUDA device unasked, and SyncBN exists on CUDA only, so the gloo group is
    started here and SyncBN becomes BN (statistics of each process's own batch).
    """
    if cfg.get('launcher', 'none') == 'none':
        return
    atexit.register(_end_group)
    if torch.cuda.is_available():
        return
    if cfg.launcher == 'pytorch' and not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    cfg.setdefault('env_cfg', {})['dist_cfg'] = dict(backend='gloo')
    cfg.setdefault(
        'model_wrapper_cfg', dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
    )
    _replace_sync_bn(cfg.model)


def _end_group() -> None:
    """Stop the group's threads: one that still holds a tensor when the interpreter ends aborts the process, its work done.

    The runner's reference cycles keep the wrapped model and with it the group alive, so these are collected too.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        gc.collect()


def _replace_sync_bn(node: object) -> None:
    if isinstance(node, (dict, ConfigDict)):
        if node.get('type') == 'SyncBN':
            node['type'] = 'BN'
        for child in node.values():
            _replace_sync_bn(child)
    elif isinstance(node, (list, tuple)):
        for child in node:
            _replace_sync_bn(child)


def is_main_process() -> bool:
    """Whether this is the process that prints; valid before the process group exists."""
    return int(os.environ.get('RANK', os.environ.get('SLURM_PROCID', 0))) == 0
