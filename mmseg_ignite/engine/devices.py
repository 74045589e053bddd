"""Choosing the device to compute on, and storing weights as it reads them."""

import torch
from mmengine.device import get_device
from torch import Tensor, nn

from ..errors import IgniteError


def find_device(name: str | torch.device | None = None) -> torch.device:
    """Return a device after trying it.

    Args:
        name: e.g. 'cpu', 'cuda:1'. Defaults to None: the best device of the machine.

    Raises:
        IgniteError: there is no such device.
    """
    try:
        device = torch.device(name or get_device())
        torch.ones(1, device=device).item()
    except Exception as error:  # RuntimeError, AssertionError, NotImplementedError, ... depending on the backend
        known = ['cpu', *(f'cuda:{i}' for i in range(torch.cuda.device_count()))]
        if torch.backends.mps.is_available():
            known.append('mps')
        raise IgniteError(f'the device {name} cannot be used; one of {", ".join(known)} was expected.') from error
    return device


def to_device(model: nn.Module, device: str | torch.device) -> nn.Module:
    """Move a model to a device, for CUDA in :func:`channels_last`; return it.

    On a CPU the weights stay as they are: results are the same, but random initial values would be drawn in another order.
    """
    model = model.to(device)
    if torch.device(device).type == 'cuda':
        channels_last(model)
    return model


def channels_last(model: nn.Module) -> None:
    """Store the weights of convolutions with their channels last, as the maps are, so that cuDNN need not reorder them.

    Values, names and shapes stay, and checkpoints do not differ.
    """
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def stored_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Return a value on the device and with the strides of a parameter of its shape, as fused optimizers require."""
    if value.device == parameter.device and value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
