"""Mixed precision in the half type that suits the device."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmseg.registry import OPTIM_WRAPPERS
from torch import Tensor, nn

from ..errors import IgniteError


def half_dtype(device: 'str | torch.device') -> torch.dtype:
    """bfloat16, which needs no loss scaling, where the device computes in it (CPUs, NVIDIA since Ampere); else float16."""
    device = torch.device(device)
    if device.type == 'cuda' and torch.cuda.get_device_capability(device) < (8, 0):
        return torch.float16
    return torch.bfloat16


@OPTIM_WRAPPERS.register_module()
class HalfOptimWrapper(OptimWrapper):
    """mmengine's AmpOptimWrapper for any device: automatic mixed precision in :func:`half_dtype` of the parameters' device.

    The loss is scaled dynamically in float16, and not at all in bfloat16, which has float32's range and so spares CUDA the
    wait for the check of the gradients.

    Args:
        dtype (str, optional): 'bfloat16' or 'float16' instead. Defaults to None.
        kwargs: those of :class:`mmengine.optim.OptimWrapper`, e.g. ``clip_grad``, ``accumulative_counts``.

    Raises:
        IgniteError: another dtype.
    """

    def __init__(self, dtype: 'str | None' = None, **kwargs) -> None:
        if dtype not in (None, 'bfloat16', 'float16'):
            raise IgniteError(
                f'the dtype of HalfOptimWrapper is {dtype!r}; bfloat16 or float16 was expected: correct it.'
            )
        super().__init__(**kwargs)
        self.device = self.optimizer.param_groups[0]['params'][0].device
        self.dtype = half_dtype(self.device) if dtype is None else getattr(torch, dtype)
        self.loss_scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def backward(self, loss: Tensor, **kwargs) -> None:
        """Gradients of the scaled loss."""
        super().backward(self.loss_scaler.scale(loss), **kwargs)

    def step(self, **kwargs) -> None:
        """Update the parameters, unless a gradient overflowed."""
        if self.clip_grad_kwargs:
            self.loss_scaler.unscale_(self.optimizer)
            self._clip_grad()
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update()

    def state_dict(self) -> dict:
        """The optimizer's and, under ``loss_scaler``, the scaler's."""
        return {**super().state_dict(), 'loss_scaler': self.loss_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Of this wrapper or of another: a run may be resumed on another device."""
        state = dict(state_dict)
        scaler = state.pop('loss_scaler', None)
        if scaler and self.loss_scaler.is_enabled():
            self.loss_scaler.load_state_dict(scaler)
        super().load_state_dict(state)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast the forward pass."""
        with super().optim_context(model), torch.autocast(self.device.type, dtype=self.dtype):
            yield
