"""Starting several processes on machines with and without CUDA."""

import atexit
import gc
import os

import torch
from mmengine.config import Config


def prepare_launch(cfg: Config) -> None:
    """Make a distributed run possible without CUDA, and end it cleanly.

    mmengine always selects a CUDA device, and SyncBN requires CUDA, so without CUDA the gloo group is started here and SyncBN
    becomes BN (statistics of each process's own batch).
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
    """Stop the threads of the group: a thread that still has a tensor when the interpreter exits aborts the process.

    Collect the runner's reference cycles, too, which keep the wrapped model and thereby the group alive.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        gc.collect()


def _replace_sync_bn(node: object) -> None:
    if isinstance(node, dict):
        if node.get('type') == 'SyncBN':
            node['type'] = 'BN'
        node = list(node.values())
    for child in node if isinstance(node, (list, tuple)) else ():
        _replace_sync_bn(child)


def is_main_process() -> bool:
    """Return whether this process prints; valid before the process group exists."""
    return int(os.environ.get('RANK', os.environ.get('SLURM_PROCID', 0))) == 0
