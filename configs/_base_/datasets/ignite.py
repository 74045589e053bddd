# IGNITE with 16 classes, prepared by tools/prepare_ignite.py. 255 marks unannotated pixels.
# mmseg_ignite.apis.load_config copies data_root and protocol into every data set, and crops into the training data; a value
# that a data set sets itself stays. With plain mmengine set them there: train_dataloader = dict(dataset=dict(protocol=...)).
custom_imports = dict(imports=['mmseg_ignite'], allow_failed_imports=False)
data_root = 'data/ignite'
protocol = 'patient-8-1-1'  # or official, fold0 ... fold4, roi-8-1-1 (leaks patients)
crop_size = (512, 512)
meta_keys = ('roi', 'patient', 'um_per_px', 'metadata', 'roi_box', 'img_path', 'seg_map_path', 'ori_shape', 'img_shape', 'pad_shape',
             'scale_factor', 'flip', 'flip_direction', 'reduce_zero_label')
# Half of the crops are placed around a pixel of a class, sampled in proportion to 1 / pixels ** temperature. 30 % are
# resampled (um_per_px, any angle), the others are read pixel for pixel.
crops = dict(
    crop_size=crop_size, class_probability=0.5, temperature=0.5, um_per_px=(0.4, 0.625), rotation='any',
    resample_probability=0.3, border='ignore', use_context=False)
# Half of the crops get random colours from the range of several laboratories (Shen et al. 2022), all a light stain jitter
# (Tellez et al. 2018); measured here only for training from random weights (docs/training.md).
train_pipeline = [
    dict(type='RandomDihedral'),
    dict(type='RandStainNA', prob=0.5),
    dict(type='HEDJitter'),
    dict(type='RandomScannerEffects'),
    dict(type='PackTissueInputs', meta_keys=meta_keys),
]
# mmseg's inference functions look for these loader names; IGNITEDataset reads the prepared arrays instead.
# Pillow reports damaged image files, while OpenCV silently fills in the rest.
test_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs', meta_keys=meta_keys),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type='CropStreamSampler'),
    collate_fn=dict(type='collate_crops'),
    dataset=dict(
        type='IGNITECropDataset', split='train', pipeline=train_pipeline,
        defer_colours=False))  # True, for CUDA: the device changes the colours, not the workers
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='IGNITEDataset', split='val', pipeline=test_pipeline))
test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='IGNITEDataset', split='test', pipeline=test_pipeline))
val_evaluator = dict(type='TissueMetric')
test_evaluator = dict(type='TissueMetric')
