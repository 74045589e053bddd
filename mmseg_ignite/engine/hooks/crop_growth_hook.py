"""Training crops that grow during a training."""

from collections.abc import Sequence
from numbers import Integral, Real

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS

from ...errors import IgniteError
from .time_budget_hook import TimeBudgetHook


@HOOKS.register_module()
class CropGrowthHook(Hook):
    """Start a training with small crops: many cheap steps first, the context of large crops last.

    This is progressive resizing (`Tan & Le 2021, EfficientNetV2 <https://arxiv.org/abs/2104.00298>`_). The hook requires
    :class:`CropStreamSampler <mmseg_ignite.datasets.CropStreamSampler>`; after the last step crops have the size set
    in the data set. In a training by iterations, crop n has the same size in every run, resumed or not. With
    :class:`TimeBudgetHook` sizes follow the clock, and workers apply a change after the batches that they have prefetched.

    The data preprocessor must not pad to a fixed size: ``data_preprocessor=dict(size=None, size_divisor=32)``.

    Args:
        steps (Sequence[tuple[float, int]]): (share, side): until this share of the training, above 0 and below 1, crops are
            ``side`` x ``side`` px.

    Raises:
        IgniteError: the steps are not valid, their shares do not rise, the sampler is another one, or the preprocessor pads
            to a fixed size.

    Example:
        Crops of 128 px for the first half, then of 192 px, and of the data set's size for the last fifth::

            custom_hooks = [*_base_.custom_hooks, dict(type='CropGrowthHook', steps=[(0.5, 128), (0.8, 192)])]
    """

    def __init__(self, steps: Sequence[tuple[float, int]]) -> None:
        self.steps = _checked(steps)

    def before_train(self, runner: Runner) -> None:
        """Set the crop sizes of the sampler."""
        self._sampler = runner.train_dataloader.sampler
        if not hasattr(self._sampler, 'sizes'):
            raise IgniteError(
                f'CropGrowthHook needs a CropStreamSampler, but the training has a {type(self._sampler).__name__}: '
                'remove the hook or change the sampler.'
            )
        model = runner.model.module if hasattr(runner.model, 'module') else runner.model
        if size := getattr(model.data_preprocessor, 'size', None):
            raise IgniteError(
                f'the data preprocessor pads images to {tuple(size)}, which cancels the savings of CropGrowthHook: set '
                'model.data_preprocessor.size=None and size_divisor=32.'
            )
        self._clock = next((hook for hook in runner.hooks if isinstance(hook, TimeBudgetHook)), None)
        if self._clock is None:
            crops = runner.max_iters * runner.train_dataloader.batch_size * self._sampler.world_size
            ends = [round(share * crops) for share, _ in self.steps]
            sides = [*(side for _, side in self.steps), None]
            self._set(list(zip([0, *ends], sides)))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """With a time budget, set the size of the next crops."""
        if self._clock is not None:
            spent = self._clock.spent / self._clock.seconds
            self._set([(0, next((side for share, side in self.steps if spent < share), None))])

    def _set(self, sizes: list[tuple[int, int | None]]) -> None:
        self._sampler.sizes = [(first, (side, side) if side else None) for first, side in sizes]


def _checked(steps: object) -> list[tuple[float, int]]:
    try:
        found = [(share, side) for share, side in steps]
    except (TypeError, ValueError):
        found = []
    shares = [0, *(share for share, _ in found), 1]
    valid = found and all(isinstance(v, Real) for v in shares) and all(a < b for a, b in zip(shares, shares[1:]))
    if not valid or not all(isinstance(side, Integral) and side > 0 for _, side in found):
        raise IgniteError(
            f'steps of CropGrowthHook is {steps!r}; pairs of a rising share of the training, between 0 and 1, and a side in '
            'px were expected, e.g. [(0.5, 128), (0.8, 192)].'
        )
    return found
