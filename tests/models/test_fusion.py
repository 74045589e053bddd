"""Convolution and activation in one kernel compared with both in turn."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmseg_ignite.models import fusion
from mmseg_ignite.models.fusion import convolve_and_activate

pytestmark = pytest.mark.usefixtures('one_thread')

ACTIVATIONS = [m.eval() for m in (nn.GELU(), nn.ReLU(), nn.ReLU(inplace=True), nn.GELU('tanh'), nn.SiLU())]


@pytest.mark.parametrize('activation', ACTIVATIONS, ids=str)
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize(('padding', 'depthwise'), [(1, True), (0, False)])
def test_result_equals_two_operations(activation, bias, padding, depthwise):
    groups, kernel = (24, 3) if depthwise else (1, 1)
    x = torch.randn(3, 24, 17, 9).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(24, 24 // groups, kernel, kernel)
    bias = torch.randn(24) if bias else None
    with torch.no_grad():
        expected = activation(
            F.conv2d(
                x.double(), weight.double(), None if bias is None else bias.double(), padding=padding, groups=groups
            )
        )
        found = convolve_and_activate(x, weight, bias, activation, padding, groups)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)


def fused_calls(monkeypatch, call):
    """Return how many convolutions of a call were fused."""
    results, real = [], fusion._is_fusible
    monkeypatch.setattr(fusion, '_is_fusible', lambda *tensors: results.append(real(*tensors)) or results[-1])
    call()
    return sum(results)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason='torch was built without oneDNN')
def test_only_evaluation_without_gradients_is_fused(monkeypatch):
    x, weight = torch.randn(1, 4, 8, 8), nn.Parameter(torch.randn(4, 4, 1, 1))

    activation = nn.GELU().eval()

    def call():
        return convolve_and_activate(x, weight, None, activation)

    assert fused_calls(monkeypatch, torch.no_grad()(call)) == 1
    assert fused_calls(monkeypatch, torch.inference_mode()(call)) == 1
    assert fused_calls(monkeypatch, call) == 0
    assert fused_calls(monkeypatch, torch.autocast('cpu')(torch.no_grad()(call))) == 0
    assert fused_calls(monkeypatch, torch.no_grad()(lambda: convolve_and_activate(x, weight, None, nn.GELU()))) == 0
    call().sum().backward()
    assert weight.grad.abs().sum() > 0
