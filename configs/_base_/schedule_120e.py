"""120 passes over the data, the rate divided by 10 after two thirds and five sixths of them.

The data sets repeat themselves 5 times, so that one epoch below is 5 passes. At batch 32 VOC
2007+2012 gets 62,000 iterations, COCO 440,000. The rate, 0.001 at batch 32, is SSD's own;
MMDetection's COCO config scales to the same.
"""

max_epochs = 24
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=2)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=1e-3, momentum=0.9, weight_decay=5e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, milestones=[16, 20], gamma=0.1),
]
auto_scale_lr = dict(enable=False, base_batch_size=32)
