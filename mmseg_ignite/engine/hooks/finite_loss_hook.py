"""Stopping a training whose loss is not finite."""

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS

from ...errors import IgniteError
from ..late_values import LateFlag
from ..nonfinite_batch import Step, WeightCopies


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stop at the first loss that is NaN or infinite, report the iteration, the learning rate and the ROIs, save the batch.

    The files :mod:`nonfinite_batch_ITER <mmseg_ignite.engine.nonfinite_batch>` in the work dir have what
    :func:`mmseg_ignite.apis.replay` needs to repeat the step.

    On an accelerator the loss of a step is read after the next step was queued, by waiting for the first of the two only, so
    that the device never waits for the host; before a checkpoint or a validation it is read at once.

    Args:
        keep_weights: copy the weights before each step, so that the step can be repeated exactly: the optimizer has already
            spread the NaN when it is found. Takes the memory of the weights once on a CPU and twice on an accelerator, e.g.
            0.03 GB for MiT-B0 and 0.66 GB for B5. Without it only the last checkpoint is left.

    Raises:
        IgniteError: the loss is not finite.
    """

    priority = 'VERY_HIGH'  # before the hook that saves

    def __init__(self, keep_weights: bool = True) -> None:
        self.keep_weights = keep_weights
        self._pending: tuple[LateFlag, Step] | None = None
        self._copies: WeightCopies | None = None
        self._before: dict | None = None

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Copy the weights."""
        if not self.keep_weights:
            return
        if self._copies is None:
            on_host = next(runner.model.parameters()).device.type == 'cpu'
            self._copies = WeightCopies(1 if on_host else 2)  # one per loss that was not read yet
        self._before = self._copies.take(runner.model)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Keep the loss and read the previous one; on a CPU read this one as well."""
        loss = (outputs or {}).get('loss')
        if not isinstance(loss, torch.Tensor):
            return
        self.check()
        rate = next(iter(runner.optim_wrapper.get_lr().values()))[0]
        step = Step(runner, data_batch, outputs, runner.iter + 1, rate, self._before)
        self._pending = LateFlag(torch.isfinite(loss.detach()).all()), step
        if not self.is_late(loss.device):
            self.check()

    @staticmethod
    def is_late(device: torch.device) -> bool:
        """Return whether a loss on this device is read a step late."""
        return device.type != 'cpu'

    def before_val_epoch(self, runner: Runner) -> None:
        """Read the last loss before the weights are scored."""
        self.check()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Read the last loss before the weights are saved."""
        self.check()

    def after_train(self, runner: Runner) -> None:
        """Read the last loss."""
        self.check()

    def check(self) -> None:
        """Read the loss of the last step, if it was not read yet."""
        if self._pending is None:
            return
        (finite, step), self._pending = self._pending, None
        if finite.read():
            return
        try:
            saved = f'see "python tools/replay_batch.py CONFIG {step.save()}"'
        except IgniteError as error:
            saved = f'see these ROIs (the batch was not saved: {str(error).rstrip(".")})'
        raise IgniteError(
            f'the loss is {float(step.outputs["loss"])} at iteration {step.iteration} (learning rate {step.rate:.3g}, ROIs '
            f'{", ".join(step.rois) or "unknown"}), and the training stopped: lower the learning rate, clip gradients '
            f'(optim_wrapper.clip_grad.max_norm=1), or {saved}.'
        )
