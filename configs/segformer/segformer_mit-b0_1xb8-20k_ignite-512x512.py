_base_ = [
    '../_base_/models/segformer_mit-b0.py', '../_base_/datasets/ignite.py', '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_20k.py'
]
# ImageNet-1k weights; tools/train.py --weights FILE uses others, --weights none random ones.
checkpoint = 'https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/segformer/mit_b0_20220624-7e0fe6dd.pth'
# mmseg's EncoderDecoder, MixVisionTransformer and SegformerHead have the same weights and outputs, but are slower.
model = dict(
    type='TissueSegmentor',
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(type='FastMixVisionTransformer', init_cfg=dict(type='Pretrained', checkpoint=checkpoint)),
    decode_head=dict(type='FastSegformerHead', loss_decode=dict(_delete_=True, type='TissueLoss')),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(384, 384)))
