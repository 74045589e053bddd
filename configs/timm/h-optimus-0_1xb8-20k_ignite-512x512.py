# H-optimus-0 (Saillard et al. 2024), ViT-g/14, 1.1 billion parameters. Apache-2.0.
_base_ = ['../_base_/timm_20k.py']

checkpoint = 'weights/h-optimus-0.safetensors'  # of bioptimus/H-optimus-0; tools/train.py --weights FILE uses another
own = dict(mean=(0.707223, 0.578729, 0.703617), std=(0.211883, 0.230117, 0.177517))
model = dict(
    data_preprocessor={key: [255 * value for value in values] for key, values in own.items()},
    backbone=dict(
        model_name='vit_giant_patch14_reg4_dinov2',
        model_args=dict(img_size=224, pretrained_cfg_overlay=own),
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint)))
