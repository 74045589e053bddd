"""A picture of the training, drawn anew after each validation."""

from pathlib import Path

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS

from ...visualization.curves import draw_curves, read_scalars
from ..compatibility import is_training


@HOOKS.register_module()
class TrainingCurvesHook(Hook):
    """Leave ``curves.png`` in the work dir: total loss, cross-entropy, Dice loss, learning rate, validation scores.

    The figures are those that mmengine logs, of all the work dir's runs, so that a resumed training shows whole.
    Runs after the logger and the validation.
    """

    priority = 'LOWEST'

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        self._draw(runner)

    def after_train(self, runner: Runner) -> None:
        self._draw(runner)

    def _draw(self, runner: Runner) -> None:
        if runner.rank == 0 and is_training(runner):
            draw_curves(read_scalars(runner.work_dir), Path(runner.work_dir) / 'curves.png')
