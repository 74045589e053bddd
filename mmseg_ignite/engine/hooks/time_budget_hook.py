"""Training for a given time instead of a number of iterations."""

import math
import time

import torch
from mmengine.dist import broadcast
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS

from ...errors import IgniteError
from ..compatibility import set_last_iteration

ENDLESS = 10**9
"""Iterations of a loop that this hook ends."""


@HOOKS.register_module()
class TimeBudgetHook(Hook):
    """Train for a given time, with a learning-rate schedule that ends with it.

    The learning rates rise linearly over the first ``warmup`` of the time and then fall to 0, in proportion to
    (1 - share of the rest) ** ``power``. Validations do not count; writing checkpoints does. Requires mmengine's
    IterBasedTrainLoop and no ``param_scheduler``; the last iteration validates and saves as in any training. The number of
    iterations depends on the machine, so such a run is not reproducible bit by bit.

    Args:
        seconds (float): time to train.
        warmup (float): share of the time, 0 to below 1. Defaults to 0.05.
        power (float): exponent of the decay, above 0; 1 is linear. Defaults to 1.

    Raises:
        IgniteError: an argument is out of range, or a scheduler would also set the learning rate.
    """

    priority = 'VERY_HIGH'

    def __init__(self, seconds: float, warmup: float = 0.05, power: float = 1.0) -> None:
        if not (seconds > 0 and 0 <= warmup < 1 and power > 0):
            raise IgniteError(
                f'TimeBudgetHook has seconds={seconds!r}, warmup={warmup!r}, power={power!r}; seconds and power above 0 and '
                'a warmup of 0 to below 1 were expected.'
            )
        self.seconds, self.warmup, self.power = seconds, warmup, power
        self.spent = 0.0
        self._since = 0.0

    def factor(self, share: float) -> float:
        """Learning-rate multiplier at this fraction (0..1) of the budget."""
        if share < self.warmup:
            return share / self.warmup
        return ((1 - min(share, 1)) / (1 - self.warmup)) ** self.power

    def before_train(self, runner: Runner) -> None:
        if runner.param_schedulers:
            raise IgniteError(
                'TimeBudgetHook sets the learning rate, but the config also has a param_scheduler: set '
                'param_scheduler=None.'
            )
        for group in runner.optim_wrapper.param_groups:
            group.setdefault('initial_lr', group['lr'])
        # A resumed run continues the time of the earlier runs.
        self.spent = runner.message_hub.runtime_info.get('training_seconds', 0.0)
        self._since = time.perf_counter()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        now = time.perf_counter()
        own = self.spent + now - self._since
        # All processes of a distributed run follow the clock of the first.
        spent = own if not runner.distributed else _agree(own)
        left = max(self.seconds - spent, 0)
        pace = spent / runner.iter if runner.iter else 0
        for group in runner.optim_wrapper.param_groups:
            # At least a thousandth, so that the first and the last iteration have an effect.
            group['lr'] = group['initial_lr'] * max(self.factor(spent / self.seconds), 1e-3)
        # An estimate, from which the log computes the time left; exactly the next iteration if no time is left for another.
        rest = max(1, math.ceil(left / pace)) if pace else ENDLESS
        set_last_iteration(runner, runner.iter + (1 if left <= pace / 2 else max(rest, 2)))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        now = time.perf_counter()
        self.spent += now - self._since
        self._since = now
        runner.message_hub.update_info('training_seconds', self.spent)

    def before_val_epoch(self, runner: Runner) -> None:
        self.spent += time.perf_counter() - self._since
        runner.message_hub.update_info('training_seconds', self.spent)

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        self._since = time.perf_counter()


def _agree(seconds: float) -> float:
    value = torch.tensor(seconds, dtype=torch.float64)
    broadcast(value, src=0)
    return float(value)
