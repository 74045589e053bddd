"""Names of weights: equal outputs of transformers' implementation, round trips, refusals."""

import itertools
import re

import pytest
import torch
import torch.nn.functional as F
from mmseg.models.decode_heads import SegformerHead
from mmseg.registry import MODELS
from tiny_segformer import CLASSES, logits, our_epsilon, randomised, theirs, tiny_config, tiny_segformer
from torchvision_shim import import_or_skip

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.models.weight_names import LAYOUTS, convert, layout_of

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def ours():
    return tiny_segformer()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@torch.no_grad()
@pytest.mark.parametrize('depths', ['B0', 'B2'])
def test_models_of_transformers_give_equal_outputs_here(depths, tmp_path):
    """From the names of its files and from those in its code, which differ since 5.24."""
    import_or_skip('transformers', 'dev')
    from safetensors.torch import load_file

    model, own = theirs('SegformerForSemanticSegmentation', depths), tiny_segformer(depths=depths)
    model.save_pretrained(tmp_path)
    stored, found = convert(load_file(tmp_path / 'model.safetensors'), 'mmseg', 'model.safetensors')
    assert found.layout == 'huggingface' and found.classes == CLASSES and found.is_plain
    assert same(stored, convert(model.state_dict(), 'mmseg', 'code')[0])
    own.load_state_dict(stored, strict=True)
    x = torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(logits(own, x), our_epsilon(model)(x).logits, rtol=1e-4, atol=1e-4)
    other = tiny_segformer(depths=depths)
    assert (logits(other, x) - model(x).logits).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize('kind', ['SegformerModel', 'SegformerForImageClassification'])
def test_encoders_of_transformers_give_equal_maps_here(kind, tmp_path):
    import_or_skip('transformers', 'dev')
    from safetensors.torch import load_file

    model, own = theirs(kind), tiny_segformer()
    model.save_pretrained(tmp_path)
    weights, found = convert(load_file(tmp_path / 'model.safetensors'), 'mmseg', 'model.safetensors')
    assert found.classes is None and found.size == 'MiT with 8, 16, 40, 64 channels in 2, 2, 2, 2 blocks'
    own.backbone.load_state_dict(weights, strict=True)
    x = torch.randn(1, 3, 64, 64)
    encoder = our_epsilon(getattr(model, 'segformer', model))
    maps = encoder(x, output_hidden_states=True).hidden_states
    for a, b in zip(own.backbone(x), maps, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_authors_head_gives_equal_logits(ours):
    """The formula of NVlabs/SegFormer: linear layers, the coarsest level first, fusion, normalisation, ReLU, classifier."""
    weights, _ = convert(ours.state_dict(), 'authors', 'ours')
    x = torch.randn(2, 3, 64, 96)
    maps, head = ours.backbone(x), {k.removeprefix('decode_head.'): v for k, v in weights.items()}
    levels = []
    for number, level in enumerate(maps, 1):
        weight, bias = head[f'linear_c{number}.proj.weight'], head[f'linear_c{number}.proj.bias']
        tokens = F.linear(level.flatten(2).transpose(1, 2), weight, bias)
        level = tokens.permute(0, 2, 1).reshape(len(x), -1, *level.shape[2:])
        levels.append(F.interpolate(level, maps[0].shape[2:], mode='bilinear', align_corners=False))
    fused = F.conv2d(torch.cat(levels[::-1], 1), head['linear_fuse.conv.weight'])
    bn = [head[f'linear_fuse.bn.{name}'] for name in ('running_mean', 'running_var', 'weight', 'bias')]
    fused = F.relu(F.batch_norm(fused, *bn))
    expected = F.conv2d(fused, head['linear_pred.weight'], head['linear_pred.bias'])
    torch.testing.assert_close(ours.decode_head(maps), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('source', 'target'), itertools.permutations(LAYOUTS, 2))
@pytest.mark.parametrize('encoder_only', [False, True])
def test_round_trips_change_nothing(ours, source, target, encoder_only):
    first, _ = convert(ours.state_dict(), source, 'ours', encoder_only)
    second, _ = convert(first, target, 'first')
    third, found = convert(second, source, 'second')
    assert layout_of(first) == source and layout_of(second) == target and found.layout == target
    assert same(first, third) and not same(first, second)
    assert same(convert(third, 'mmseg', 'third')[0], convert(ours.state_dict(), 'mmseg', 'ours', encoder_only)[0])


def test_the_authors_names(ours):
    weights, _ = convert(ours.state_dict(), 'authors', 'ours', encoder_only=True)
    assert weights['patch_embed2.proj.weight'].shape == (16, 8, 3, 3) and weights['norm4.bias'].shape == (64,)
    assert weights['block1.0.attn.kv.weight'].shape == (16, 8) and weights['block3.1.mlp.fc2.weight'].shape == (40, 160)
    extra = {'head.weight': torch.ones(1000, 64), 'head.bias': torch.ones(1000)}
    assert same(convert({**weights, **extra}, 'authors', 'x')[0], weights)


def test_prefixes_of_wrapped_models_and_the_unused_layer_are_dropped(ours):
    whole, _ = convert(ours.state_dict(), 'authors', 'ours')
    given = {f'module.{name}': value for name, value in whole.items()} | {
        'decode_head.conv_seg.weight': torch.ones(16, 128, 1, 1),
        'decode_head.conv_seg.bias': torch.ones(16),
    }
    assert same(convert(given, 'mmseg', 'x')[0], dict(ours.state_dict()))


def test_a_head_with_relu_at_each_level_is_refused_and_its_encoder_converts(ours):
    stock = tiny_segformer(plain=False)
    for layout in ('authors', 'huggingface'):
        with pytest.raises(IgniteError, match=r'x\.pth.*ReLU cannot be folded away.*plain=True'):
            convert(stock.state_dict(), layout, 'x.pth')
        encoder, found = convert(stock.state_dict(), layout, 'x.pth', encoder_only=True)
        assert not any('decode_head' in name for name in encoder) and (found.classes, found.is_plain) == (
            CLASSES,
            False,
        )
    weights, found = convert(stock.state_dict(), 'mmseg', 'x.pth')
    assert same(weights, dict(stock.state_dict())) and 'normalisation at each level' in str(found)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('fault', ['missing', 'unknown', 'shape', 'type', 'rank'])
def test_keys_that_do_not_fit_are_listed(ours, layout, fault):
    weights, _ = convert(ours.state_dict(), layout, 'ours')
    name = next(name for name in weights if re.search(r'(fc1|ffn\.layers\.0|dense1)\.weight', name))
    if fault == 'missing':
        del weights[name]
    elif fault == 'unknown':
        name = 'decode_head.surprise.weight'
        weights[name] = torch.ones(3)
    elif fault == 'shape':
        weights[name] = weights[name][:, :-1]
    elif fault == 'type':
        weights[name] = weights[name].to(torch.int32)
    else:
        weights[name] = torch.tensor(1.0)
    target = 'authors' if layout == 'huggingface' else 'huggingface'
    with pytest.raises(IgniteError, match=rf'^x\.pth has the names of .*{re.escape(name)}'):
        convert(weights, target, 'x.pth')


def test_other_models_have_no_layout():
    for weights in ({}, {'conv1.weight': torch.ones(1)}, {'backbone.layers.0.weight': torch.ones(1)}):
        assert layout_of(weights) is None
        with pytest.raises(IgniteError, match='no weights of a MiT encoder'):
            convert(weights, 'mmseg', 'x.pth')
    with pytest.raises(IgniteError, match='weights are missing, unknown'):
        convert({'patch_embed1.proj.weight': torch.ones(8, 3, 7, 7), 'patch_embed9.proj.weight': 'text'}, 'mmseg', 'x')


def plain_head(**settings):
    return randomised(MODELS.build({**tiny_config().model.decode_head, **settings}))


@torch.no_grad()
@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('settings', [{}, dict(align_corners=True), dict(norm_cfg=None)])
def test_a_plain_head_computes_what_mmseg_computes_with_these_layers(device, train, settings):
    head = plain_head(**settings).train(train).to(device)
    maps = [torch.randn(2, width, 24 >> n, 32 >> n, device=device) for n, width in enumerate((8, 16, 40, 64))]
    torch.manual_seed(1)
    expected = SegformerHead.forward(head, maps)
    torch.manual_seed(1)
    torch.testing.assert_close(head(maps), expected, rtol=1e-4, atol=1e-4)


def test_gradients_of_a_plain_head_are_those_of_mmseg(device):
    head = plain_head(dropout_ratio=0.0).train().to(device, torch.float64)
    maps = [torch.randn(2, width, 24 >> n, 32 >> n, device=device).double() for n, width in enumerate((8, 16, 40, 64))]
    gradients = []
    for forward in (head, lambda x: SegformerHead.forward(head, x)):
        head.zero_grad()
        forward(maps).square().sum().backward()
        gradients.append([p.grad.clone() for p in head.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-7)
