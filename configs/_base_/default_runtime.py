default_scope = 'mmseg'
runner_type = 'TissueRunner'
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))
vis_backends = [dict(type='LocalVisBackend')]
# Unnamed: mmengine keeps visualizers by name, so a second run in one process would log into the first run's folder.
visualizer = dict(type='SegLocalVisualizer', vis_backends=vis_backends)
log_processor = dict(by_epoch=False)
log_level = 'INFO'
load_from = None
resume = False
randomness = dict(seed=0)
custom_hooks = [
    dict(type='FiniteLossHook'),
    dict(type='ScoreSmoothingHook'),
    dict(type='TrainingCurvesHook'),
    dict(type='ValidationOverlayHook', rois=4),
]
