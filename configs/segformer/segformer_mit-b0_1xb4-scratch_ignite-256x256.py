# From random weights, on small ROIs or machines: what makes SegFormer learn fast without ImageNet.
# Made for --minutes M of tools/train.py; without it, 4,000 iterations.
_base_ = ['./segformer_mit-b0_1xb8-20k_ignite-512x512.py']

crop_size = (256, 256)
iterations = 4000
model = dict(data_preprocessor=dict(size=crop_size), backbone=dict(init_cfg=None))
crops = dict(crop_size=crop_size, um_per_px=None, rotation='quarter')
# Crops this small are read in passing: a worker would take more from two cores than it gives. With a GPU, num_workers=4.
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=1)
test_dataloader = dict(num_workers=1)
# Half precision where the device computes in it, so on some CPUs too; type='OptimWrapper', dtype=None for float32.
optim_wrapper = dict(type='HalfOptimWrapper', dtype='fastest', optimizer=dict(lr=6e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=iterations // 20),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=iterations // 20, end=iterations, by_epoch=False),
]
train_cfg = dict(max_iters=iterations, val_interval=500)
default_hooks = dict(checkpoint=dict(interval=500))
# Validated, saved and tested is the mean of the last hundred steps' weights or so.
custom_hooks = [*_base_.custom_hooks, dict(type='EMAHook', momentum=0.01, update_buffers=True)]
