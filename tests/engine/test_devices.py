"""Choosing the device."""

import pytest
import torch

from mmseg_ignite.engine.devices import find_device
from mmseg_ignite.errors import IgniteError


@pytest.mark.parametrize('name', ['gpu', 'cuda:99', 'cpu:x', 'meta', ' '])
def test_unusable_device_is_refused(name):
    with pytest.raises(IgniteError, match='cpu.* was expected'):
        find_device(name)


def test_usable_devices():
    assert find_device('cpu') == find_device(torch.device('cpu')) == torch.device('cpu')
    torch.ones(1, device=find_device())
