"""What differs from a method's own file on the SSD300 pairs, by method."""

values = dict(
    # "slightly more" iterations than the student alone: a fifth, the milestones moved alike
    hgd=dict(
        train_cfg=dict(max_epochs=29),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
            dict(type='MultiStepLR', by_epoch=True, begin=0, milestones=[19, 24], gamma=0.1),
        ]))
