"""Optimizer wrappers that never wait for the device, and the one rule for half precision."""

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
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


class Precision(NamedTuple):
    """How a network computes."""

    dtype: torch.dtype  # of autocast; float32 means without it
    scaled: bool  # whether a training must scale its loss


def precision(device: str | torch.device, name: str | None = None) -> Precision:
    """Return the precision of ``--amp`` and ``HalfOptimWrapper``: the rule of training, validation, test and Predictor.

    Args:
        device: that computes.
        name: 'bfloat16', 'float16', or 'fastest': :func:`half_dtype` if :func:`half_is_faster`, else float32. Defaults to
            None: :func:`half_dtype`.

    Raises:
        IgniteError: another name.
    """
    if name not in (None, 'fastest', 'bfloat16', 'float16'):
        raise IgniteError(
            f'the dtype of HalfOptimWrapper is {name!r}; bfloat16, float16 or fastest was expected: correct it.'
        )
    if name == 'fastest':
        dtype = half_dtype(device) if half_is_faster(device) else torch.float32
    else:
        dtype = getattr(torch, name) if name else half_dtype(device)
    return Precision(dtype, scaled=dtype == torch.float16)


def training_dtype(wrapper: object) -> torch.dtype:
    """Return the dtype in which a training with this optimizer wrapper computes."""
    if isinstance(wrapper, HalfOptimWrapper):
        return wrapper.dtype
    if isinstance(wrapper, AmpOptimWrapper):
        device = wrapper.optimizer.param_groups[0]['params'][0].device
        return wrapper.cast_dtype or torch.get_autocast_dtype(device.type)
    return torch.float32


def prediction_dtype(cfg: Mapping, device: torch.device, amp: bool) -> torch.dtype:
    """Return the dtype of predictions with a config: with ``amp`` that of a training with ``--amp``, else float32."""
    name = (cfg.get('optim_wrapper') or {}).get('dtype')
    return precision(device, name).dtype if amp else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return the context in which a network on this device computes in this dtype; float32 is without autocast."""
    half = dtype != torch.float32
    return torch.autocast(device.type, dtype if half else None, enabled=half)


def predict_in(model: nn.Module, dtype: torch.dtype, steps: tuple[str, ...] = ('val_step', 'test_step')) -> None:
    """Make the steps of mmengine's validation and test loops compute in this dtype.

    Args:
        model: without the wrapper of a distributed run.
        dtype: float16, bfloat16, or float32, which removes an earlier setting.
        steps: methods of the model.
    """
    for name in steps:
        if dtype == torch.float32:
            vars(model).pop(name, None)
        else:
            setattr(model, name, functools.partial(_step, model, name, dtype))  # copied with the model


def _step(model: nn.Module, name: str, dtype: torch.dtype, data: object) -> object:
    with autocast(next(model.parameters()).device, dtype):
        return getattr(type(model), name)(model, data)


@OPTIM_WRAPPERS.register_module()
class TissueOptimWrapper(OptimWrapper):
    """mmengine's OptimWrapper that does not read the norm of clipped gradients; arguments and logged values are the same.

    :class:`TissueRunner <mmseg_ignite.engine.runner.TissueRunner>` uses it in place of OptimWrapper.
    """

    def _clip_grad(self) -> None:
        """Clip the gradients; log their norm as a tensor, which the runner's message hub reads later."""
        groups = self.optimizer.param_groups
        found = [p for group in groups for p in group['params'] if p.requires_grad and p.grad is not None]
        norm = self.clip_func(found, **self.clip_grad_kwargs) if found else None
        if norm is not None:  # clip_grad_value_ returns None
            self.message_hub.update_scalar(f'train/{self.grad_name}', norm)


@OPTIM_WRAPPERS.register_module()
class HalfOptimWrapper(TissueOptimWrapper):
    """Automatic mixed precision on any device, see :func:`precision`; validations of the training use it too.

    The loss is scaled dynamically in float16. bfloat16 has the range of float32 and needs no scaling. CUDA does not wait for
    the check of the gradients if the optimizer is fused, as in the default configs.

    Args:
        dtype (str, optional): 'bfloat16', 'float16', or 'fastest': :func:`half_dtype` if :func:`half_is_faster`, else
            float32. Defaults to None: :func:`half_dtype`.
        kwargs: arguments of :class:`mmengine.optim.OptimWrapper`, e.g. ``clip_grad``, ``accumulative_counts``.

    Raises:
        IgniteError: an unknown dtype.
    """

    def __init__(self, dtype: str | None = None, **kwargs) -> None:
        super().__init__(**kwargs)
        self.device = self.optimizer.param_groups[0]['params'][0].device
        self.dtype, scaled = precision(self.device, dtype)
        self.loss_scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)

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
        with super().optim_context(model), autocast(self.device, self.dtype):
            yield
