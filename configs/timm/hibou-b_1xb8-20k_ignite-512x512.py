# Hibou-B (Nechaev et al. 2024), ViT-B/14, 86 million parameters. Apache-2.0.
_base_ = ['../_base_/timm_20k.py']

checkpoint = 'weights/hibou-b.safetensors'  # of histai/hibou-b, or hibou-b.pth of its authors; also with --weights FILE
own = dict(mean=(0.7068, 0.5755, 0.722), std=(0.195, 0.2316, 0.1816))
model = dict(
    data_preprocessor={key: [255 * value for value in values] for key, values in own.items()},
    backbone=dict(
        model_name='vit_base_patch14_reg4_dinov2',
        model_args=dict(
            img_size=224, mlp_ratio=2.66667 * 2, mlp_layer='SwiGLUPacked', act_layer='silu', pretrained_cfg_overlay=own),
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint)))
