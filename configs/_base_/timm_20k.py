# The base of configs/timm: everything but the encoder.
_base_ = [
    './models/timm_vit-adapter.py', './datasets/ignite.py', './default_runtime.py', './schedules/schedule_20k.py'
]
# The adapter learns as fast as the head, ten times faster than an encoder that is not frozen; a frozen one is in no group.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys=dict(
            adapter=dict(lr_mult=10.),
            pos_embed=dict(decay_mult=0.),
            cls_token=dict(decay_mult=0.),
            reg_token=dict(decay_mult=0.))))
