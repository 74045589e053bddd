"""Class weights from the training data instead of numbers in a config."""

from mmengine.hooks import Hook
from mmengine.optim import BaseOptimWrapper
from mmengine.runner import Runner
from mmseg.registry import HOOKS

from ...errors import IgniteError
from ...models.losses import TissueLoss


@HOOKS.register_module()
class ClassWeightHook(Hook):
    """Give every :class:`TissueLoss <mmseg_ignite.models.losses.TissueLoss>` that has a ``temperature`` the number of pixels
    of each class in the training ROIs. Without such a loss it does nothing.

    Raises:
        IgniteError: the training data set does not know its pixels (``class_pixels``, as IGNITEDataset has it).
    """

    priority = 'VERY_HIGH'  # before hooks that copy the model, such as EMAHook

    def before_run(self, runner: Runner) -> None:
        losses = [module for module in runner.model.modules() if isinstance(module, TissueLoss) and module.temperature]
        if not losses or not isinstance(runner.optim_wrapper, BaseOptimWrapper):  # which only a training builds
            return
        dataset = runner.train_dataloader.dataset
        if not hasattr(dataset, 'class_pixels'):
            raise IgniteError(
                f'{type(dataset).__name__} does not know how many pixels its classes have, which the temperature of '
                'TissueLoss needs: give the loss its class_weight instead.'
            )
        for loss in losses:
            loss.set_pixels(dataset.class_pixels)
            loss.to(next(runner.model.parameters()).device)
