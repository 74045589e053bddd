"""The loss of the fast head beside that of mmseg's head: value, gradient, accuracy, and what is kept."""

import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

import mmseg_ignite  # noqa: F401
from mmseg_ignite.models.losses import resized_cross_entropy


def heads(loss, **kwargs):
    """(stock, fast), alike."""
    init_default_scope('mmseg')
    cfg = dict(
        in_channels=[8, 8, 8, 8], in_index=[0, 1, 2, 3], channels=16, num_classes=5, norm_cfg=dict(type='BN'), **kwargs
    )
    return [MODELS.build({**cfg, 'type': name, 'loss_decode': loss}) for name in ('SegformerHead', 'FastSegformerHead')]


def labelled(labels):
    return [SegDataSample(gt_sem_seg=PixelData(data=one[None])) for one in labels]


def losses_and_gradients(loss, logits, labels, **kwargs):
    found = []
    for head in heads(loss, **kwargs):
        own = logits.clone().requires_grad_()
        losses = head.loss_by_feat(own, labelled(labels))
        sum(value for name, value in losses.items() if 'loss' in name).backward()
        found.append((losses, own.grad))
    return found


@pytest.mark.parametrize('avg_non_ignore', [False, True])
@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('ignored', [0.0, 0.4, 1.0])
@pytest.mark.parametrize(('low', 'size'), [((16, 16), (64, 64)), ((9, 13), (33, 51)), ((20, 7), (20, 7))])
def test_value_gradient_and_accuracy_are_those_of_stock(avg_non_ignore, align_corners, ignored, low, size):
    logits = 3 * torch.randn(3, 5, *low, dtype=torch.float64)
    labels = torch.randint(5, (3, *size))
    labels[torch.rand(labels.shape) < ignored] = 255
    loss = dict(type='CrossEntropyLoss', loss_weight=0.7, avg_non_ignore=avg_non_ignore)
    (stock, expected), (fast, found) = losses_and_gradients(loss, logits, labels, align_corners=align_corners)
    assert stock.keys() == fast.keys()
    for name in stock:
        torch.testing.assert_close(fast[name].squeeze(), stock[name].squeeze().to(fast[name].dtype))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(
    ('loss', 'kwargs'),
    [
        (dict(type='CrossEntropyLoss', class_weight=[1.0, 2.0, 3.0, 4.0, 5.0]), {}),
        (dict(type='CrossEntropyLoss', use_sigmoid=True), {}),
        (dict(type='DiceLoss'), {}),
        ([dict(type='CrossEntropyLoss'), dict(type='LovaszLoss', per_image=True)], {}),
        (dict(type='CrossEntropyLoss'), dict(sampler=dict(type='OHEMPixelSampler', thresh=0.7, min_kept=100))),
    ],
)
def test_other_losses_are_computed_by_stock(loss, kwargs):
    logits, labels = torch.randn(2, 5, 16, 16), torch.randint(5, (2, 64, 64))
    (stock, expected), (fast, found) = losses_and_gradients(loss, logits, labels, **kwargs)
    for name in stock:
        torch.testing.assert_close(fast[name], stock[name])
    torch.testing.assert_close(found, expected)


def test_nothing_of_the_labels_size_is_kept_for_the_backward_pass():
    kept = []
    logits, labels = torch.randn(2, 5, 16, 16, requires_grad=True), torch.randint(5, (2, 64, 64))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        resized_cross_entropy(logits, labels)
    assert kept and max(kept) <= logits.numel()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_scored_in_float32(dtype):
    logits, labels = torch.randn(2, 5, 8, 8).to(dtype).requires_grad_(), torch.randint(5, (2, 32, 32))
    exact = logits.detach().float().requires_grad_()
    with torch.autocast('cpu', torch.bfloat16):
        loss, _ = resized_cross_entropy(logits, labels)
    expected, _ = resized_cross_entropy(exact, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    (1000 * loss).backward()
    (1000 * expected).backward()
    torch.testing.assert_close(logits.grad, exact.grad.to(dtype))


def test_without_gradients():
    logits, labels = torch.randn(2, 5, 8, 8), torch.randint(5, (2, 32, 32))
    with torch.no_grad():
        loss, accuracy = resized_cross_entropy(logits, labels)
    resized = torch.nn.functional.interpolate(logits, (32, 32), mode='bilinear')
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(resized, labels))
    torch.testing.assert_close(accuracy, 100 * (resized.argmax(1) == labels).float().mean().reshape(1))
