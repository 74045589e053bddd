"""Choosing checkpoints by a score that one lucky validation does not decide."""

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
    """Add ``SCORE_smoothed``, the running exponential mean of a validation score, to what the validation found.

    Few validation ROIs make their scores jump. mmengine's own hooks take the smoothed one like any other:
    ``default_hooks.checkpoint.save_best='mIoU_smoothed'`` and
    ``custom_hooks=[..., dict(type='EarlyStoppingHook', monitor='mIoU_smoothed', rule='greater', patience=5)]``.
    It is logged with the others, and a resumed training goes on with it. A score that is NaN or infinite (a validation
    without an annotated pixel) is left out of the mean, with one warning a run; the smoothed score is then the mean of the
    validations before, and NaN if there are none.

    Args:
        score (str): Which score. Defaults to 'mIoU', the mean over the classes present in the ground truth.
        weight (float): Of the newest validation, above 0, at most 1 (no smoothing). The mean is corrected for its
            start as Adam's are, so the first smoothed score is the first score. Defaults to 0.5.

    Raises:
        IgniteError: another weight, or a validation without that score.
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
                f'ScoreSmoothingHook looks for {self.score}, but the validation gave {", ".join(metrics or {}) or "none"}: '
                'give it one of these as score.'
            )
        if not is_training(runner):  # a validation of its own has no history
            return
        key = f'{self.score}_smoothed'
        # In the message hub, which mmengine stores in checkpoints.
        total, weight = runner.message_hub.runtime_info.get(key, (0.0, 0.0))
        if not math.isfinite(total):  # stored by a version that added such scores
            total, weight = 0.0, 0.0
        if math.isfinite(metrics[self.score]):
            total = (1 - self.weight) * total + self.weight * metrics[self.score]
            weight = (1 - self.weight) * weight + self.weight
            runner.message_hub.update_info(key, (total, weight))
        elif not self._warned:
            print_log(
                f'{self.score} of this validation is {metrics[self.score]}: {key} leaves such validations out.',
                'current',
                logging.WARNING,
            )
            self._warned = True
        metrics[key] = total / weight if weight else math.nan
