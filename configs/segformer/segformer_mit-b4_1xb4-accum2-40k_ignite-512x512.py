# Like 1xb8-20k, for GPUs with 8 GB, with --amp: two batches of 4 per step, so 40,000 iterations are 20,000 steps.
_base_ = ['./segformer_mit-b4_1xb8-20k_ignite-512x512.py']

train_dataloader = dict(batch_size=4)
optim_wrapper = dict(accumulative_counts=2)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=3000),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=3000, end=40000, by_epoch=False),
]
train_cfg = dict(max_iters=40000, val_interval=4000)
default_hooks = dict(checkpoint=dict(interval=4000))
