"""Mixed precision in the half-precision type that suits the device."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmseg.registry import OPTIM_WRAPPERS
from torch import Tensor, nn

from ..errors import IgniteError


def half_dtype(device: str | torch.device) -> torch.dtype:
    """Return bfloat16, which needs no loss scaling, if the device supports it (CPUs, NVIDIA since Ampere), else float16."""
    device = torch.device(device)
    if device.type == 'cuda' and torch.cuda.get_device_capability(device) < (8, 0):
        return torch.float16
    return torch.bfloat16


def half_is_faster(device: str | torch.device) -> bool:
    """Return whether the device computes in :func:`half_dtype`; a CPU without AVX512-BF16 or AMX only emulates it."""
    if torch.device(device).type != 'cpu':
        return True
    return any(getattr(torch.cpu, f'_is_{what}_supported', bool)() for what in ('avx512_bf16', 'amx_tile'))


def use_half_precision(model: nn.Module) -> None:
    """Make ``model.test_step``, which mmengine's validation and test loops call, run under autocast in :func:`half_dtype`."""
    device, predict = next(model.parameters()).device, model.test_step

    def test_step(data: object) -> object:
        with torch.autocast(device.type, half_dtype(device)):
            return predict(data)

    model.test_step = test_step


@OPTIM_WRAPPERS.register_module()
class HalfOptimWrapper(OptimWrapper):
    """Automatic mixed precision on any device, in :func:`half_dtype` of the parameters' device.

    The loss is scaled dynamically in float16. bfloat16 has the range of float32 and needs no scaling, so CUDA does not wait
    for a check of the gradients.

    Args:
        dtype (str, optional): 'bfloat16', 'float16', or 'fastest': :func:`half_dtype` if :func:`half_is_faster`, else
            float32. Defaults to None: :func:`half_dtype`.
        kwargs: arguments of :class:`mmengine.optim.OptimWrapper`, e.g. ``clip_grad``, ``accumulative_counts``.

    Raises:
        IgniteError: an unknown dtype.
    """

    def __init__(self, dtype: str | None = None, **kwargs) -> None:
        if dtype not in (None, 'fastest', 'bfloat16', 'float16'):
            raise IgniteError(
                f'the dtype of HalfOptimWrapper is {dtype!r}; bfloat16, float16 or fastest was expected: correct it.'
            )
        super().__init__(**kwargs)
        self.device = self.optimizer.param_groups[0]['params'][0].device
        if dtype == 'fastest':
            self.dtype = half_dtype(self.device) if half_is_faster(self.device) else torch.float32
        else:
            self.dtype = getattr(torch, dtype) if dtype else half_dtype(self.device)
        self.loss_scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def backward(self, loss: Tensor, **kwargs) -> None:
        """Compute the gradients of the scaled loss."""
        super().backward(self.loss_scaler.scale(loss), **kwargs)

    def step(self, **kwargs) -> None:
        """Update the parameters, unless a gradient overflowed."""
        if self.clip_grad_kwargs:
            self.loss_scaler.unscale_(self.optimizer)
            self._clip_grad()
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update()

    def state_dict(self) -> dict:
        """Return the state of the optimizer and, as ``loss_scaler``, of the scaler."""
        return {**super().state_dict(), 'loss_scaler': self.loss_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Load the state of this or another wrapper, since a run may be resumed on another device."""
        state = dict(state_dict)
        scaler = state.pop('loss_scaler', None)
        if scaler and self.loss_scaler.is_enabled():
            self.loss_scaler.load_state_dict(scaler)
        super().load_state_dict(state)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run the forward pass under autocast."""
        half = self.dtype != torch.float32
        precision = torch.autocast(self.device.type, self.dtype if half else None, enabled=half)
        with super().optim_context(model), precision:
            yield
