"""What every run has in common."""

custom_imports = dict(imports=['hgd_det.registered'], allow_failed_imports=False)
default_scope = 'mmdet'

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # To keep the best checkpoint too: default_hooks.checkpoint.save_best=auto. It is chosen on the
    # evaluation set, so its score flatters; results are those of the last one
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=3),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='DetVisualizationHook'))
# The others that every run has are listed in hgd_det/training/hook_list.py; hooks=dict(NAME=dict(...)) gives
# one of them other arguments

env_cfg = dict(
    cudnn_benchmark=True,  # every batch has the same size
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))
randomness = dict(seed=0)

visualizer = dict(
    type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
log_processor = dict(type='DistillLogProcessor', window_size=50, by_epoch=True)
log_level = 'INFO'
load_from = None
resume = False
