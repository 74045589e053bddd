"""Averaging over symmetries compared with explicit transforms."""

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.inference import average_symmetries

pytestmark = pytest.mark.usefixtures('one_thread')

# (forward, inverse) on the last two axes, with rot90 where the tested code flips and transposes.
EXPLICIT = [
    (lambda x, k=k, m=m: np.rot90(x[..., ::-1] if m else x, k, (-2, -1)),
     lambda x, k=k, m=m: np.rot90(x, -k, (-2, -1))[..., ::-1] if m else np.rot90(x, -k, (-2, -1)))
    for m in (False, True) for k in range(4)
]  # fmt: skip
# Indices: identity; horizontal flip; vertical flip; half turn.
SUBSETS = {2: [0, 4], 4: [0, 4, 6, 2], 8: range(8)}


def network(device):
    """Return a random convolution, which is not symmetric: (B, 3, h, w) to (B, 4, h, w) float64."""
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64, device=device)
    return lambda x: conv2d(x, weight, padding=1)


def transformed(transform, windows):
    return torch.from_numpy(transform(windows.cpu().numpy()).copy()).to(windows.device)


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize('shape', [(6, 6), (5, 9)])
@pytest.mark.parametrize('number', [2, 4, 8])
def test_average_matches_explicit_transforms(device, number, shape):
    predict, windows = network(device), torch.randn(2, 3, *shape, dtype=torch.float64, device=device)
    each = []
    for i in SUBSETS[number]:
        forward, back = EXPLICIT[i]
        logits = predict(transformed(forward, windows)).cpu().numpy()
        each.append(back(softmax(logits)))
    for at_once in (1, 3, 4):
        found = average_symmetries(predict, windows, number, at_once)
        np.testing.assert_allclose(found.cpu().numpy(), np.mean(each, 0), atol=1e-12)
    np.testing.assert_allclose(found.sum(1).cpu().numpy(), 1, atol=1e-12)


@pytest.mark.parametrize('transform', EXPLICIT)
def test_average_is_equivariant(device, transform):
    predict, windows = network(device), torch.randn(1, 3, 6, 8, dtype=torch.float64, device=device)
    turned = average_symmetries(predict, transformed(transform[0], windows))
    expected = transform[0](average_symmetries(predict, windows).cpu().numpy())
    np.testing.assert_allclose(turned.cpu().numpy(), expected, atol=1e-12)
    assert (
        np.abs(predict(windows).softmax(1).cpu().numpy() - average_symmetries(predict, windows).cpu().numpy()).max()
        > 1e-3
    )


@pytest.mark.parametrize('number', [2, 4, 8])
def test_symmetric_predictors_are_unchanged(device, number):
    # One-hot probabilities have exact sums and means.
    windows = torch.nn.functional.one_hot(torch.randint(0, 3, (2, 7, 4), device=device), 3).permute(0, 3, 1, 2) * 1e4
    assert torch.equal(average_symmetries(lambda x: x, windows.float(), number), windows.float() / 1e4)


def test_number_1_returns_logits(device):
    windows = torch.randn(2, 3, 4, 5, device=device)
    assert torch.equal(average_symmetries(lambda x: 3 * x, windows, 1), 3 * windows)


def test_each_symmetry_is_predicted_once():
    seen = []
    windows = torch.arange(6.0).reshape(1, 1, 2, 3).repeat(1, 3, 1, 1)
    average_symmetries(lambda x: seen.append(x[0, 0].numpy()) or x, windows)
    expected = [forward(windows[0, 0].numpy()) for forward, _ in EXPLICIT]
    assert sorted((x.shape, x.tolist()) for x in seen) == sorted((x.shape, x.tolist()) for x in expected)


def test_half_precision_is_averaged_in_float32(device):
    found = average_symmetries(lambda x: x, torch.randn(1, 3, 4, 4, device=device).bfloat16(), 4)
    assert found.dtype == torch.float32


@pytest.mark.parametrize('number', [0, 3, 16, True, 8.0, None])
def test_other_numbers_are_rejected(number):
    with pytest.raises(IgniteError, match='1, 2, 4 or 8'):
        average_symmetries(lambda x: x, torch.zeros(1, 3, 4, 4), number)
