"""Losses compared with mmseg, torch and loops over pixels: values, gradients, accuracy, and memory."""

import sys

import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

import mmseg_ignite  # noqa: F401
from mmseg_ignite import IgniteError
from mmseg_ignite.models.losses import TissueLoss, resized_loss
from mmseg_ignite.models.losses.resized_loss import BYTES_AT_ONCE

resized_loss_module = sys.modules[resized_loss.__module__]  # the package has a function of this name


def heads(loss, **kwargs):
    """Return mmseg's and the fast head with equal settings."""
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
        losses = head.to(logits.device).loss_by_feat(own, labelled(labels))
        sum(value for name, value in losses.items() if 'loss' in name).backward()
        found.append((losses, own.grad))
    return found


@pytest.mark.parametrize('avg_non_ignore', [False, True])
@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('ignored', [0.0, 0.4, 1.0])
@pytest.mark.parametrize(('low', 'size'), [((16, 16), (64, 64)), ((9, 13), (33, 51)), ((20, 7), (20, 7))])
def test_value_gradient_and_accuracy_match_mmseg(device, avg_non_ignore, align_corners, ignored, low, size):
    logits = 3 * torch.randn(3, 5, *low, dtype=torch.float64, device=device)
    labels = torch.randint(5, (3, *size), device=device)
    labels[torch.rand(labels.shape, device=device) < ignored] = 255
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
def test_other_losses_are_computed_by_mmseg(device, loss, kwargs):
    logits, labels = torch.randn(2, 5, 16, 16, device=device), torch.randint(5, (2, 64, 64), device=device)
    (stock, expected), (fast, found) = losses_and_gradients(loss, logits, labels, **kwargs)
    for name in stock:
        torch.testing.assert_close(fast[name], stock[name])
    torch.testing.assert_close(found, expected)


def test_nothing_of_the_size_of_the_labels_is_kept_for_the_backward_pass(device):
    kept = []
    logits, labels = (
        torch.randn(2, 5, 16, 16, requires_grad=True, device=device),
        torch.randint(5, (2, 64, 64), device=device),
    )
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        resized_loss(logits, labels, dice=1.0, gamma=2.0, class_weight=torch.rand(5, device=device))
    assert kept and max(kept) <= logits.numel()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_scored_in_float32(device, dtype):
    logits, labels = (
        torch.randn(2, 5, 8, 8, device=device).to(dtype).requires_grad_(),
        torch.randint(5, (2, 32, 32), device=device),
    )
    exact = logits.detach().float().requires_grad_()
    with torch.autocast(device.type, torch.bfloat16):
        loss = resized_loss(logits, labels, dice=0.5).total
    expected = resized_loss(exact, labels, dice=0.5).total
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    (1000 * loss).backward()
    (1000 * expected).backward()
    torch.testing.assert_close(logits.grad, exact.grad.to(dtype))


def test_without_gradients(device):
    logits, labels = torch.randn(2, 5, 8, 8, device=device), torch.randint(5, (2, 32, 32), device=device)
    with torch.no_grad():
        loss, _, _, accuracy = resized_loss(logits, labels)
    resized = torch.nn.functional.interpolate(logits, (32, 32), mode='bilinear')
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(resized, labels))
    torch.testing.assert_close(accuracy, 100 * (resized.argmax(1) == labels).float().mean().reshape(1))


def brute_force(logits, labels, cross_entropy, dice, class_weight, gamma, smooth, weight):
    """Apply the definition pixel by pixel in float64; differentiable."""
    resized = torch.nn.functional.interpolate(logits, labels.shape[1:], mode='bilinear')
    focal, total, own, area, predicted = 0.0, 0.0, {}, {}, {}
    for n, y, x in torch.cartesian_prod(*(torch.arange(s) for s in labels.shape)).tolist():
        k, counts = int(labels[n, y, x]), float(weight[n, y, x])
        if k == 255:
            continue
        p = resized[n, :, y, x].softmax(0)
        focal = focal - counts * class_weight[k] * (1 - p[k]) ** gamma * p[k].log()
        total += counts * float(class_weight[k])
        own[k], area[k] = own.get(k, 0) + counts * p[k], area.get(k, 0) + counts
        for c in range(len(p)):
            predicted[c] = predicted.get(c, 0) + counts * p[c]
    present = [k for k in area if area[k] > 0]
    overlap = sum(1 - (2 * own[k] + smooth) / (area[k] + predicted[k] + smooth) for k in present) / max(len(present), 1)
    return cross_entropy * (focal / total if total else 0 * resized.sum()) + dice * overlap


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('ignored', [0.0, 0.5])
def test_value_and_gradient_match_a_loop_over_pixels(device, seed, ignored):
    rng = torch.Generator().manual_seed(seed)  # the loop runs on the CPU
    logits = 2 * torch.randn(2, 4, 3, 4, dtype=torch.float64, generator=rng)
    labels = torch.randint(3, (2, 7, 9), generator=rng)  # class 3 is absent
    labels[torch.rand(labels.shape, generator=rng) < ignored] = 255
    weight = torch.rand(labels.shape, generator=rng) * (torch.rand(labels.shape, generator=rng) < 0.8)
    class_weight = torch.rand(4, generator=rng, dtype=torch.float64)
    cross_entropy, dice, gamma, smooth = [
        (1, 1, 0, 1),
        (0, 2, 0, 0),
        (0.7, 0, 2, 1),
        (1, 0.5, 1.5, 1),
        (1, 1, 0, 0),
        (1, 3, 1, 5),
    ][seed]
    settings = dict(
        cross_entropy=cross_entropy, dice=dice, class_weight=class_weight, gamma=gamma, smooth=smooth, weight=weight
    )
    mine, theirs = logits.to(device, copy=True).requires_grad_(), logits.clone().requires_grad_()
    moved = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in settings.items()}
    found = resized_loss(mine, labels.to(device), **moved)
    expected = brute_force(theirs, labels, **settings)
    (3 * found.total).backward()
    (3 * expected).backward()
    torch.testing.assert_close(found.total.cpu(), expected, rtol=1e-6, atol=1e-12)  # the denominator has a float32 eps
    torch.testing.assert_close(mine.grad.cpu(), theirs.grad, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('terms', [dict(), dict(dice=1.0), dict(dice=0.5, gamma=2.0), dict(avg_non_ignore=False)])
def test_images_at_once_give_what_each_alone_gives(seed, terms, monkeypatch):
    """Five images of 5 * 21 * 18 float64 each: one at a time, two at a time with one left, and all."""
    rng = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(5, 5, 7, 6, dtype=torch.float64, generator=rng)
    labels = torch.randint(5, (5, 21, 18), generator=rng)
    labels[torch.rand(labels.shape, generator=rng) < 0.3] = 255
    class_weight, weight = torch.rand(5, generator=rng), torch.rand(labels.shape, generator=rng)
    sizes, score = [], resized_loss_module._score
    monkeypatch.setattr(resized_loss_module, '_score', lambda x, *rest: sizes.append(len(x)) or score(x, *rest))
    found = []
    for limit in (1, 2 * 5 * 21 * 18 * 8, 1 << 30):
        monkeypatch.setitem(BYTES_AT_ONCE, 'cpu', limit)
        own = logits.clone().requires_grad_()
        losses = resized_loss(own, labels, class_weight=class_weight, weight=weight, **terms)
        losses.total.backward()
        found.append((*losses, own.grad))
    assert sizes == [1, 1, 1, 1, 1, 2, 2, 1, 5]
    for other in found[1:]:
        for one, expected in zip(other, found[0]):
            torch.testing.assert_close(one.detach(), expected.detach(), rtol=1e-12, atol=1e-15)


def test_weighted_cross_entropy_matches_torch(device):
    logits, labels = (
        torch.randn(3, 5, 8, 8, dtype=torch.float64, device=device),
        torch.randint(5, (3, 32, 32), device=device),
    )
    labels[:, :9] = 255
    weight = torch.rand(5, dtype=torch.float64, device=device)
    resized = torch.nn.functional.interpolate(logits, (32, 32), mode='bilinear')
    expected = torch.nn.functional.cross_entropy(resized, labels, weight, ignore_index=255)
    loss = TissueLoss(dice=0.0, class_weight=weight.tolist())
    torch.testing.assert_close(loss(resized, labels), expected, rtol=1e-6, atol=0)


def test_deterministic_algorithms_reproduce_gradients(device, monkeypatch):
    """On CUDA, torch promises equal bits only with deterministic algorithms, whose rounding differs."""
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    logits, labels = torch.randn(2, 5, 8, 8, device=device), torch.randint(5, (2, 32, 32), device=device)
    found = []
    for deterministic in (False, True, True):
        own = logits.clone().requires_grad_()
        torch.use_deterministic_algorithms(deterministic)
        try:
            resized_loss(own, labels, dice=1.0).total.backward()
        finally:
            torch.use_deterministic_algorithms(False)
        found.append(own.grad)
    assert torch.equal(*found[1:])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0 if device.type == 'cpu' else 1e-6)


def test_ignored_crops_have_no_gradient(device):
    (_, _), (losses, grad) = losses_and_gradients(
        dict(type='TissueLoss', gamma=2.0),
        torch.randn(2, 5, 8, 8, device=device),
        torch.full((2, 32, 32), 255, device=device),
    )
    assert all(float(losses[name]) == 0 for name in ('loss_tissue', 'cross_entropy', 'dice')) and not grad.any()


def test_ignored_pixels_have_no_effect(device):
    logits, labels = torch.randn(2, 5, 16, 16, device=device), torch.randint(5, (2, 16, 16), device=device)
    labels[:, 7:] = 255
    changed = logits.clone()
    changed[:, :, 7:] = 40 * torch.randn(2, 5, 9, 16, device=device)
    loss = TissueLoss()
    assert loss(logits, labels) == pytest.approx(float(loss(changed, labels)))


def test_lovasz_loss_of_mmseg_matches_its_definition(device):
    """Extend 1 - IoU (Berman et al. 2018) over the present classes, without ignored pixels."""
    logits, labels = torch.randn(2, 4, 6, 6, device=device), torch.randint(3, (2, 6, 6), device=device)
    labels[0, :2] = 255
    stock = MODELS.build(dict(type='LovaszLoss', reduction='none'))
    p, y = logits.softmax(1).permute(0, 2, 3, 1)[labels != 255], labels[labels != 255]
    expected = []
    for k in range(3):
        truth = y == k
        errors, order = (truth.float() - p[:, k]).abs().sort(descending=True)
        jaccard = [0.0]  # no errors
        for i in range(len(order)):
            wrong = torch.zeros_like(truth)
            wrong[order[: i + 1]] = True
            jaccard.append(1 - (truth & ~wrong).sum() / (truth | wrong).sum())
        expected.append(sum(errors[i] * (jaccard[i + 1] - jaccard[i]) for i in range(len(order))))
    torch.testing.assert_close(stock(logits, labels, ignore_index=255), torch.stack(expected).mean(), rtol=1e-5, atol=0)


def test_tissue_loss_is_equal_in_both_heads(device):
    logits, labels = (
        torch.randn(2, 5, 16, 16, dtype=torch.float64, device=device),
        torch.randint(5, (2, 64, 64), device=device),
    )
    labels[0, :20] = 255
    loss = dict(type='TissueLoss', dice=0.5, gamma=2.0, class_weight=[1.0, 2.0, 3.0, 4.0, 5.0])
    (stock, expected), (fast, found) = losses_and_gradients(loss, logits, labels)
    torch.testing.assert_close(fast['loss_tissue'], stock['loss_tissue'])
    torch.testing.assert_close(fast['cross_entropy'] + 0.5 * fast['dice'], fast['loss_tissue'])
    torch.testing.assert_close(fast['acc_seg'], stock['acc_seg'].to(fast['acc_seg'].dtype))
    torch.testing.assert_close(found, expected)


def test_pixel_samplers_weight_the_pixels(device):
    logits, labels = torch.randn(2, 5, 16, 16, device=device), torch.randint(5, (2, 64, 64), device=device)
    sampler = dict(type='OHEMPixelSampler', thresh=0.3, min_kept=100)
    (stock, expected), (fast, found) = losses_and_gradients(dict(type='TissueLoss'), logits, labels, sampler=sampler)
    torch.testing.assert_close(fast['loss_tissue'], stock['loss_tissue'])
    torch.testing.assert_close(found, expected)


def test_class_weights_follow_from_pixels_and_temperature():
    loss = TissueLoss(temperature=0.5)
    with pytest.raises(IgniteError, match='requires class_pixels'):
        loss(torch.randn(1, 4, 8, 8), torch.zeros(1, 8, 8, dtype=torch.long))
    pixels = [100, 400, 0, 10000]
    loss = TissueLoss(temperature=0.5, class_pixels=pixels)
    weight = loss.class_weight.double()
    torch.testing.assert_close(weight[0] / weight[3], torch.tensor(10.0).double())
    assert weight[2] == 0 and float((weight * torch.tensor(pixels)).sum()) == pytest.approx(sum(pixels))
    assert 'class_weight' not in loss.state_dict()
    with pytest.raises(IgniteError, match='4 class weights, the network has 3 classes'):
        loss(torch.randn(1, 3, 8, 8), torch.zeros(1, 8, 8, dtype=torch.long))


@pytest.mark.parametrize(
    ('settings', 'word'),
    [
        (dict(cross_entropy=0, dice=0), 'cross_entropy and dice'),
        (dict(dice=-1), 'dice'),
        (dict(temperature=5), 'temperature'),
        (dict(temperature=1, class_weight=[1.0]), 'class_weight'),
        (dict(temperature=1, class_pixels=[0, 0]), 'no annotated pixel'),
        (dict(gamma=0.5), 'gamma'),
        (dict(smooth=-1), 'smooth'),
    ],
)
def test_invalid_settings_are_rejected(settings, word):
    with pytest.raises(IgniteError, match=word):
        TissueLoss(**settings)
