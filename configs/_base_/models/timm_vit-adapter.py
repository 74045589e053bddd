# A frozen vision transformer of timm (model_name and model_args of the backbone), a trained adapter, and SegFormer's head.
norm_cfg = dict(type='SyncBN', requires_grad=True)
channels = [64, 128, 256, 256]
data_preprocessor = dict(
    type='TissueDataPreProcessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255,
    size=(512, 512))
model = dict(
    type='TissueSegmentor',
    data_preprocessor=data_preprocessor,
    backbone=dict(
        type='TimmEncoder', frozen=True, adapter=dict(type='SpatialAdapter', channels=channels, norm_cfg=norm_cfg)),
    decode_head=dict(
        type='FastSegformerHead',
        in_channels=channels,
        in_index=[0, 1, 2, 3],
        channels=256,
        dropout_ratio=0.1,
        num_classes=16,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='TissueLoss')),
    train_cfg=dict(),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(384, 384)))
