"""Short trainings of a tiny network that are ended at a chosen moment, and the comparison of their checkpoints."""

import os

import torch
from conftest import small_config
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmseg.registry import HOOKS

from mmseg_ignite.engine import open_checkpoint

ITERATIONS = 7
CLOCKS = ('time', 'data_time', 'memory', 'training_seconds')
TINY = {
    'model.backbone.embed_dims': 8,
    'model.backbone.num_layers': [1, 1, 1, 1],
    'model.decode_head.in_channels': [8, 16, 40, 64],
    'model.decode_head.channels': 16,
}
"""A network with all parts whose step takes a tenth of a second."""


class Killed(BaseException):
    """Ends a run without giving it a chance to save."""


@HOOKS.register_module()
class EndHook(Hook):
    """End the run at the n-th call of a method of its hooks: by an exception like a kill, or by a signal."""

    priority = 'HIGHEST'

    def __init__(self, moment, call, number=None, rank=None):
        self.calls, self.number = call, number
        if rank is None or rank == get_rank():
            setattr(self, moment, self._count)

    def _count(self, *args, **kwargs):
        self.calls -= 1
        if self.calls == 0 and self.number is None:
            raise Killed
        if self.calls == 0:
            os.kill(os.getpid(), self.number)


def config(prepared, work_dir, settings=(), *hooks):
    """A run of 7 iterations that saves every second one and validates every third."""
    options = {'train_cfg.val_interval': 3, 'default_hooks.checkpoint.interval': 2, 'default_hooks.logger.interval': 1}
    cfg = small_config(prepared, work_dir, ITERATIONS, **TINY, **options)
    settings = dict(settings)
    cfg.custom_hooks = [*settings.pop('custom_hooks', cfg.custom_hooks), *hooks]
    cfg.merge_from_dict(settings)
    return cfg


def comparable(work_dir):
    """Return all checkpoints of a work dir by name, without times and folders."""
    found = {}
    for path in work_dir.glob('*.pth'):
        checkpoint = open_checkpoint(path)
        del checkpoint['checksum']
        for key in ('time', 'experiment_name', 'cfg'):
            del checkpoint['meta'][key]
        checkpoint.get('mmseg_ignite', {}).pop('settings', None)
        found[path.name] = checkpoint
    return found


def first_difference(one, other, where=''):
    """Return where two checkpoints differ first, apart from clocks; None if they are equal bit by bit."""
    if type(one) is not type(other):
        return where
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return f'{where}: {sorted(map(str, one.keys() ^ other.keys()))}'
        pairs = [(key, one[key], other[key]) for key in one if str(key).rpartition('/')[2] not in CLOCKS]
    elif isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return where
        pairs = [(number, a, b) for number, (a, b) in enumerate(zip(one, other))]
    elif isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        same = same and torch.equal(*(value.reshape(-1).view(torch.uint8) for value in (one, other)))
        return None if same else where
    else:
        return None if one == other or (one != one and other != other) else f'{where}: {one} and {other}'
    differences = (first_difference(a, b, f'{where}.{key}') for key, a, b in pairs)
    return next((found for found in differences if found is not None), None)


def assert_same_run(one, other):
    """Assert that two work dirs have the same checkpoints."""
    found = comparable(one)
    assert found
    difference = first_difference(found, comparable(other))
    assert difference is None, difference
