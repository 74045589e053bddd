# Hibou-L (Nechaev et al. 2024), ViT-L/14, 304 million parameters. Apache-2.0.
_base_ = ['./hibou-b_1xb8-20k_ignite-512x512.py']

checkpoint = 'weights/hibou-l.safetensors'  # of histai/hibou-L; tools/train.py --weights FILE uses another
model = dict(
    backbone=dict(
        model_name='vit_large_patch14_reg4_dinov2',
        model_args=dict(mlp_ratio=2.671875 * 2),
        init_cfg=dict(checkpoint=checkpoint)))
