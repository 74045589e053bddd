# Training from random weights on small data or machines: settings that let SegFormer learn fast without ImageNet weights
# (docs/training.md). Meant for tools/train.py --minutes M; otherwise 8,000 iterations.
_base_ = ['./segformer_mit-b0_1xb8-20k_ignite-512x512.py']

# Many steps with small crops teach more than few steps with large ones; no dropout, since short runs do not overfit.
crop_size = (128, 128)
iterations = 8000
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(init_cfg=None, drop_path_rate=0.0),
    decode_head=dict(dropout_ratio=0.0))
crops = dict(crop_size=crop_size, um_per_px=None, rotation='quarter')
# Colour must not reveal which laboratory an image is from: three of four crops are recoloured.
train_pipeline = [
    dict(type='RandomDihedral'),
    dict(type='RandStainNA', prob=0.75),
    dict(type='HEDJitter', sigma=0.1, bias=0.05),
    dict(type='RandomScannerEffects'),
    dict(type='PackTissueInputs', meta_keys=_base_.meta_keys),
]
# Reading such small crops is cheap: on two cores a worker would cost more than it saves. With a GPU, use num_workers=4.
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=1)
test_dataloader = dict(num_workers=1)
# Half precision if the device computes in it, including some CPUs; type='OptimWrapper', dtype=None for float32.
optim_wrapper = dict(type='HalfOptimWrapper', dtype='fastest', optimizer=dict(lr=2e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=iterations // 20),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=iterations // 20, end=iterations, by_epoch=False),
]
train_cfg = dict(max_iters=iterations, val_interval=500)
default_hooks = dict(checkpoint=dict(interval=500))
# Validation, checkpoints and tests use an average of the weights of about the last hundred steps.
custom_hooks = [
    *_base_.custom_hooks, dict(type='EMAHook', ema_type='ForeachEMA', momentum=0.01, update_buffers=True)]
