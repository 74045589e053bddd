"""What the supported versions of mmengine and torch need, and every private field of theirs that this package uses.

Tested with mmengine 0.10.7 and onedl-mmengine 0.10.12; a test fails if a field is missing.
"""

from collections.abc import Callable

import torch
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.logging import MessageHub
from mmengine.runner import CheckpointLoader, Runner
from mmengine.runner.checkpoint import _get_mmengine_home
from mmengine.visualization.vis_backend import BaseVisBackend

from ..environment import stack_distribution


def apply() -> None:
    """Make ``mmseg::`` and ``mmseg_ignite::`` bases known.

    mmengine maps the module mmseg to the distribution 'mmsegmentation' only, so that ``_base_ = ['mmseg::...']`` fails with
    onedl-mmsegmentation. Called once, when the package is imported.
    """
    MODULE2PACKAGE['mmseg'] = stack_distribution('mmseg') or 'mmseg'
    MODULE2PACKAGE['mmseg_ignite'] = 'mmseg_ignite'


def is_training(runner: Runner) -> bool:
    """Return whether a runner was made for a training, not for a validation or test of its own."""
    return runner._train_loop is not None


def set_last_iteration(runner: Runner, iterations: int) -> None:
    """Change the number of iterations after which an IterBasedTrainLoop ends."""
    runner.train_loop._max_iters = iterations


def set_position(runner: Runner, iteration: int, epoch: int) -> None:
    """Set the numbers of iterations and epochs that a training has done."""
    runner.train_loop._iter, runner.train_loop._epoch = iteration, epoch


def accumulation_steps(wrapper: object) -> int:
    """Return the number of iterations whose gradients an optimizer wrapper adds up before a step."""
    return getattr(wrapper, '_accumulative_counts', 1)


def mark_resumed(hub: MessageHub, name: str) -> None:
    """Mark an entry of a message hub as one that checkpoints keep."""
    hub._resumed_keys[name] = True


def visualization_backends(runner: Runner) -> list[BaseVisBackend]:
    """Return the backends that a runner's visualizer writes to."""
    return list(runner.visualizer._vis_backends.values())


def checkpoint_loaders() -> dict[str, Callable]:
    """Return the functions by which mmengine opens checkpoints now, by the regular expression of their prefix."""
    return dict(CheckpointLoader._schemes)


def mmengine_home() -> str:
    """Return mmengine's cache folder, to which the user's own table of models is relative."""
    return _get_mmengine_home()


def process_store() -> torch.distributed.Store:
    """Return the key-value store that the processes of a distributed run share."""
    return torch.distributed.distributed_c10d._get_default_store()
