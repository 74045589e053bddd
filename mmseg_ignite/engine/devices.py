"""Choosing the device that computes."""

import torch
from mmengine.device import get_device

from ..errors import IgniteError


def find_device(name: str | torch.device | None = None) -> torch.device:
    """The device of a name, tried out.

    Args:
        name: e.g. 'cpu', 'cuda:1'. Defaults to None: the best that the machine has.

    Raises:
        IgniteError: no such device here.
    """
    try:
        device = torch.device(name or get_device())
        torch.ones(1, device=device).item()
    except Exception as error:  # RuntimeError, AssertionError, NotImplementedError, ... as the backend likes
        there = ['cpu', *(f'cuda:{i}' for i in range(torch.cuda.device_count()))]
        if torch.backends.mps.is_available():
            there.append('mps')
        raise IgniteError(f'the device {name} cannot be used here; one of {", ".join(there)} was expected.') from error
    return device
