"""SSD-VGG16 with BatchNorm at a quarter of the width for 96 px: maps of 12, 6, 3 and 1."""

channels = [128, 256, 128, 64]

model = dict(
    type='SingleStageDetector',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[127.5, 127.5, 127.5],
        std=[63.75, 63.75, 63.75],
        bgr_to_rgb=True,
        pad_size_divisor=1),
    backbone=dict(type='SlimSSDVGG', depth=16, width=0.25, with_bn=True),
    # No BatchNorm here: it could not train on the 1x1 map of a single image
    neck=dict(
        type='SSDNeck',
        in_channels=channels[:2],
        out_channels=channels,
        level_strides=[2, 1],
        level_paddings=[1, 0],
        l2_norm_scale=20),
    bbox_head=dict(
        type='BatchedSSDHead',
        num_classes=6,
        in_channels=channels,
        anchor_generator=dict(
            type='SSDAnchorGenerator',
            scale_major=False,
            strides=[8, 16, 32, 96],
            ratios=[[2], [2], [2], [2]],
            min_sizes=[18, 36, 52, 64],
            max_sizes=[28, 46, 60, 80]),
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder',
            target_means=[0.0, 0.0, 0.0, 0.0],
            target_stds=[0.1, 0.1, 0.2, 0.2]),
        init_cfg=[
            dict(type='Xavier', layer='Conv2d', distribution='uniform', bias=0),
            dict(type='BackgroundPrior'),
        ]),
    train_cfg=dict(
        assigner=dict(
            type='MaxIoUAssigner',
            pos_iou_thr=0.5,
            neg_iou_thr=0.5,
            min_pos_iou=0.0,
            ignore_iof_thr=-1,
            gt_max_assign_all=False),
        sampler=dict(type='PseudoSampler'),
        smoothl1_beta=1.0,
        allowed_border=-1,
        pos_weight=-1,
        neg_pos_ratio=3,
        debug=False),
    test_cfg=dict(
        nms_pre=1000,
        nms=dict(type='nms', iou_threshold=0.45),
        min_bbox_size=0,
        score_thr=0.02,
        max_per_img=100))
