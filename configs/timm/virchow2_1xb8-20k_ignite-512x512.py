# Virchow2 (Zimmermann et al. 2024), ViT-H/14, 631 million parameters. CC BY-NC-ND 4.0, gated. ImageNet's statistics.
_base_ = ['../_base_/timm_20k.py']

checkpoint = 'weights/virchow2.safetensors'  # of paige-ai/Virchow2; tools/train.py --weights FILE uses another
model = dict(
    backbone=dict(
        model_name='vit_huge_patch14_224',
        model_args=dict(
            img_size=224, init_values=1e-5, mlp_ratio=5.3375, reg_tokens=4, mlp_layer='SwiGLUPacked', act_layer='silu',
            pretrained_cfg_overlay=dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))),
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint)))
