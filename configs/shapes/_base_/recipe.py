"""500 steps of AdamW in one cycle, which train_cfg.max_iters=N stretches to N."""

_base_ = '../../_base_/runtime.py'

train_cfg = dict(type='IterBasedTrainLoop', max_iters=500, val_interval=250)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=1e-4),
    clip_grad=dict(max_norm=35))
# Without an end of its own the cycle ends with training
param_scheduler = [dict(type='OneCycleLR', eta_max=2e-3, by_epoch=False)]
auto_scale_lr = dict(enable=False, base_batch_size=32)

default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(by_epoch=False, interval=250))
env_cfg = dict(cudnn_benchmark=False)
log_processor = dict(window_size=20, by_epoch=False)
