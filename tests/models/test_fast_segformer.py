"""The fast SegFormer has the outputs, gradients, statistics and state dict of mmseg's with equal random weights.

Both compute on the same device. Their sums have another order, so they agree to rounding, on CUDA without TF32.
"""

import copy
import warnings

import pytest
import torch
from conftest import CONFIGS
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from mmseg_ignite.apis import load_config

NAME = 'segformer_mit-b{}_1xb8-20k_ignite-512x512.py'


def pair(size=0, drop_path=0.0, backbone=None, head=None):
    """Return (stock, fast) with equal random weights, including the parameters of normalisations."""
    init_default_scope('mmseg')
    cfg = load_config(CONFIGS / NAME.format(size)).model
    cfg.backbone.update(type='MixVisionTransformer', init_cfg=None, drop_path_rate=drop_path, **(backbone or {}))
    cfg.decode_head.update(type='SegformerHead', norm_cfg=dict(type='BN'), dropout_ratio=0.0)
    cfg.decode_head.update(head or {})
    stock = torch.nn.ModuleList([MODELS.build(cfg.backbone), MODELS.build(cfg.decode_head)])
    for module in stock.modules():
        for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if 'norm' in type(module).__name__.lower() and value.is_floating_point():
                torch.nn.init.uniform_(value, 0.5, 1.5) if name != 'bias' else torch.nn.init.normal_(value, std=0.3)
            elif value.is_floating_point() and value.ndim > 1:
                torch.nn.init.normal_(value, std=(2 / value[0].numel()) ** 0.5)
    cfg.backbone.type, cfg.decode_head.type = 'FastMixVisionTransformer', 'FastSegformerHead'
    fast = torch.nn.ModuleList([MODELS.build(cfg.backbone), MODELS.build(cfg.decode_head)])
    assert [(k, v.shape) for k, v in stock.state_dict().items()] == [(k, v.shape) for k, v in fast.state_dict().items()]
    fast.load_state_dict(stock.state_dict(), strict=True)
    stock.load_state_dict(fast.state_dict(), strict=True)
    return stock, fast


def initialised(size=0, **kwargs):
    """Return :func:`pair` with the initial weights of a training from scratch."""
    stock, fast = pair(size, **kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for module in stock:
            module.init_weights()
    fast.load_state_dict(stock.state_dict(), strict=True)
    return stock, fast


def run(model, x):
    return model[1](model[0](x))


def relative(a, b):
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


@pytest.mark.parametrize('size', range(6))
@pytest.mark.parametrize('shape', [(1, 3, 77, 131), (3, 3, 32, 50)])
@pytest.mark.parametrize('train', [False, True])
def test_logits_match_mmseg(device, size, shape, train):
    stock, fast = (m.train(train).to(device) for m in initialised(size))
    x = torch.randn(shape, device=device)
    with torch.no_grad():
        torch.testing.assert_close(run(fast, x), run(stock, x), rtol=0, atol=1e-4)


@pytest.mark.parametrize(('size', 'dtype'), [*((n, torch.float32) for n in range(6)), (0, torch.float64)])
@pytest.mark.parametrize(('shape', 'train'), [((1, 35, 61), False), ((3, 32, 50), True)])
def test_outputs_gradients_and_statistics_match_mmseg(device, size, shape, train, dtype):
    """Compare to eight digits in float64 with random weights, and in float32 with initial weights.

    Random weights amplify rounding errors too much for float32. There, the head has GELU instead of ReLU, whose gradient
    jumps where its input is rounded to the other side of 0, in one of ten runs.
    """
    stock, fast = (m.train(train).to(device, dtype) for m in (initialised if dtype == torch.float32 else pair)(size))
    if dtype == torch.float32:
        for model in (stock, fast):
            for layer in (*model[1].convs, model[1].fusion_conv):
                layer.activate = torch.nn.GELU()
    near, tolerance = (1e-4, 1e-3) if dtype == torch.float32 else (1e-9, 1e-8)
    x = torch.randn(shape[0], 3, *shape[1:], dtype=dtype, device=device)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [run(model, i) for model, i in zip((stock, fast), inputs)]
    scale = max(1.0, float(outputs[0].detach().abs().max())) if dtype == torch.float64 else 1.0
    assert float((outputs[0] - outputs[1]).detach().abs().max()) < near * scale
    weight = torch.randn_like(outputs[0])
    for output in outputs:
        (output * weight).sum().backward()
    assert relative(inputs[1].grad, inputs[0].grad) < tolerance
    total = torch.stack([p.grad.norm() for p in stock.parameters()]).norm()
    for (name, a), b in zip(stock.named_parameters(), fast.parameters()):
        # Gradients that are zero in exact arithmetic (a bias before a normalisation) are noise in both.
        assert (a.grad - b.grad).norm() < tolerance * a.grad.norm() + 1e-3 * tolerance * total, name
    for (name, a), b in zip(stock.named_buffers(), fast.named_buffers()):
        torch.testing.assert_close(a, b[1], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    'head',
    [
        dict(align_corners=True),
        dict(interpolate_mode='nearest', align_corners=None),
        dict(norm_cfg=None),
        dict(norm_cfg=dict(type='GN', num_groups=8)),
        dict(act_cfg=dict(type='GELU')),
        dict(act_cfg=None),
        dict(channels=64),
    ],
)
@pytest.mark.parametrize('train', [False, True])
def test_head_settings(device, head, train):
    stock, fast = (m.train(train).to(device) for m in pair(head=head))
    x = torch.randn(2, 3, 70, 100, device=device)
    with torch.no_grad():
        torch.testing.assert_close(run(fast, x), run(stock, x), rtol=1e-4, atol=1e-4)


def test_dropout_and_drop_path_use_the_same_random_numbers(device):
    stock, fast = (m.train().to(device) for m in pair(drop_path=0.3, head=dict(dropout_ratio=0.2)))
    x = torch.randn(4, 3, 64, 64, device=device)
    results = []
    for model in (stock, fast):
        torch.manual_seed(3)
        results.append(run(model, x))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)


def test_gradient_checkpointing_does_not_change_gradients(device):
    _, plain = pair()
    _, saving = pair(backbone=dict(with_cp=True))
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 64, device=device)
    gradients = []
    for model in (plain.train().to(device), saving.train().to(device)):
        # The input needs a gradient for checkpointing to take effect.
        run(model, x.clone().requires_grad_()).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients):
        # cuDNN adds the terms of a gradient in any order, which rounds relative to the largest one.
        largest = 1.0 if device.type == 'cpu' else max(1.0, a.abs().max().item())
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.parametrize('channels_last', [False, True])
def test_autocast_is_as_accurate_as_mmseg(device, channels_last):
    stock, fast = (m.eval().to(device) for m in pair())
    x = torch.randn(2, 3, 96, 64, device=device)
    if channels_last:
        fast = copy.deepcopy(fast).to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        exact = run(stock, x)
        with torch.autocast(device.type, torch.bfloat16):
            assert relative(run(fast, x).float(), exact) < 1.5 * relative(run(stock, x).float(), exact) + 1e-3


def test_encoder_maps_match_mmseg_and_are_channels_last(device):
    stock, fast = (m.eval().to(device) for m in pair())
    x = torch.randn(1, 3, 77, 130, device=device)
    with torch.no_grad():
        for a, b in zip(stock[0](x), fast[0](x)):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
            assert b.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('train', [False, True])
def test_compiles_without_graph_breaks(device, train):
    """Trace the full graph with autograd; Inductor is not tested, because it requires a compiler."""
    _, fast = (m.train(train).to(device) for m in initialised())
    x = torch.randn(2, 3, 64, 64, device=device)
    model = torch.nn.Sequential(*fast)
    compiled = torch.compile(copy.deepcopy(model), backend='aot_eager', fullgraph=True)
    outputs = [m(x.clone()) for m in (model, compiled)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)
    if train:
        for output in outputs:
            output.square().mean().backward()
        for (name, a), b in zip(model.named_parameters(), compiled.parameters()):
            assert relative(b.grad, a.grad) < 1e-3 or a.grad.norm() < 1e-6, name
        for (name, a), b in zip(model.named_buffers(), compiled.buffers()):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5, msg=name)
