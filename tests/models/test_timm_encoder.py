"""Encoders of timm: sizes, values, weights of other projects, statistics, and mistakes."""

import copy
import sys

import pytest
import torch
from conftest import ROOT
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from timm_example import ADAPTER, HALF, SMALL, vit
from torchvision_shim import import_or_skip

from mmseg_ignite.apis import load_config
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.models import TimmEncoder
from mmseg_ignite.models.backbones.spatial_adapter import resample
from mmseg_ignite.models.backbones.timm_weights import fitting_encoder

timm = import_or_skip('timm', 'timm')
CONFIGS = sorted((ROOT / 'configs' / 'timm').glob('*.py'))
MILLIONS = {'convnext-tiny': 27.8, 'h-optimus-0': 1135, 'h-optimus-1': 1135, 'hibou-b': 85.7, 'hibou-l': 303.7, 'uni2-h': 681,
            'virchow2': 631}  # fmt: skip
"""Parameters as published: Liu et al. 2022, Bioptimus, Nechaev et al. 2024, Chen et al. 2024, Zimmermann et al. 2024."""
pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmseg')


def randomised(module):
    """Give all parameters random values, also those that begin as zeros or ones."""
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(0.3 * torch.randn_like(tensor) + (tensor.ndim == 1) * 0.5).abs_()
    return module


@pytest.mark.parametrize('patch', [14, 16])
@pytest.mark.parametrize('size', [(64, 64), (75, 50), (9, 130)])
def test_the_adapter_gives_a_pyramid_for_images_of_any_size(patch, size):
    maps = vit(patch, adapter=ADAPTER).eval()(torch.rand(2, 3, *size))
    expected = [(2, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip((8, 16, 16, 24), (4, 8, 16, 32))]
    assert [tuple(m.shape) for m in maps] == expected


@pytest.mark.parametrize(
    ('stride', 'new'), [(14, 4), (14, 8), (14, 16), (14, 32), (16, 4), (16, 16), (16, 32), (8, 32)]
)
def test_tokens_stay_where_they_are_in_the_image(stride, new):
    """A map of the column of each element's centre, in px, is one after resampling, except at the borders."""
    columns = (torch.arange(37.0) + 0.5) * stride
    x = columns.expand(1, 1, 37, 37)
    count = -(-36 * stride // new)
    found = resample(x, stride, new, (count, count))
    assert found.shape == (1, 1, count, count)
    centres = (torch.arange(count) + 0.5) * new
    inside = (centres > stride) & (centres < 35 * stride)
    tolerance = 0 if new <= stride else 0.02 * new  # means of a pair are at its centre
    assert (found[0, 0, 5] - centres)[inside].abs().max() <= tolerance + 1e-3


def test_maps_of_a_plain_transformer_are_the_normalised_tokens_of_timm():
    encoder, x = randomised(vit()), torch.rand(2, 3, 70, 56)
    found = encoder.eval()(x)
    tokens = encoder.model.forward_features(x)[:, 5:]  # a class token and four registers
    assert torch.allclose(found[-1], tokens.transpose(1, 2).unflatten(2, (5, 4)), atol=1e-5)
    assert encoder.out_indices == [0, 0, 1, 1] and encoder.channels == [24] * 4
    padded = torch.nn.functional.pad(x, (0, 0, 0, 14), mode='replicate')
    assert torch.allclose(encoder(padded[..., :71, :])[-1], encoder(padded)[-1], atol=1e-5)


def test_a_cnn_gives_the_maps_of_timm_and_takes_its_file(tmp_path):
    full = randomised(timm.create_model('convnext_atto', depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)))
    torch.save(full.state_dict(), tmp_path / 'cnn.pth')
    args = dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))
    encoder = TimmEncoder('convnext_atto', args, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'cnn.pth')))
    encoder.init_weights()
    x = torch.rand(1, 3, 64, 96)
    expected = full.eval().forward_intermediates(x, intermediates_only=True)[-4:]
    found = encoder.eval()(x)
    assert encoder.strides == [4, 8, 16, 32] and encoder.channels == [8, 16, 24, 32]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))
    assert [tuple(m.shape[2:]) for m in encoder(torch.rand(1, 3, 75, 50))] == [(19, 13), (10, 7), (5, 4), (3, 2)]


def test_a_frozen_encoder_is_not_trained():
    encoder = vit(frozen=True, adapter=ADAPTER).train()
    maps = encoder(torch.rand(2, 3, 64, 64))
    sum(m.sum() for m in maps).backward()
    assert not encoder.model.training and encoder.adapter.training
    assert all(p.grad is None and not p.requires_grad for p in encoder.model.parameters())
    assert all(p.grad is not None for p in encoder.adapter.parameters())
    assert not vit(frozen=True).train()(torch.rand(1, 3, 64, 64))[0].requires_grad


def test_recomputed_blocks_give_the_same_gradients():
    torch.manual_seed(0)
    plain = vit().train()
    recomputed = vit(with_cp=True).train()
    recomputed.load_state_dict(plain.state_dict())
    assert recomputed.model.grad_checkpointing and not plain.model.grad_checkpointing
    x = torch.rand(1, 3, 64, 64)
    for encoder in (plain, recomputed):
        encoder(x)[-1].square().mean().backward()
    for own, other in zip(plain.parameters(), recomputed.parameters(), strict=True):
        assert torch.allclose(own.grad, other.grad, atol=1e-6)


def test_half_precision_and_channels_last():
    torch.manual_seed(0)
    encoder = vit(frozen=True, adapter=ADAPTER).eval()
    x = torch.rand(1, 3, 64, 64)
    expected = encoder(x)
    assert all(
        torch.allclose(a, b, atol=1e-4) for a, b in zip(encoder(x.to(memory_format=torch.channels_last)), expected)
    )
    with torch.autocast('cpu', torch.bfloat16):
        found = encoder(x)
    assert all((a - b).abs().mean() < 0.1 * b.abs().mean() for a, b in zip(found, expected))


def test_weights_with_the_names_of_transformers_give_its_tokens(tmp_path):
    """Hibou's model.safetensors has the names of files of Dinov2WithRegistersModel."""
    transformers = import_or_skip('transformers', 'dev')
    safetensors = pytest.importorskip('safetensors.torch', reason='safetensors is not installed')
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14, num_register_tokens=4,
        use_swiglu_ffn=True, mlp_ratio=4, attn_implementation='eager',
    )  # fmt: skip
    theirs = randomised(transformers.Dinov2WithRegistersModel(config)).eval()
    encoder = vit().eval()
    theirs.save_pretrained(tmp_path)
    weights = safetensors.load_file(tmp_path / 'model.safetensors')
    encoder.load_state_dict(fitting_encoder(weights, encoder.state_dict(), 'f'))
    x = torch.rand(2, 3, 56, 56)
    with torch.no_grad():
        expected = theirs(x).last_hidden_state[:, 5:].transpose(1, 2).unflatten(2, (4, 4))
        assert torch.allclose(encoder(x)[-1], expected, atol=1e-4)


def test_weights_with_the_names_of_dinov2_are_converted_as_by_timm():
    """Hibou's hibou-b.pth."""
    own = vit().state_dict()
    theirs = {
        'mask_token': torch.rand(1, 24),
        'register_tokens': torch.rand(1, 4, 24),
        'pos_embed': torch.rand(1, 17, 24),
    }
    for key, value in own.items():
        key = key.removeprefix('model.').replace('mlp.fc1', 'mlp.w12').replace('mlp.fc2', 'mlp.w3')
        if key not in ('reg_token', 'pos_embed'):
            theirs[key] = torch.rand(value.shape)
    filtered = timm.models.vision_transformer.checkpoint_filter_fn(copy.copy(theirs), vit().model)
    found = fitting_encoder(theirs, own, 'hibou.pth')
    assert {f'model.{key}' for key in filtered} == set(found) == set(own)
    assert all(torch.equal(found[f'model.{key}'], value) for key, value in filtered.items())


def test_an_encoder_is_taken_out_of_a_whole_model():
    encoder = randomised(vit(adapter=ADAPTER))
    whole = {f'backbone.{key}': value for key, value in encoder.state_dict().items()} | {'decode_head.x': torch.rand(1)}
    found = fitting_encoder(whole, vit(adapter=ADAPTER).state_dict(), 'f')
    assert found.keys() == encoder.state_dict().keys()
    bare = {key: value for key, value in whole.items() if '.adapter.' not in key}
    assert set(fitting_encoder(bare, encoder.state_dict(), 'f')) == {
        k for k in encoder.state_dict() if k[:6] == 'model.'
    }


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (
            dict(embed_dim=32),
            r'not contain the weights.* do not fit \(cls_token is \(1, 1, 32\), not \(1, 1, 24\), .*model_args',
        ),
        (dict(img_size=70), r'1 of \d+ do not fit \(pos_embed is'),
        (dict(depth=1), 'blocks.1.norm1.weight is missing'),
        (dict(depth=3), 'a deeper encoder .*2 blocks were expected'),
    ],
)
def test_weights_of_another_encoder_are_refused(change, words):
    other = timm.create_model('vit_tiny_patch16_224', num_classes=0, **{**SMALL, **change})
    settings = dict(type='TimmEncoder', model_name='vit_tiny_patch16_224', model_args=SMALL, adapter=ADAPTER)
    TimmEncoder.check_weights(settings, timm.create_model('vit_tiny_patch16_224', **SMALL).state_dict(), 'f')
    with pytest.raises(IgniteError, match=f'^file.pth .*{words}'):
        TimmEncoder.check_weights(settings, other.state_dict(), 'file.pth')


def test_images_must_be_normalised_as_for_the_encoder():
    settings = dict(model_name='vit_tiny_patch16_224', model_args=SMALL)
    own = {key: [255 * value for value in values] for key, values in HALF.items()}
    TimmEncoder.check_inputs(settings, dict(mean=[127.5] * 3, std=[127.5] * 3))  # those that timm knows
    TimmEncoder.check_inputs({**settings, 'model_args': dict(pretrained_cfg_overlay=HALF)}, own)
    for preprocessor in (own, {**own, 'mean': [127.5] * 3}, {}):
        with pytest.raises(IgniteError, match=r'(mean|std) of the data preprocessor is .*\[127.5, 127.5, 127.5\]: set'):
            TimmEncoder.check_inputs(settings, preprocessor)
    with pytest.raises(IgniteError, match='mean of the data preprocessor'):
        load_config(CONFIGS[1], {'model.data_preprocessor.mean': [123.675, 116.28, 103.53]})


@pytest.mark.parametrize(
    ('name', 'options', 'words'),
    [
        ('hf-hub:a/b', {}, 'would be downloaded'),
        ('vit_tiny_patch16_224', dict(model_args=dict(pretrained=True)), 'would be downloaded'),
        ('no_such_vit', {}, 'timm has no model'),
        ('vit_tiny_patch16_224', dict(model_args=dict(no_such=1)), 'cannot be built by timm .*model_args'),
        ('resnet10t', dict(adapter=ADAPTER), 'a pyramid of its own.*adapter=None'),
        ('vit_tiny_patch16_224', dict(adapter=ADAPTER, out_indices=(0, 1)), '2 maps.*four blocks'),
        ('resnet10t', dict(out_indices=(7,)), 'out_indices .*numbers from -5 to 4'),
        (
            'vit_tiny_patch16_224',
            dict(adapter=dict(type='SpatialAdapter', channels=(8,))),
            'channels of SpatialAdapter',
        ),
    ],
)
def test_mistakes_are_explained(name, options, words):
    with pytest.raises(IgniteError, match=words):
        TimmEncoder(name, **{'model_args': SMALL if 'vit' in name else {}, **options})


def test_an_encoder_of_one_size_says_so():
    encoder = TimmEncoder('swin_tiny_patch4_window7_224', dict(depths=(1, 1, 1, 1), embed_dim=24))
    assert encoder.eval()(torch.rand(1, 3, 224, 224))[0].shape == (1, 24, 56, 56)
    with pytest.raises(IgniteError, match='cannot encode images of 64 x 64 px .*img_size'):
        encoder(torch.rand(1, 3, 64, 64))


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(IgniteError, match=r'^timm is not installed; .*mmseg_ignite\[timm\]'):
        vit()


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem.partition('_')[0])
def test_config(path, monkeypatch):
    """All configs are short, have the published encoder, and build without a download."""
    monkeypatch.setattr('urllib.request.urlopen', None)
    cfg = load_config(path)
    assert len(path.read_text().splitlines()) <= 12 and cfg.work_dir.startswith('work_dirs/')
    with torch.device('meta'):
        encoder = MODELS.build({**cfg.model.backbone, 'init_cfg': None})
    millions = sum(parameter.numel() for parameter in encoder.model.parameters()) / 1e6
    assert millions == pytest.approx(MILLIONS[path.stem.partition('_')[0]], rel=2e-3)
    assert encoder.channels == list(cfg.model.decode_head.in_channels)
    assert encoder.frozen == (encoder.adapter is not None) == encoder.is_plain
    assert cfg.model.backbone.init_cfg.checkpoint.startswith('weights/')
