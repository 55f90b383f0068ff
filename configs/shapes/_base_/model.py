"""SSD-VGG16 with BatchNorm at a quarter of the width for 96 px: maps of 12, 6, 3 and 1."""

_base_ = '../../_base_/models/ssd300_vgg16.py'

channels = [128, 256, 128, 64]

model = dict(
    data_preprocessor=dict(mean=[127.5, 127.5, 127.5], std=[63.75, 63.75, 63.75]),
    backbone=dict(width=0.25, with_bn=True),
    # No BatchNorm here: it could not train on the 1x1 map of a single image
    neck=dict(
        in_channels=channels[:2],
        out_channels=channels,
        level_strides=[2, 1],
        level_paddings=[1, 0]),
    bbox_head=dict(
        num_classes=6,
        in_channels=channels,
        anchor_generator=dict(
            _delete_=True,
            type='SSDAnchorGenerator',
            scale_major=False,
            strides=[8, 16, 32, 96],
            ratios=[[2], [2], [2], [2]],
            min_sizes=[18, 36, 52, 64],
            max_sizes=[28, 46, 60, 80]),
        init_cfg=[
            dict(type='Xavier', layer='Conv2d', distribution='uniform', bias=0),
            dict(type='BackgroundPrior'),
        ]),
    test_cfg=dict(max_per_img=100))
