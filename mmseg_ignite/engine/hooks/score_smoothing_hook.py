"""Selecting checkpoints by a smoothed score."""

import logging
import math

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmseg.registry import HOOKS

from ...errors import IgniteError
from ..compatibility import is_training


@HOOKS.register_module()
class ScoreSmoothingHook(Hook):
    """Add ``SCORE_smoothed``, the exponential moving average of a validation score, to the scores of a validation.

    With few validation ROIs scores fluctuate. mmengine's hooks use the smoothed score like any other:
    ``default_hooks.checkpoint.save_best='mIoU_smoothed'`` and
    ``custom_hooks=[..., dict(type='EarlyStoppingHook', monitor='mIoU_smoothed', rule='greater', patience=5)]``.
    It is logged with the other scores and continued when a training is resumed. A score that is NaN or infinite (a validation
    without annotated pixels) is skipped, with one warning per run; the smoothed score then equals that of the previous
    validations, or NaN if there are none.

    Args:
        score (str): Name of the score. Defaults to 'mIoU', the mean over the classes present in the ground truth.
        weight (float): Weight of the latest validation, above 0, at most 1 (no smoothing). The average is bias-corrected as
            in Adam, so the first smoothed score is the first score. Defaults to 0.5.

    Raises:
        IgniteError: the weight is out of range, or a validation does not give the score.
    """

    priority = 'HIGHEST'  # before the hooks that log and compare the scores

    def __init__(self, score: str = 'mIoU', weight: float = 0.5) -> None:
        if not 0 < weight <= 1:
            raise IgniteError(f'the weight of ScoreSmoothingHook is {weight!r}; above 0 and at most 1 was expected.')
        self.score, self.weight = score, weight
        self._warned = False

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        if self.score not in (metrics or {}):
            raise IgniteError(
                f'ScoreSmoothingHook needs {self.score}, but the validation gives {", ".join(metrics or {}) or "none"}: set '
                'its score to one of these.'
            )
        if not is_training(runner):  # a single validation has no history
            return
        key = f'{self.score}_smoothed'
        # mmengine stores the message hub in checkpoints.
        total, weight = runner.message_hub.runtime_info.get(key, (0.0, 0.0))
        if not math.isfinite(total):  # stored by an earlier version that averaged such scores
            total, weight = 0.0, 0.0
        if math.isfinite(metrics[self.score]):
            total = (1 - self.weight) * total + self.weight * metrics[self.score]
            weight = (1 - self.weight) * weight + self.weight
            runner.message_hub.update_info(key, (total, weight))
        elif not self._warned:
            print_log(
                f'{self.score} of this validation is {metrics[self.score]}: {key} skips such validations.',
                'current',
                logging.WARNING,
            )
            self._warned = True
        metrics[key] = total / weight if weight else math.nan
