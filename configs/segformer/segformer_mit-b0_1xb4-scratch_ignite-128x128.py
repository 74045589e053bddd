# From random weights, on small data or machines: what makes SegFormer learn fast without ImageNet (docs/training.md).
# Made for --minutes M of tools/train.py; without it, 8,000 iterations.
_base_ = ['./segformer_mit-b0_1xb8-20k_ignite-512x512.py']

# Many steps with small crops teach more than few with large ones; nothing is dropped, since nothing is overfitted so soon.
crop_size = (128, 128)
iterations = 8000
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(init_cfg=None, drop_path_rate=0.0),
    decode_head=dict(dropout_ratio=0.0))
crops = dict(crop_size=crop_size, um_per_px=None, rotation='quarter')
# Colour must not say which laboratory an image is from: three crops in four are recoloured.
train_pipeline = [
    dict(type='RandomDihedral'),
    dict(type='RandStainNA', prob=0.75),
    dict(type='HEDJitter', sigma=0.1, bias=0.05),
    dict(type='RandomScannerEffects'),
    dict(type='PackSegInputs', meta_keys=_base_.meta_keys),
]
# Crops this small are read in passing: a worker would take more from two cores than it gives. With a GPU, num_workers=4.
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=1)
test_dataloader = dict(num_workers=1)
# Half precision where the device computes in it, so on some CPUs too; type='OptimWrapper', dtype=None for float32.
optim_wrapper = dict(type='HalfOptimWrapper', dtype='fastest', optimizer=dict(lr=2e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=iterations // 20),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=iterations // 20, end=iterations, by_epoch=False),
]
train_cfg = dict(max_iters=iterations, val_interval=500)
default_hooks = dict(checkpoint=dict(interval=500))
# Validated, saved and tested is the mean of the last hundred steps' weights or so.
custom_hooks = [*_base_.custom_hooks, dict(type='EMAHook', momentum=0.01, update_buffers=True)]
