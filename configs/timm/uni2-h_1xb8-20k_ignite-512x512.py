# UNI2-h (Chen et al. 2024), ViT-H/14, 681 million parameters. CC BY-NC-ND 4.0, gated. ImageNet's statistics.
_base_ = ['../_base_/timm_20k.py']

checkpoint = 'weights/uni2-h.safetensors'  # of MahmoodLab/UNI2-h; tools/train.py --weights FILE uses another
model = dict(
    backbone=dict(
        model_name='vit_giant_patch14_224',
        model_args=dict(
            img_size=224, depth=24, num_heads=24, embed_dim=1536, init_values=1e-5, mlp_ratio=2.66667 * 2, reg_tokens=8,
            no_embed_class=True, mlp_layer='SwiGLUPacked', act_layer='silu',
            pretrained_cfg_overlay=dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))),
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint)))
