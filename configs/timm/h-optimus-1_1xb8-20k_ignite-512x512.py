# H-optimus-1 (Bioptimus 2025), the architecture and statistics of H-optimus-0. CC BY-NC-ND 4.0, gated.
_base_ = ['./h-optimus-0_1xb8-20k_ignite-512x512.py']

checkpoint = 'weights/h-optimus-1.safetensors'  # of bioptimus/H-optimus-1; tools/train.py --weights FILE uses another
model = dict(backbone=dict(init_cfg=dict(checkpoint=checkpoint)))
