"""What the supported versions of mmengine and torch need, and every private field of mmengine that this package uses.

Tested with mmengine 0.10.7 and onedl-mmengine 0.10.12; a test fails if a field is missing.
"""

from collections.abc import Callable

import torch
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.runner import CheckpointLoader, Runner
from mmengine.runner.checkpoint import _get_mmengine_home
from mmengine.visualization.vis_backend import BaseVisBackend

from ..environment import stack_distribution


def apply(safe_globals: list) -> None:
    """Make ``mmseg::`` and ``mmseg_ignite::`` bases known, and let plain mmengine read checkpoints of its own runner.

    mmengine maps the module mmseg to the distribution 'mmsegmentation' only, so that ``_base_ = ['mmseg::...']`` fails with
    onedl-mmsegmentation. mmengine 0.10.7 cannot read the log history in its own checkpoints with torch 2.6 or newer, so
    ``safe_globals`` join torch's list of what ``weights_only=True`` accepts. How mmengine opens checkpoints does not change,
    see :func:`.checkpoints.safe_checkpoints`. Called once, when the package is imported.
    """
    MODULE2PACKAGE['mmseg'] = stack_distribution('mmseg') or 'mmseg'
    MODULE2PACKAGE['mmseg_ignite'] = 'mmseg_ignite'
    torch.serialization.add_safe_globals(safe_globals)


def is_training(runner: Runner) -> bool:
    """Return whether a runner was made for a training, not for a validation or test of its own."""
    return runner._train_loop is not None


def set_last_iteration(runner: Runner, iterations: int) -> None:
    """Change the number of iterations after which an IterBasedTrainLoop ends."""
    runner.train_loop._max_iters = iterations


def visualization_backends(runner: Runner) -> list[BaseVisBackend]:
    """Return the backends that a runner's visualizer writes to."""
    return list(runner.visualizer._vis_backends.values())


def checkpoint_loaders() -> dict[str, Callable]:
    """Return the functions by which mmengine opens checkpoints now, by the regular expression of their prefix."""
    return dict(CheckpointLoader._schemes)


def mmengine_home() -> str:
    """Return mmengine's cache folder, to which the user's own table of models is relative."""
    return _get_mmengine_home()
