"""Tiny encoders of timm and a config of them."""

from conftest import ROOT, small_options

from mmseg_ignite.apis import load_config
from mmseg_ignite.models import TimmEncoder

SWIGLU = dict(mlp_layer='SwiGLUPacked', act_layer='silu', mlp_ratio=2.66667 * 2)
SMALL = dict(img_size=56, patch_size=14, depth=2, embed_dim=24, num_heads=2, init_values=0.5)
REGISTERS = dict(**SMALL, **SWIGLU, reg_tokens=4, no_embed_class=True)
ADAPTER = dict(type='SpatialAdapter', channels=(8, 16, 16, 24))
HALF = dict(mean=(0.5, 0.4, 0.6), std=(0.2, 0.2, 0.25))


def vit(patch_size=14, **options):
    """A ViT of two blocks with 24 channels."""
    args = {**REGISTERS, 'patch_size': patch_size, 'img_size': 4 * patch_size}
    return TimmEncoder('vit_tiny_patch16_224', args, **options)


def tiny_config(prepared, tmp_path, work_dir, weights, iterations=4, **options):
    """A config that inherits the base of configs/timm, with a tiny frozen ViT of patch size 14 and averaged weights."""
    (tmp_path / 'tiny.py').write_text(f"""
_base_ = ['{ROOT}/configs/_base_/timm_20k.py']
own = {HALF}
model = dict(
    data_preprocessor={{key: [255 * value for value in values] for key, values in own.items()}},
    backbone=dict(
        model_name='vit_tiny_patch16_224',
        model_args=dict(pretrained_cfg_overlay=own, **{REGISTERS}),
        adapter=dict(channels={list(ADAPTER['channels'])}),
        init_cfg={dict(type='Pretrained', checkpoint=str(weights)) if weights else None}),
    decode_head=dict(in_channels={list(ADAPTER['channels'])}, channels=16),
    test_cfg=dict(crop_size=(64, 64), stride=(48, 48)))
crops = dict(um_per_px=None, rotation='quarter')
train_pipeline = [dict(type='RandomDihedral'), dict(type='PackTissueInputs', meta_keys=_base_.meta_keys)]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
param_scheduler = [dict(type='PolyLR', eta_min=0.0, power=1.0, begin=0, end={iterations}, by_epoch=False)]
custom_hooks = [dict(type='FiniteLossHook'), dict(type='EMAHook', ema_type='ForeachEMA', momentum=0.1)]
""")
    return load_config(tmp_path / 'tiny.py', {**small_options(prepared, iterations), **options}, str(work_dir))
