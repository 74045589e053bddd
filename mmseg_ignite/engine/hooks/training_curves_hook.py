"""A plot of the training, updated after each validation."""

from pathlib import Path

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS

from ...visualization.curves import draw_curves, read_scalars
from ..compatibility import is_training


@HOOKS.register_module()
class TrainingCurvesHook(Hook):
    """Plot total loss, cross-entropy, Dice loss, learning rate and validation scores to ``curves.png`` in the work dir.

    The values are those that mmengine logged in all runs of the work dir, so a resumed training is plotted as one. The hook
    runs after the logger and the validation.
    """

    priority = 'LOWEST'

    def after_train(self, runner: Runner) -> None:
        """Plot what was logged so far."""
        if runner.rank == 0 and is_training(runner):
            draw_curves(read_scalars(runner.work_dir), Path(runner.work_dir) / 'curves.png')

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Plot what was logged so far."""
        self.after_train(runner)
