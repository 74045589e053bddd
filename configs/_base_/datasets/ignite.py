# IGNITE, 16 classes, as prepared by tools/prepare_ignite.py. 255 marks unannotated pixels.
custom_imports = dict(imports=['mmseg_ignite'], allow_failed_imports=False)
dataset_type = 'IGNITEDataset'
data_root = 'data/ignite'
protocol = 'patient-8-1-1'
crop_size = (512, 512)
meta_keys = ('roi', 'patient', 'um_per_px', 'img_path', 'seg_map_path', 'ori_shape', 'img_shape', 'pad_shape',
             'scale_factor', 'flip', 'flip_direction', 'reduce_zero_label')
train_pipeline = [
    dict(type='LoadIGNITERegion', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=[0.33, 0.33], direction=['horizontal', 'vertical']),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs', meta_keys=meta_keys),
]
test_pipeline = [
    dict(type='LoadIGNITERegion'),
    dict(type='PackSegInputs', meta_keys=meta_keys),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(type=dataset_type, data_root=data_root, protocol=protocol, split='train', pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type=dataset_type, data_root=data_root, protocol=protocol, split='val', pipeline=test_pipeline))
test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type=dataset_type, data_root=data_root, protocol=protocol, split='test', pipeline=test_pipeline))
val_evaluator = dict(type='TissueMetric')
test_evaluator = dict(type='TissueMetric')
