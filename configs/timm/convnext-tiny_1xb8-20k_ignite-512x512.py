# ConvNeXt-T (Liu et al. 2022), 28 million parameters, trained as a whole from ImageNet weights. Apache-2.0.
_base_ = ['../_base_/timm_20k.py']

checkpoint = 'weights/convnext_tiny.safetensors'  # of timm/convnext_tiny.in12k_ft_in1k; also with --weights FILE
model = dict(
    backbone=dict(
        model_name='convnext_tiny.in12k_ft_in1k',
        model_args=dict(drop_path_rate=0.1),
        frozen=False,
        adapter=None,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint)),
    decode_head=dict(in_channels=[96, 192, 384, 768]))
