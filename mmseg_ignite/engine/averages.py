"""The exponential moving average of the weights in few operations."""

import torch
from mmengine.model import ExponentialMovingAverage
from mmseg.registry import MODELS
from torch import nn


@MODELS.register_module()
class ForeachEMA(ExponentialMovingAverage):
    """mmengine's ExponentialMovingAverage that updates all tensors at once and never waits for the device.

    Arguments, values and state are the same, so either continues what the other has begun. mmengine launches two kernels for
    each tensor and reads the number of updates from the device twice in each. Parameters that are not trained are not
    copied: model and average share them.

    Example:
        ``custom_hooks = [dict(type='EMAHook', ema_type='ForeachEMA', momentum=0.001, update_buffers=True)]``
    """

    _updates: int | None = None  # the value of ``steps``, which is on the device; None: to be read

    def __init__(self, model: nn.Module, *args: object, **kwargs: object) -> None:
        frozen = [not parameter.requires_grad for parameter in model.parameters()]
        super().__init__(model, *args, **kwargs)
        for own, source, is_frozen in zip(self.module.parameters(), model.parameters(), frozen):
            if is_frozen and own.device == source.device:
                own.data = source.data
        if self.update_buffers:
            self.avg_parameters = self.module.state_dict()

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Add the weights of the model to the averages; copy them in the first update."""
        if self._updates is None:
            self._updates = int(self.steps)
        sources = model.state_dict() if self.update_buffers else dict(model.named_parameters())
        pairs = [(average.data, sources[name].data) for name, average in self.avg_parameters.items()]
        pairs = [(average, source) for average, source in pairs if average.data_ptr() != source.data_ptr()]
        if self._updates == 0:
            _copy(pairs)
        elif self._updates % self.interval == 0:
            pairs = [(average, source.to(average.device)) for average, source in pairs if average.is_floating_point()]
            for averages, values in _by_type(pairs):
                torch._foreach_lerp_(averages, values, self.momentum)
        if not self.update_buffers:
            _copy(list(zip(self.module.buffers(), model.buffers())))
        self.steps += 1
        self._updates += 1

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._updates = None


def _copy(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for targets, sources in _by_type(pairs):
        torch._foreach_copy_(targets, sources)


def _by_type(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> list[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """Return the pairs as (targets, sources), one for each type and device: others take the slow path."""
    groups: dict[tuple, tuple[list, list]] = {}
    for target, source in pairs:
        targets, sources = groups.setdefault((target.dtype, target.device, source.dtype), ([], []))
        targets.append(target)
        sources.append(source)
    return list(groups.values())
