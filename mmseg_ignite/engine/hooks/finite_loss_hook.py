"""Stopping a training whose loss is not finite."""

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS

from ...errors import IgniteError


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stop at the first loss that is NaN or infinite, and report the iteration, the learning rate and the ROIs of the batch.

    On an accelerator the loss of a step is read after the next step was queued, so that the device never waits for the host;
    before a checkpoint or a validation it is read at once.

    Raises:
        IgniteError: the loss is not finite.
    """

    priority = 'VERY_HIGH'  # before the hook that saves

    def __init__(self) -> None:
        self._pending: tuple | None = None

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Keep the loss and read the previous one; on a CPU read this one as well."""
        loss = (outputs or {}).get('loss')
        if not isinstance(loss, torch.Tensor):
            return
        self._check()
        rate = runner.optim_wrapper.get_lr()
        self._pending = (
            torch.isfinite(loss.detach()).all(),
            dict(
                loss=loss.detach(), iteration=runner.iter + 1, rate=next(iter(rate.values()))[0], rois=_rois(data_batch)
            ),
        )
        if loss.device.type == 'cpu':
            self._check()

    def before_val_epoch(self, runner: Runner) -> None:
        """Read the last loss before the weights are scored."""
        self._check()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Read the last loss before the weights are saved."""
        self._check()

    def after_train(self, runner: Runner) -> None:
        """Read the last loss."""
        self._check()

    def _check(self) -> None:
        if self._pending is None:
            return
        (finite, found), self._pending = self._pending, None
        if not bool(finite):
            raise IgniteError(
                f'the loss is {float(found["loss"])} at iteration {found["iteration"]} (learning rate {found["rate"]:.3g}, '
                f'ROIs {", ".join(found["rois"]) or "unknown"}), and the training stopped: lower the learning rate, clip '
                'gradients (optim_wrapper.clip_grad.max_norm=1), or check these ROIs.'
            )


def _rois(batch: dict | None) -> list[str]:
    """Return the unique names of the ROIs of a batch."""
    samples = batch.get('data_samples') if isinstance(batch, dict) else None
    return list(dict.fromkeys(str(sample.get('roi')) for sample in samples or () if sample.get('roi')))
