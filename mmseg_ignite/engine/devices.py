"""Choosing the device to compute on."""

import torch
from mmengine.device import get_device

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
