# A few minutes on two CPU cores, from random weights: for `make demo` and short runs on small ROIs.
_base_ = ['./segformer_mit-b0_1xb8-20k_ignite-512x512.py']

data_root = 'work_dirs/demo/ignite'
crop_size = (256, 256)
iterations = 160
model = dict(data_preprocessor=dict(size=crop_size), backbone=dict(init_cfg=None, drop_path_rate=0.))
crops = dict(crop_size=crop_size, um_per_px=None, rotation='quarter')
train_pipeline = [
    dict(type='RandomDihedral'),
    dict(type='PackTissueInputs', meta_keys=_base_.meta_keys),
]
train_dataloader = dict(num_workers=1, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=1)
test_dataloader = dict(num_workers=1)
optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=3.))))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=20),
    dict(type='PolyLR', eta_min=0.0, power=0.9, begin=20, end=iterations, by_epoch=False),
]
train_cfg = dict(max_iters=iterations, val_interval=80)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=80, max_keep_ckpts=1))
